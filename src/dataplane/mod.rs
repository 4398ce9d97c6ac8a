//! The kernel: obeys steps and reads back. Decides nothing.

use std::collections::BTreeMap;

use crate::model::{ObservedState, PublicKey, Traffic};
use crate::plan::{Phase, Plan, Step};

/// One complete reading of everything of ours on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    pub state: ObservedState,
    pub traffic: BTreeMap<PublicKey, Traffic>,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps the kernel acknowledged.
    pub applied: usize,
    /// Steps it refused, each with its reason. One refused peer does not stop the others.
    pub refused: Vec<(Step, String)>,
    /// Tracked flows that were forgotten.
    pub flows_cut: usize,
    /// The phase in which a refusal made everything after it unsafe to enter.
    pub halted_in: Option<Phase>,
}

/// A gateway host's network, as the reconcile loop uses it.
pub trait Dataplane {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads everything back: link, peers, routes, our table.
    fn observe(&mut self) -> Result<Reading, Self::Error>;

    /// Obeys the steps in order, and makes `observed` what the kernel acknowledged.
    fn apply(&mut self, plan: &Plan, observed: &mut ObservedState) -> Outcome;
}
