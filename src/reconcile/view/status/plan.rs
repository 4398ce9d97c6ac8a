//! The changes that a pass would make.

use serde::{Deserialize, Serialize};

use super::HeldBack;
use super::peer::HeldPeer;

/// The output of `gatepost plan`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanReport {
    /// The steps, in the order of the phases. Empty: there is nothing but held removals.
    pub steps: Vec<PlannedStep>,
    /// The removals that the guard would hold back: no step contains them.
    pub held_back: Option<HeldBack>,
    /// The peers that it would hold.
    pub held: Vec<HeldPeer>,
    /// The changes, in the words of users, devices and policies.
    pub words: Vec<String>,
    /// Rows left out or partly ignored, one sentence each.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// `fence`, `link`, `revoke`, `policy`, `peers`, `open`, `routes` or `sweep`.
    pub phase: String,
    /// The step's one stable line.
    pub step: String,
}
