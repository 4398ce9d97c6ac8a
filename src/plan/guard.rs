//! Holds back the removal of too many peers at once.
//!
//! An emptied table looks like the revocation of every peer. A few removals are applied; the removal
//! of half of all peers waits until an operator confirms it. Nothing else waits: all other
//! differences are repaired around the peers that stay.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Held, Plan, PlanError, Scope, Step, plan, plan_around};
use crate::model::{DesiredState, ObservedState, PublicKey};

/// A removal of at most this many peers is never held back.
pub const ALWAYS_ALLOWED_PEERS: usize = 10;

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

/// More peers would be removed than is allowed unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this pass would remove {removed} of {present} peers, more than guard.max_removed_peers = \
     {limit} allows: they stay until the rows come back or you \
     confirm with `gatepost confirm`"
)]
pub struct HeldBack {
    pub removed: usize,
    pub present: usize,
    pub limit: MaxRemoved,
}

/// What decides whether a removal waits.
#[derive(Debug, Clone, Copy)]
pub struct Guard<'a> {
    pub limit: MaxRemoved,
    /// The peers that are held already.
    pub held: &'a Held,
    /// The peers whose removal an operator confirmed.
    pub confirmed: &'a BTreeSet<PublicKey>,
}

/// The plan without the removals that are held back, and the peers that are held.
///
/// While some are held, only a few others are removed at once, because a table may be emptied in more
/// than one transaction. A gateway that is not active removes all its peers deliberately: none is
/// held.
///
/// # Errors
/// As [`plan`](super::plan).
pub fn plan_guarded(
    desired: &DesiredState,
    observed: &ObservedState,
    scope: &Scope,
    guard: Guard<'_>,
) -> Result<(Plan, Held), PlanError> {
    if !desired.gateway().active {
        return Ok((plan(desired, observed, scope)?, Held::default()));
    }
    let Guard { limit, held: before, confirmed } = guard;
    let allowed = limit.of(observed.peers.len());
    let still = |key: &&PublicKey| {
        observed.peers.contains_key(key)
            && !desired.peers().contains_key(key)
            && !confirmed.contains(key)
    };
    let mut waiting: BTreeSet<PublicKey> = before.peers().iter().filter(still).copied().collect();
    if *scope == Scope::Everything && waiting.len() <= allowed {
        // Most rows came back: what is left is judged as if it were new.
        waiting.clear();
    }
    let allowed = if waiting.is_empty() { allowed } else { ALWAYS_ALLOWED_PEERS };
    let held = Held::of(waiting, observed, before);
    let planned = plan_around(desired, observed, scope, &held)?;
    let removed = planned.steps().iter().filter_map(|step| match step {
        Step::RemovePeer { key } if !confirmed.contains(key) => Some(*key),
        _ => None,
    });
    let removed: BTreeSet<PublicKey> = removed.collect();
    if removed.len() <= allowed {
        return Ok((planned, held));
    }
    let held = Held::of(&removed | held.peers(), observed, before);
    Ok((plan_around(desired, observed, scope, &held)?, held))
}
