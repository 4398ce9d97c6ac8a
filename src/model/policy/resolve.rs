//! One policy judged, and a list of them resolved to what a peer may reach.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;

use ipnet::IpNet;
use serde::Serialize;

use super::flatten::{Span, Stretch, select, sweep};
use super::special::internet;
use crate::model::{
    Address, DeviceId, Effect, GroupId, PolicyId, PolicyRow, Ranges, TargetType, UserId,
};

/// The treatment of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    #[default]
    Deny,
    Allow,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}

/// The target of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    User(UserId),
    Device(DeviceId),
    Group(GroupId),
}

/// A policy whose row has been judged: unknown words are resolved, and targets that do not exist are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub id: PolicyId,
    pub name: Box<str>,
    pub priority: i32,
    pub verdict: Verdict,
    pub full_tunnel: bool,
    /// Sorted, each once.
    pub destinations: Box<[IpNet]>,
    pub targets: BTreeSet<Target>,
}

/// How policies are ordered: of two that contain an address, the lesser decides. Lowest priority
/// number first, deny before allow, then by id, so that the one named as deciding is always the
/// same.
pub type Order = (i32, Verdict, PolicyId);

impl Policy {
    /// The policy that a row makes. An unknown effect denies; unknown and dangling targets match no
    /// device.
    #[must_use]
    pub fn from_row(row: &PolicyRow) -> Self {
        let verdict = match row.effect {
            Effect::Allow => Verdict::Allow,
            Effect::Deny | Effect::Unknown(_) => Verdict::Deny,
        };
        let live = row.targets.iter().filter(|target| !target.dangling);
        let destinations: BTreeSet<IpNet> = row.destinations.iter().map(IpNet::trunc).collect();
        Self {
            id: row.id,
            name: row.name.as_str().into(),
            priority: row.priority,
            verdict,
            full_tunnel: row.full_tunnel,
            destinations: destinations.into_iter().collect(),
            targets: live
                .filter_map(|target| match target.target_type {
                    TargetType::User => Some(Target::User(target.target_id.into())),
                    TargetType::Device => Some(Target::Device(target.target_id.into())),
                    TargetType::Group => Some(Target::Group(target.target_id.into())),
                    TargetType::Unknown(_) => None,
                })
                .collect(),
        }
    }

    #[must_use]
    pub const fn order(&self) -> Order {
        (self.priority, self.verdict, self.id)
    }

    /// Matches no address.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.destinations.is_empty() && !self.full_tunnel
    }

    /// Whether both policies decide the same addresses in the same way.
    #[must_use]
    pub fn decides_like(&self, other: &Self) -> bool {
        self.order() == other.order()
            && self.full_tunnel == other.full_tunnel
            && self.destinations == other.destinations
    }

    /// The longest explicit destination that contains an address.
    #[must_use]
    pub fn destination_of(&self, address: std::net::IpAddr) -> Option<IpNet> {
        let containing = self.destinations.iter().filter(|prefix| prefix.contains(&address));
        containing.min_by_key(|prefix| Reverse(prefix.prefix_len())).copied()
    }
}

/// The policy that decides about each address: the whole space as stretches whose winner is an index into
/// `policies`, which must be in [order](Policy::order).
#[must_use]
pub fn decisions<T: Internet>(policies: &[&Policy]) -> Vec<Stretch<T>> {
    let mut spans = Vec::new();
    for (rank, policy) in policies.iter().enumerate() {
        let explicit = policy.destinations.iter().filter_map(T::span);
        let internet = if policy.full_tunnel { T::internet().as_slice() } else { &[] };
        spans.extend(explicit.chain(internet.iter().copied()).map(|(first, last)| Span {
            first,
            last,
            rank,
        }));
    }
    sweep(&spans)
}

/// The destinations that policies in [order](Policy::order) allow.
#[must_use]
pub fn allowed<T: Internet>(policies: &[&Policy], default: Verdict) -> Ranges<T> {
    select(&decisions::<T>(policies), |winner| {
        verdict_of(policies, default, winner) == Verdict::Allow
    })
}

/// The verdict of the winner of a stretch; without a winner, the default.
#[must_use]
pub fn verdict_of(policies: &[&Policy], default: Verdict, winner: Option<usize>) -> Verdict {
    winner.and_then(|rank| policies.get(rank)).map_or(default, |policy| policy.verdict)
}

/// A family whose internet is known.
pub trait Internet: Address {
    /// Every address outside the special-purpose blocks.
    fn internet() -> &'static Ranges<Self>;
}

impl Internet for u32 {
    fn internet() -> &'static Ranges<Self> {
        static INTERNET: LazyLock<Ranges<u32>> = LazyLock::new(internet);
        &INTERNET
    }
}

impl Internet for u128 {
    fn internet() -> &'static Ranges<Self> {
        static INTERNET: LazyLock<Ranges<u128>> = LazyLock::new(internet);
        &INTERNET
    }
}
