//! Holds back the removal of too many peers at once.
//!
//! An emptied table looks like the deletion of every peer, and one mistyped network makes every row
//! unusable. A few removals are applied; the removal of more than half of all peers waits until an operator
//! confirms it. Nothing else waits: a revocation is written on purpose, and all other differences are
//! repaired around the peers that stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::held::HeldCause;
use super::held::keeper::Keeper;
use super::join::side_by_side;
use super::meets::Meets;
use super::{Held, HeldPeer, Plan, PlanError, Scope, plan_around};
use crate::model::{DesiredState, ObservedState, Profile, PublicKey};

/// Of a gateway with more peers, up to this many removals pass, unless no row is usable. One with at most this
/// many is guarded only against tables without any usable row.
pub const ALWAYS_ALLOWED_PEERS: usize = 10;

/// How many peers may be removed if no peer is left.
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

/// The owner of the rows that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Ours,
    /// They may be another gateway's: that no row names a peer says nothing.
    InDoubt,
}

/// The values that decide whether a removal waits.
#[derive(Debug, Clone)]
pub struct Guard<'a> {
    pub limit: MaxRemoved,
    /// The peers that are held already. They are handed over, because a copy of many costs more than a
    /// change of one.
    pub held: Held,
    /// The peers whose removal an operator confirmed.
    pub confirmed: &'a BTreeSet<PublicKey>,
    /// What the policies let held peers reach that no row names, as far as it is known.
    pub granted: &'a BTreeMap<PublicKey, Arc<Profile>>,
    pub whose: Whose,
}

/// The plan without the removals that are held back, and the peers that are held.
///
/// # Errors
/// The errors of [`plan`](super::plan). The peers are held all the same.
pub fn plan_guarded(
    desired: &DesiredState,
    observed: &ObservedState,
    scope: &Scope,
    guard: Guard<'_>,
) -> (Result<Plan, PlanError>, Held) {
    let (held, scope) = guard.hold(desired, observed, scope);
    (plan_around(desired, observed, &scope, &held), held)
}

impl Guard<'_> {
    /// The peers whose removal is held back, as far as the scope may have changed them, and the scope
    /// with those that are held otherwise than before.
    ///
    /// While some are held, only a few others are removed at once, because a table may be emptied in
    /// more than one transaction. It may be filled again in as many, so a held peer stays until its own
    /// row is back or an operator confirms. If its row is back and its device or user has no right to a tunnel,
    /// its removal counts as new. A gateway that is not active removes all its peers deliberately: none is held.
    fn hold(
        self,
        desired: &DesiredState,
        observed: &ObservedState,
        scope: &Scope,
    ) -> (Held, Scope) {
        match scope {
            Scope::Changed { peers, prefixes } if desired.gateway().active => {
                let keys = self.concerned(peers, prefixes);
                self.hold_changed(desired, observed, keys, scope)
            }
            Scope::Changed { .. } | Scope::Everything => {
                let before = self.held.clone();
                let held = self.hold_all(desired, observed);
                let scope = widened(scope, &held, &before);
                (held, scope)
            }
        }
    }

    /// The peers whose removal is held back, whatever changed.
    #[must_use]
    pub fn hold_all(self, desired: &DesiredState, observed: &ObservedState) -> Held {
        let absent = side_by_side(desired.peers(), &observed.peers)
            .filter(|(_, wanted, _)| wanted.is_none())
            .map(|(key, ..)| *key);
        let held = Held::of(absent, desired, observed, &self.held).narrowed(self.granted);
        let in_doubt = |peer: &HeldPeer| self.is_in_doubt(peer);
        if !desired.gateway().active {
            return held.retain(|_, peer| in_doubt(peer)).count_new_since(&self.held);
        }
        let is_judged =
            |key: &PublicKey, peer: &HeldPeer| !self.confirmed.contains(key) && !in_doubt(peer);
        let judged = || held.peers().iter().filter(|(key, peer)| is_judged(key, peer));
        let unusable = judged().filter(|(_, peer)| peer.is_unusable()).count();
        let some_wait = judged().any(|(key, peer)| self.waits(key, peer));
        let new = judged().filter(|(key, peer)| !self.waits(key, peer)).count();
        let too_many = new > self.max_new_removals(desired, observed, unusable, some_wait);
        let stays = |key: &_, peer: &_| {
            in_doubt(peer) || is_judged(key, peer) && (too_many || self.waits(key, peer))
        };
        held.retain(stays).count_new_since(&self.held)
    }

    /// Like [`Self::hold_all`], where nothing but these peers may be held otherwise than before.
    fn hold_changed(
        mut self,
        desired: &DesiredState,
        observed: &ObservedState,
        keys: BTreeSet<PublicKey>,
        scope: &Scope,
    ) -> (Held, Scope) {
        let mut keeper = Keeper::new(desired, observed);
        let is_absent = |key: &PublicKey| {
            observed.peers.contains_key(key) && !desired.peers().contains_key(key)
        };
        let mut meets = Meets::default();
        let mut keep = |key: &PublicKey| {
            let kept = is_absent(key).then(|| keeper.keep(key, &self.held)).flatten();
            let kept = kept.map(|peer| peer.narrowed(self.granted.get(key), &mut meets));
            kept.filter(|peer| !self.confirmed.contains(key) || self.is_in_doubt(peer))
        };
        let kept: Vec<_> = keys.iter().map(|key| (*key, keep(key))).collect();
        let (mut now, mut before) = (Held::default(), Held::default());
        let mut new = Vec::new();
        for (key, kept) in kept {
            let waits = kept.as_ref().is_some_and(|peer| self.waits(&key, peer));
            let waited = self.held.peers().get(&key).cloned();
            self.held.release(&key);
            if let Some(waited) = waited {
                before.hold(key, waited, desired);
            }
            match kept {
                Some(peer) if waits => {
                    now.hold(key, peer.clone(), desired);
                    self.held.hold(key, peer, desired);
                }
                Some(peer) => new.push((key, peer)),
                None => {}
            }
        }
        let is_judged = |peer: &HeldPeer| !self.is_in_doubt(peer);
        let judged = new.iter().filter(|(_, peer)| is_judged(peer));
        let unusable =
            self.held.unusable() + judged.clone().filter(|it| it.1.is_unusable()).count();
        let few = self.max_new_removals(desired, observed, unusable, !self.held.is_empty());
        let too_many = judged.count() > few;
        new.retain(|(_, peer)| too_many || !is_judged(peer));
        for (key, peer) in new {
            now.hold(key, peer.clone(), desired);
            match before.peers().contains_key(&key) {
                true => self.held.hold(key, peer, desired),
                false => self.held.hold_anew(key, peer, desired),
            }
        }
        let scope = widened(scope, &now, &before);
        (self.held, scope)
    }

    /// The peers that may be held otherwise: those that changed, those that keep a prefix that changed,
    /// those that were confirmed, those of whom it is known what policies grant them, and those of whom it is not
    /// known what they keep.
    fn concerned(
        &self,
        peers: &BTreeSet<PublicKey>,
        prefixes: &BTreeSet<IpNet>,
    ) -> BTreeSet<PublicKey> {
        let keepers = prefixes.iter().filter_map(|prefix| self.held.keeper(prefix));
        let known = peers.iter().chain(keepers).chain(self.confirmed).chain(self.granted.keys());
        known.chain(self.held.unknown()).copied().collect()
    }

    /// How many new removals may pass unconfirmed, besides those that wait.
    fn max_new_removals(
        &self,
        desired: &DesiredState,
        observed: &ObservedState,
        unusable: usize,
        some_wait: bool,
    ) -> usize {
        let present = observed.peers.len();
        let is_small = present <= ALWAYS_ALLOWED_PEERS;
        // A table may have been emptied, or one mistake may have made all its rows unusable.
        let is_bare =
            desired.row_count() == 0 || desired.peers().is_empty() && unusable > LAST_PEERS;
        let limit = match is_small {
            _ if is_bare => LAST_PEERS,
            true => present,
            false => self.limit.of(present),
        };
        if some_wait && !is_small { ALWAYS_ALLOWED_PEERS.min(limit) } else { limit }
    }

    /// Whether this peer waited before, for the same kind of reason: it had no row, or none that can
    /// be used, or the row bars it as it did since the peer is held.
    fn waits(&self, key: &PublicKey, peer: &HeldPeer) -> bool {
        self.held.peers().get(key).is_some_and(|before| {
            self.held.unknown().contains(key) || before.was_barred() || !peer.was_barred()
        })
    }

    fn is_in_doubt(&self, peer: &HeldPeer) -> bool {
        self.whose == Whose::InDoubt && !matches!(peer.cause(), HeldCause::Barred(_))
    }
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
