//! The holder of a thing that only one peer can hold: a prefix, a key.
//!
//! The kernel silently moves a prefix to the peer that claims it last. So every candidate's claim is kept here,
//! and the best one counts: that of the holder of the address's allocation, else that of the older row. The
//! outcome depends on the claims alone, never on their order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::model::PeerId;

/// How good a claim is; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    /// False sorts first: the allocation is held.
    pub allocation_missing: bool,
    pub created_at: SystemTime,
    pub peer_id: PeerId,
}

/// The claims to things of one kind. Nearly all have one claimant, which costs no set.
#[derive(Debug, Clone)]
pub(super) struct Claims<T> {
    best: BTreeMap<T, Precedence>,
    /// The others, where there are any.
    rest: BTreeMap<T, BTreeSet<Precedence>>,
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self { best: BTreeMap::new(), rest: BTreeMap::new() }
    }
}

impl<T: Ord + Copy> Claims<T> {
    /// All claims at once.
    pub fn of(mut claims: Vec<(T, Precedence)>) -> Self {
        claims.sort_unstable();
        claims.dedup();
        let mut rest: BTreeMap<T, BTreeSet<Precedence>> = BTreeMap::new();
        for pair in claims.windows(2) {
            if pair[0].0 == pair[1].0 {
                rest.entry(pair[1].0).or_default().insert(pair[1].1);
            }
        }
        claims.dedup_by_key(|claim| claim.0);
        Self { best: claims.into_iter().collect(), rest }
    }

    /// Adds a claim. Returns whose standing may be another now, besides the claimant's.
    pub fn add(&mut self, thing: T, claim: Precedence) -> Vec<PeerId> {
        let Some(best) = self.best.get_mut(&thing) else {
            self.best.insert(thing, claim);
            return Vec::new();
        };
        if *best == claim {
            return Vec::new();
        }
        let rest = self.rest.entry(thing).or_default();
        if claim < *best {
            rest.insert(std::mem::replace(best, claim));
            rest.iter().map(|claim| claim.peer_id).collect()
        } else {
            rest.insert(claim);
            Vec::new()
        }
    }

    /// Withdraws a claim. Returns whose standing may be another now.
    pub fn remove(&mut self, thing: T, claim: Precedence) -> Vec<PeerId> {
        if self.best.get(&thing) != Some(&claim) {
            if let Some(rest) = self.rest.get_mut(&thing) {
                rest.remove(&claim);
                if rest.is_empty() {
                    self.rest.remove(&thing);
                }
            }
            return Vec::new();
        }
        let Some(mut rest) = self.rest.remove(&thing) else {
            self.best.remove(&thing);
            return Vec::new();
        };
        let affected = rest.iter().map(|claim| claim.peer_id).collect();
        if let Some(next) = rest.pop_first() {
            self.best.insert(thing, next);
        }
        if !rest.is_empty() {
            self.rest.insert(thing, rest);
        }
        affected
    }

    /// The row that holds the thing, if several rows claim it. `None`: at most one does.
    pub fn contested_holder(&self, thing: &T) -> Option<PeerId> {
        self.rest.contains_key(thing).then(|| self.holder(thing)).flatten()
    }

    /// The row that holds the thing.
    pub fn holder(&self, thing: &T) -> Option<PeerId> {
        self.best.get(thing).map(|claim| claim.peer_id)
    }
}
