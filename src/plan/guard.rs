//! Holds back the removal of too many peers at once.
//!
//! An emptied table looks like the deletion of every peer, and one mistyped network makes every row
//! unusable. A few removals are applied; the removal of half of all peers waits until an operator
//! confirms it. Nothing else waits: a revocation is written on purpose, and all other differences are
//! repaired around the peers that stay.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::held::HeldCause;
use super::join::side_by_side;
use super::{Held, HeldPeer, Plan, PlanError, Scope, plan_around};
use crate::model::{DesiredState, ObservedState, PublicKey};

/// From a gateway with more peers, the deletion of this many is never held back. One with fewer is
/// guarded only against tables without any row.
pub const ALWAYS_ALLOWED_PEERS: usize = 10;

/// So many peers may go where none is left.
const LAST_PEERS: usize = 1;

/// `guard.max_removed_peers`: a share of the peers in the kernel, or a number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxRemoved {
    Percent(u8),
    Peers(usize),
}

impl Default for MaxRemoved {
    fn default() -> Self {
        Self::Percent(50)
    }
}

/// The text is neither a percentage nor a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither a share such as \"50%\" (0% to 100%) nor a number of peers such as \"200\""
)]
pub struct MaxRemovedError(String);

impl FromStr for MaxRemoved {
    type Err = MaxRemovedError;

    fn from_str(text: &str) -> Result<Self, MaxRemovedError> {
        let wrong = || MaxRemovedError(text.to_owned());
        match text.trim().strip_suffix('%') {
            Some(percent) => percent
                .trim()
                .parse()
                .ok()
                .filter(|percent| *percent <= 100)
                .map(Self::Percent)
                .ok_or_else(wrong),
            None => text.trim().parse().map(Self::Peers).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for MaxRemoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Peers(peers) => write!(f, "{peers}"),
        }
    }
}

impl MaxRemoved {
    /// How many of the `present` peers may be removed unasked.
    pub(super) fn of(self, present: usize) -> usize {
        let allowed = match self {
            Self::Percent(percent) => present * usize::from(percent) / 100,
            Self::Peers(peers) => peers,
        };
        allowed.max(ALWAYS_ALLOWED_PEERS)
    }
}

/// Removals wait for an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error(
    "the rows of {removals} of {of} peers are gone, deleted or cannot be used, or their users are \
     not active: these peers stay until the rows are right or you confirm with `gatepost confirm`"
)]
pub struct HeldBack {
    pub removals: u64,
    /// Peers in the kernel at that moment.
    pub of: u64,
}

impl HeldBack {
    /// So many removals wait, of so many peers in the kernel. `None`: none waits.
    #[must_use]
    pub fn new(removals: usize, present: usize) -> Option<Self> {
        (removals > 0).then_some(Self { removals: removals as u64, of: present as u64 })
    }
}

/// Whose rows were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Ours,
    /// They may be another gateway's: that no row names a peer says nothing.
    InDoubt,
}

/// What decides whether a removal waits.
#[derive(Debug, Clone, Copy)]
pub struct Guard<'a> {
    pub limit: MaxRemoved,
    /// The peers that are held already.
    pub held: &'a Held,
    /// The peers whose removal an operator confirmed.
    pub confirmed: &'a BTreeSet<PublicKey>,
    pub whose: Whose,
}

/// The plan without the removals that are held back, and the peers that are held.
///
/// # Errors
/// As [`plan`](super::plan). The peers are held all the same.
pub fn plan_guarded(
    desired: &DesiredState,
    observed: &ObservedState,
    scope: &Scope,
    guard: Guard<'_>,
) -> (Result<Plan, PlanError>, Held) {
    let held = guard.hold(desired, observed, scope);
    let scope = widened(scope, &held, guard.held);
    (plan_around(desired, observed, &scope, &held), held)
}

/// A scope, with the peers that are held otherwise than `before`.
fn widened(scope: &Scope, held: &Held, before: &Held) -> Scope {
    let (mut peers, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
    let both = side_by_side(held.peers(), before.peers());
    for (key, now, then) in both.filter(|(_, now, then)| now != then) {
        peers.insert(*key);
        for peer in now.into_iter().chain(then) {
            prefixes.extend(peer.allowed_ips().iter());
        }
    }
    let mut scope = scope.clone();
    scope.merge(Scope::Changed { peers, prefixes });
    scope
}

impl Guard<'_> {
    /// The peers whose removal is held back.
    ///
    /// While some are held, only a few others are removed at once, because a table may be emptied in
    /// more than one transaction. It may be filled again in as many, so a held peer stays until its own
    /// row is back or an operator confirms. A gateway that is not active removes all its peers deliberately: none
    /// is held.
    #[must_use]
    pub fn hold(&self, desired: &DesiredState, observed: &ObservedState, scope: &Scope) -> Held {
        let held = Held::of(self.absent(desired, observed, scope), desired, observed, self.held);
        let in_doubt = |peer: &HeldPeer| {
            self.whose == Whose::InDoubt && !matches!(peer.cause(), HeldCause::Barred(_))
        };
        if !desired.gateway().active {
            return held.retain(|_, peer| in_doubt(peer));
        }
        let present = observed.peers.len();
        let is_small = present <= ALWAYS_ALLOWED_PEERS;
        let is_judged =
            |key: &PublicKey, peer: &HeldPeer| !self.confirmed.contains(key) && !in_doubt(peer);
        let waits = |key: &PublicKey| self.held.peers().contains_key(key);
        let judged = || held.peers().iter().filter(|(key, peer)| is_judged(key, peer));
        let unusable = judged().filter(|(_, peer)| matches!(peer.cause(), HeldCause::Unusable(_)));
        // A table may have been emptied, or one mistake may have made all its rows unusable.
        let is_bare =
            desired.row_count() == 0 || desired.peers().is_empty() && unusable.count() > LAST_PEERS;
        let limit = match is_small {
            _ if is_bare => LAST_PEERS,
            true => present,
            false => self.limit.of(present),
        };
        let some_wait = judged().any(|(key, _)| waits(key));
        let few = if some_wait && !is_small { ALWAYS_ALLOWED_PEERS.min(limit) } else { limit };
        let too_many = judged().filter(|(key, _)| !waits(key)).count() > few;
        held.retain(|key, peer| in_doubt(peer) || is_judged(key, peer) && (too_many || waits(key)))
    }

    /// The peers of the kernel that the rows do not admit, as far as the scope shows any.
    fn absent(
        &self,
        desired: &DesiredState,
        observed: &ObservedState,
        scope: &Scope,
    ) -> BTreeSet<PublicKey> {
        match scope {
            Scope::Everything => side_by_side(desired.peers(), &observed.peers)
                .filter(|(_, wanted, _)| wanted.is_none())
                .map(|(key, ..)| *key)
                .collect(),
            Scope::Changed { peers, .. } => {
                let absent = |key: &&PublicKey| {
                    observed.peers.contains_key(key) && !desired.peers().contains_key(key)
                };
                peers.iter().chain(self.held.peers().keys()).filter(absent).copied().collect()
            }
        }
    }
}
