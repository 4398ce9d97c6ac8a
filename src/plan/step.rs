//! One step is one write to the kernel, and one stable printed line.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use crate::model::{
    AllowedIps, FirewallChange, GatewayId, InterfaceName, Peer, PresharedKey, PrivateKey,
    PublicKey, RoutingRule,
};

/// When a step happens. The order is the order of the variants, and it is what keeps anything from leaking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Our table exists and forwards nothing ungranted before the link is up, and a link of ours
    /// that is up has the name that the table guards.
    Fence,
    /// The link, its key, port and addresses: without them no peer can be added.
    Link,
    /// Withdrawals go first, so that no prefix is ever claimed twice: each prefix loses its place in the
    /// firewall, then its flows, then its peer. If the agent is killed before the last, the peer still shows
    /// what to cut.
    Revoke,
    /// One atomic transaction: a peer's rules are there before the peer is.
    Policy,
    /// Peers that are new or gain something.
    Peers,
    /// A prefix inside another peer's was closed while it passed between peers. Now that the right
    /// peer has it, it reaches what it should.
    Open,
    /// Routes lead to peers that are there, and sessions that the link lost begin anew.
    Routes,
    /// Removes leftovers of an earlier run; only after a complete snapshot.
    Sweep,
}

/// One write to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Load our table's fixed part with empty maps, or change what the maps hold.
    Firewall {
        phase: Phase,
        change: FirewallChange,
    },
    /// Take rules of the gate away: before the table that marks packets for them.
    RemoveRules {
        rules: BTreeSet<RoutingRule>,
    },
    /// Give our link its name back, by which the table guards it.
    RenameLink {
        from: Box<str>,
        to: InterfaceName,
    },
    /// Take our link out of a VRF, under whose name its packets pass unjudged.
    FreeLink {
        name: Box<str>,
    },
    /// Take down a link with our mark that no table guards.
    TakeDown {
        name: Box<str>,
    },
    CreateLink {
        name: InterfaceName,
        gateway_id: GatewayId,
    },
    /// Put our alias on a WireGuard link that already holds our key.
    ClaimLink {
        gateway_id: GatewayId,
    },
    SetMtu {
        bytes: u32,
    },
    SetPrivateKey {
        private_key: PrivateKey,
    },
    SetListenPort {
        port: u16,
    },
    SetFwmark {
        fwmark: u32,
    },
    AddAddress {
        address: IpNet,
    },
    /// Give an address another prefix length where the kernel holds only one of each (IPv6), in one
    /// datagram.
    ReplaceAddress {
        from: IpNet,
        to: IpNet,
    },
    SetUp,
    /// Delete the tracked flows of prefixes that pass to another peer: the next holder of an address
    /// must not inherit them.
    CutFlows {
        prefixes: BTreeSet<IpNet>,
    },
    RemovePeer {
        key: PublicKey,
    },
    /// Take prefixes from those it has: these are left.
    NarrowPeer {
        key: PublicKey,
        allowed_ips: AllowedIps,
    },
    /// Add a peer the kernel does not have.
    AddPeer {
        key: PublicKey,
        peer: Peer,
    },
    /// Add prefixes to those it has.
    WidenPeer {
        key: PublicKey,
        allowed_ips: AllowedIps,
    },
    SetPresharedKey {
        key: PublicKey,
        preshared_key: Option<PresharedKey>,
    },
    SetKeepalive {
        key: PublicKey,
        keepalive_secs: u16,
    },
    AddRoute {
        prefix: IpNet,
    },
    /// Begin the sessions of peers that had one until the link was down for a moment.
    OpenSessions,
    /// Close the gate to packets that our table does not mark.
    AddRules {
        rules: BTreeSet<RoutingRule>,
    },
    RemoveRoute {
        prefix: IpNet,
    },
    RemoveAddress {
        address: IpNet,
    },
}

impl Step {
    /// When it happens.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match self {
            Self::Firewall { phase, .. } => *phase,
            Self::RemoveRules { .. }
            | Self::RenameLink { .. }
            | Self::FreeLink { .. }
            | Self::TakeDown { .. } => Phase::Fence,
            Self::CreateLink { .. }
            | Self::ClaimLink { .. }
            | Self::SetMtu { .. }
            | Self::SetPrivateKey { .. }
            | Self::SetListenPort { .. }
            | Self::SetFwmark { .. }
            | Self::AddAddress { .. }
            | Self::ReplaceAddress { .. }
            | Self::SetUp => Phase::Link,
            Self::CutFlows { .. } | Self::RemovePeer { .. } | Self::NarrowPeer { .. } => {
                Phase::Revoke
            }
            Self::AddPeer { .. }
            | Self::WidenPeer { .. }
            | Self::SetPresharedKey { .. }
            | Self::SetKeepalive { .. } => Phase::Peers,
            Self::AddRoute { .. } | Self::AddRules { .. } | Self::OpenSessions => Phase::Routes,
            Self::RemoveRoute { .. } | Self::RemoveAddress { .. } => Phase::Sweep,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firewall { change, .. } => write!(f, "firewall {change}"),
            Self::RemoveRules { rules } => write!(f, "gate remove {}", listed(rules)),
            Self::AddRules { rules } => write!(f, "gate add {}", listed(rules)),
            Self::RenameLink { from, to } => write!(f, "link rename {from} to {to}"),
            Self::FreeLink { name } => write!(f, "link free {name} from its master"),
            Self::TakeDown { name } => write!(f, "link down {name}"),
            Self::CreateLink { name, .. } => write!(f, "link create {name}"),
            Self::ClaimLink { gateway_id } => write!(f, "link claim for gateway {gateway_id}"),
            Self::SetMtu { bytes } => write!(f, "link mtu {bytes}"),
            Self::SetPrivateKey { private_key } => {
                write!(f, "link key {}", private_key.public_key())
            }
            Self::SetListenPort { port } => write!(f, "link listen-port {port}"),
            Self::SetFwmark { fwmark } => write!(f, "link fwmark {fwmark:#x}"),
            Self::AddAddress { address } => write!(f, "address add {address}"),
            Self::ReplaceAddress { from, to } => write!(f, "address replace {from} by {to}"),
            Self::SetUp => f.write_str("link up"),
            Self::CutFlows { prefixes } => {
                let prefixes: AllowedIps = prefixes.iter().copied().collect();
                write!(f, "flows cut {prefixes}")
            }
            Self::RemovePeer { key } => write!(f, "peer remove {key}"),
            Self::NarrowPeer { key, allowed_ips } => {
                write!(f, "peer narrow {key} to {allowed_ips}")
            }
            Self::AddPeer { key, peer } => write!(f, "peer add {key} {}", peer.allowed_ips),
            Self::WidenPeer { key, allowed_ips } => write!(f, "peer widen {key} by {allowed_ips}"),
            Self::SetPresharedKey { key, preshared_key } => {
                let verb = if preshared_key.is_some() { "set" } else { "clear" };
                write!(f, "peer preshared-key {verb} {key}")
            }
            Self::SetKeepalive { key, keepalive_secs } => {
                write!(f, "peer keepalive {key} {keepalive_secs}")
            }
            Self::OpenSessions => f.write_str("sessions open"),
            Self::AddRoute { prefix } => write!(f, "route add {prefix}"),
            Self::RemoveRoute { prefix } => write!(f, "route remove {prefix}"),
            Self::RemoveAddress { address } => write!(f, "address remove {address}"),
        }
    }
}

fn listed(rules: &BTreeSet<RoutingRule>) -> String {
    rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Steps in the order they must happen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// Puts steps in the order of their phases; within a phase they keep theirs.
    #[must_use]
    pub fn new(mut steps: Vec<Step>) -> Self {
        steps.sort_by_key(Step::phase);
        Self { steps }
    }

    /// This plan without some steps that no other step depends on.
    #[must_use]
    pub fn without(mut self, left_out: impl Fn(&Step) -> bool) -> Self {
        self.steps.retain(|step| !left_out(step));
        self
    }

    /// This plan with a cut of the flows of these prefixes before they are given, beside those that it
    /// cuts.
    #[must_use]
    pub(super) fn cutting(mut self, more: BTreeSet<IpNet>) -> Self {
        let cut = self.steps.iter_mut().find_map(|step| match step {
            Step::CutFlows { prefixes } => Some(prefixes),
            _ => None,
        });
        match cut {
            Some(prefixes) => {
                prefixes.extend(more);
                self
            }
            None => {
                self.steps.push(Step::CutFlows { prefixes: more });
                Self::new(self.steps)
            }
        }
    }

    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Nothing to do: the kernel is what it should be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}
