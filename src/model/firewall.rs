//! The destinations of each peer, flattened to ranges that the kernel can look up.
//!
//! A **profile** is the flattened result of an ordered policy list. Peers with equal results share
//! one. An address that has no profile reaches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use ipnet::IpNet;

use super::{InterfaceName, MarkBit};

mod observed;
mod openings;
mod ranges;

pub use observed::{FixedRules, ObservedFirewall};
pub use openings::{Openings, Ports};
pub use ranges::{Address, Ranges};

/// The destinations of peers with this profile. Everything not listed is denied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Profile {
    pub allow4: Ranges<u32>,
    pub allow6: Ranges<u128>,
    /// Servers that may be asked on port 53 whatever the ranges say; sorted, each once.
    pub dns_servers: Box<[IpAddr]>,
}

impl Profile {
    /// Whether this address may be reached on every port.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.allow4.contains(address.into()),
            IpAddr::V6(address) => self.allow6.contains(address.into()),
        }
    }

    /// Whether another profile allows everything that this one does.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.meet(other) == *self
    }

    /// Everything but what another profile allowed `before` and this one does not; `None`: there is no such thing.
    #[must_use]
    pub fn all_but_lost(&self, before: &Self) -> Option<Self> {
        let no_server =
            |server: &&IpAddr| !self.dns_servers.contains(server) && !self.allows(**server);
        let servers = || before.dns_servers.iter().filter(no_server).map(|it| IpNet::from(*it));
        let lost4 = before.allow4.difference(&self.allow4).with(servers());
        let lost6 = before.allow6.difference(&self.allow6).with(servers());
        if lost4.is_empty() && lost6.is_empty() {
            return None;
        }
        let (allow4, allow6) = (lost4.complement(), lost6.complement());
        Some(Self { allow4, allow6, dns_servers: self.dns_servers.clone() })
    }

    /// The ranges that both profiles allow. A DNS server stays if one profile lists it and the other lists or allows it.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        let (allow4, allow6) =
            (self.allow4.intersection(&other.allow4), self.allow6.intersection(&other.allow6));
        let in_both = |server: &IpAddr| {
            let listed = [self, other].map(|it| it.dns_servers.contains(server));
            let allowed = [self, other].map(|it| it.allows(*server));
            listed == [true, true]
                || listed[0] && allowed[1] && !allowed[0]
                || listed[1] && allowed[0] && !allowed[1]
        };
        let mut dns_servers: Vec<IpAddr> =
            self.dns_servers.iter().chain(&other.dns_servers).copied().filter(in_both).collect();
        dns_servers.sort_unstable();
        dns_servers.dedup();
        Self { allow4, allow6, dns_servers: dns_servers.into() }
    }
}

/// A profile's number in the kernel (the minor and major of a `classid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileId(pub u32);

impl ProfileId {
    /// No class: no profile ever has it, so what is assigned to it reaches nothing.
    pub const NOTHING: Self = Self(0);
}

/// `firewall.masquerade`: whose source address is rewritten on the way out of another interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Masquerade {
    #[default]
    All,
    /// Only traffic to the internet: destinations outside the special-purpose blocks.
    Internet,
    None,
}

/// A group of nflog, to which the kernel sends logged packets. One program reads a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NflogGroup(pub u16);

impl NflogGroup {
    /// The number of our routes' protocol, too. No program known to us reads this group.
    pub const DEFAULT: Self = Self(71);
}

impl std::fmt::Display for NflogGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The part of the ruleset that does not depend on peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallBase {
    pub interface: InterfaceName,
    pub masquerade: Masquerade,
    /// Where denied packets are logged; `None`: nowhere.
    pub deny_log: Option<NflogGroup>,
    /// Setting `policy.allow_inbound`: others may open flows toward peers.
    pub allow_inbound: bool,
    /// The flows that the gateway itself may open toward peers; `None`: none, unless `allow_inbound`.
    pub gateway_opens: Option<Openings>,
    pub networks: Networks,
    /// How many flows may be open from one address of a peer; `None`: any number.
    pub flows_per_address: Option<NonZeroU32>,
    /// The mark by which the gate knows packets that this table judges; `None`: there is no gate.
    pub gate: Option<MarkBit>,
}

/// Where peers' addresses may lie. One that the host routes to the interface comes by no other link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// `gateways.vpn_cidr`.
    pub pool: IpNet,
    /// Of the interface's other addresses, as far as the gate guards them.
    pub others: BTreeSet<IpNet>,
    /// Those of the site prefixes.
    pub sites4: Ranges<u32>,
    pub sites6: Ranges<u128>,
}

impl Networks {
    #[must_use]
    pub fn new<'a>(pool: IpNet, sites: impl Iterator<Item = &'a IpNet> + Clone) -> Self {
        Self {
            pool: pool.trunc(),
            others: BTreeSet::new(),
            sites4: sites.clone().filter_map(u32::span).collect(),
            sites6: sites.filter_map(u128::span).collect(),
        }
    }

    /// Those of these networks that are not the pool's are guarded by the gate, too.
    #[must_use]
    pub fn with_others(mut self, networks: impl Iterator<Item = IpNet>) -> Self {
        let pool = self.pool;
        self.others = networks.map(|it| it.trunc()).filter(|it| !pool.contains(it)).collect();
        self
    }

    /// The networks toward which the gate stops packets that no table has judged.
    pub fn gated(&self) -> impl Iterator<Item = IpNet> + '_ {
        std::iter::once(self.pool).chain(self.others.iter().copied())
    }
}

/// The desired contents of the firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredFirewall {
    pub base: FirewallBase,
    /// Every prefix of every peer, host or site prefix, also of one that is granted nothing: the
    /// longest match decides, so without a place of its own an address within another peer's site
    /// prefix would be granted what the other is.
    pub assignments: BTreeMap<IpNet, Arc<Profile>>,
}

/// One atomic transaction on our table. Applied in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallChange {
    /// Load the table's fixed part anew, with empty maps: denies everything until filled.
    pub load_base: Option<FirewallBase>,
    /// Prefixes that lose their profile.
    pub unassign: Vec<IpNet>,
    /// Profiles that are new (`true`) or get other ranges in place (`false`).
    pub put_profiles: BTreeMap<ProfileId, (bool, Arc<Profile>)>,
    /// Prefixes that get this profile, whether or not they had another.
    pub assign: BTreeMap<IpNet, ProfileId>,
    /// Profiles that no prefix has any more.
    pub remove_profiles: Vec<ProfileId>,
}

impl FirewallChange {
    /// Nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.load_base.is_none()
            && self.unassign.is_empty()
            && self.put_profiles.is_empty()
            && self.assign.is_empty()
            && self.remove_profiles.is_empty()
    }
}

impl std::fmt::Display for FirewallChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let new = self.put_profiles.values().filter(|(new, _)| *new).count();
        let load = if self.load_base.is_some() { "load base, " } else { "" };
        write!(
            f,
            "{load}profiles +{new} ~{} -{}, prefixes +{} -{}",
            self.put_profiles.len() - new,
            self.remove_profiles.len(),
            self.assign.len(),
            self.unassign.len()
        )
    }
}
