//! What a pass would change.

use serde::{Deserialize, Serialize};

use super::HeldBack;
use super::peer::HeldPeer;

/// What `gatepost plan` prints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanReport {
    /// What would change, in the order of the phases. Empty: nothing but what is held back.
    pub steps: Vec<PlannedStep>,
    /// What the guard would hold back: it is in no step.
    pub held_back: Option<HeldBack>,
    /// The peers that it would hold.
    pub held: Vec<HeldPeer>,
    /// What would change, in the words of users, devices and policies.
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
