//! What a refused step means to an operator, and the way out. Pure.

use nix::errno::Errno;

use super::DataplaneError;
use super::batch::{Part, part};
use super::conntrack::is_unheard_of;
use super::netlink::NetlinkError;
use crate::plan::{Phase, Step};

/// What a refused step forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Consequence {
    /// Nothing: the others go on.
    None,
    /// A prefix that was to change hands may be with its former peer, or with the one around it: what
    /// is closed stays closed.
    StaysClosed,
    /// Nothing more may be given; what takes away still happens.
    NoGrants,
    /// The link is not there or not ours, or a peer has an address whose flows could not be cut:
    /// nothing more may be touched.
    Nothing,
}

impl Consequence {
    /// Of a step that was refused.
    pub fn of(step: &Step) -> Self {
        match step {
            // Whoever was to lose an address reaches nothing from it already, and must keep it
            // until its flows are cut, to tell that they are to be.
            Step::CreateLink { .. }
            | Step::ClaimLink { .. }
            | Step::RenameLink { .. }
            | Step::CutFlows { .. } => Self::Nothing,
            // Without our table, or with another key than the clients know, a peer must not be let
            // in. Without a port, a mark, an MTU or an address, those who are in may stay.
            Step::Firewall { phase: Phase::Fence | Phase::Revoke | Phase::Policy, .. }
            | Step::SetPrivateKey { .. } => Self::NoGrants,
            step if part(step) == Part::Peer => Self::StaysClosed,
            _ => Self::None,
        }
    }

    /// With the refusal of one more step.
    pub fn and(self, step: &Step) -> Self {
        match (self, step) {
            // The places of those who are revoked could not be taken from them: their peers must
            // go, flows or not. The places tell that there was somebody, for the next plan to cut.
            (Self::NoGrants, Step::CutFlows { .. }) => self,
            _ => self.max(Self::of(step)),
        }
    }

    /// Whether a step may still be obeyed.
    pub fn permits(self, step: &Step) -> bool {
        match self {
            Self::None => true,
            Self::StaysClosed => step.phase() != Phase::Open,
            Self::NoGrants => step.phase() == Phase::Revoke,
            Self::Nothing => false,
        }
    }
}

/// The kernel's refusal of a step, with what to do about it.
pub(super) fn refused(step: &Step, source: NetlinkError) -> DataplaneError {
    let remedy = source.refusal().and_then(|errno| remedy(step, errno));
    DataplaneError::Refused { source, remedy }
}

fn remedy(step: &Step, errno: Errno) -> Option<String> {
    let text = match (step, errno) {
        (Step::CreateLink { name, .. }, Errno::EEXIST) => format!(
            "a link {name} exists already: `ip -d link show {name}` says what it is; rename it, or \
             give the gateway another `interface.name`"
        ),
        (Step::CreateLink { .. }, Errno::EOPNOTSUPP) => {
            "this kernel has no WireGuard: load the module `wireguard`, or set `interface.backend` \
             to \"auto\" or \"userspace\""
                .to_owned()
        }
        (Step::SetListenPort { port }, Errno::EADDRINUSE) => format!(
            "another socket has UDP port {port}: `ss -ulpn sport = :{port}` says which; stop it, \
             or change `gateways.listen_port`"
        ),
        (Step::SetUp, Errno::EADDRINUSE) => {
            "another socket has the interface's UDP port: `ss -ulpn` says which; stop it, or change \
             `gateways.listen_port`"
                .to_owned()
        }
        (Step::AddRoute { prefix }, Errno::EEXIST) => format!(
            "somebody else's route to {prefix} is there and is left alone: `ip route show {prefix}` \
             says whose; remove it, or take {prefix} from the peer"
        ),
        (Step::AddAddress { address } | Step::ReplaceAddress { to: address, .. }, Errno::EEXIST) => {
            format!("{address} is there already: `ip address show` says where")
        }
        (
            Step::AddAddress { address } | Step::ReplaceAddress { to: address, .. },
            Errno::EACCES | Errno::EOPNOTSUPP,
        ) if is_v6(address) => {
            format!("IPv6 is switched off here: {address} needs net.ipv6.conf.all.disable_ipv6 = 0")
        }
        (Step::SetMtu { bytes }, Errno::EINVAL) => {
            format!("{bytes} bytes is no MTU for this link: see `interface.mtu_bytes`")
        }
        (Step::AddPeer { .. } | Step::WidenPeer { .. }, Errno::EINVAL) => {
            "one of its prefixes or keys is not what WireGuard takes".to_owned()
        }
        (Step::CutFlows { .. }, errno) if is_unheard_of(errno) => {
            "tracked flows cannot be listed, and who gets an address would inherit them: load the \
             module `nf_conntrack_netlink`, or set `firewall.flush_conntrack` to false"
                .to_owned()
        }
        (_, Errno::EPERM | Errno::EACCES) => {
            "the agent needs CAP_NET_ADMIN in the network namespace where the interface was made"
                .to_owned()
        }
        (_, Errno::ENODEV) => "the link was removed meanwhile".to_owned(),
        (_, Errno::ENOBUFS | Errno::ENOMEM) => "the kernel has no memory for it".to_owned(),
        _ => return None,
    };
    Some(text)
}

fn is_v6(address: &ipnet::IpNet) -> bool {
    matches!(address, ipnet::IpNet::V6(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FirewallChange, PublicKey};

    #[test]
    fn after_a_failed_policy_peers_are_removed_and_none_is_added() {
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        let change = FirewallChange::default();
        let refused = Consequence::of(&Step::Firewall { phase: Phase::Policy, change });
        assert!(refused.permits(&Step::RemovePeer { key }));
        assert!(!refused.permits(&Step::AddPeer { key, peer: crate::model::Peer::default() }));
        let port = Consequence::of(&Step::SetListenPort { port: 1 });
        assert!(port.permits(&Step::AddPeer { key, peer: crate::model::Peer::default() }));
    }

    #[test]
    fn what_could_not_be_cut_keeps_its_holder_unless_that_one_could_still_use_it() {
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        let (remove, peer) = (Step::RemovePeer { key }, crate::model::Peer::default());
        let add = Step::AddPeer { key, peer };
        let cut = Step::CutFlows { prefixes: ["10.64.0.2/32".parse().unwrap()].into() };
        let policy = Step::Firewall { phase: Phase::Policy, change: FirewallChange::default() };
        let uncut = Consequence::None.and(&cut);
        assert!(!uncut.permits(&remove) && !uncut.permits(&policy) && !uncut.permits(&add));
        let revoke = Step::Firewall { phase: Phase::Revoke, change: FirewallChange::default() };
        let unrevoked = Consequence::None.and(&revoke);
        assert!(unrevoked.permits(&cut));
        let neither = unrevoked.and(&cut);
        assert!(neither.permits(&remove) && !neither.permits(&policy) && !neither.permits(&add));
    }

    #[test]
    fn a_refusal_names_the_thing_the_value_and_the_way_out() {
        let error = NetlinkError::Refused { errno: Errno::EADDRINUSE, message: String::new() };
        let refused = refused(&Step::SetListenPort { port: 51820 }, error);
        assert_eq!(
            refused.to_string(),
            "the kernel says EADDRINUSE: Address already in use; another socket has UDP port 51820: \
             `ss -ulpn sport = :51820` says which; stop it, or change `gateways.listen_port`"
        );
    }

    #[test]
    fn flows_that_cannot_be_listed_name_the_module() {
        let cut = Step::CutFlows { prefixes: std::collections::BTreeSet::new() };
        let error = NetlinkError::Refused { errno: Errno::EINVAL, message: String::new() };
        assert!(refused(&cut, error).to_string().contains("`nf_conntrack_netlink`"));
    }
}
