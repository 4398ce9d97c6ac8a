//! Holds back a plan that would remove too many peers at once.
//!
//! An emptied table looks like everybody's revocation. Removing a few is what revocation is for;
//! removing half of all waits for an operator's word.

use std::fmt;
use std::str::FromStr;

use super::{Plan, Step};

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

/// The plan would remove more than is allowed unasked.
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

/// Says whether the plan may go ahead on a kernel that holds `present` peers.
///
/// # Errors
/// [`HeldBack`] when it removes more than `limit` and more than [`ALWAYS_ALLOWED_PEERS`].
pub fn check(plan: &Plan, present: usize, limit: MaxRemoved) -> Result<(), HeldBack> {
    let removed =
        plan.steps().iter().filter(|step| matches!(step, Step::RemovePeer { .. })).count();
    let allowed = match limit {
        MaxRemoved::Percent(percent) => present * usize::from(percent) / 100,
        MaxRemoved::Peers(peers) => peers,
    };
    if removed > allowed.max(ALWAYS_ALLOWED_PEERS) {
        Err(HeldBack { removed, present, limit })
    } else {
        Ok(())
    }
}
