//! The work on the kernel: what may differ from the rows, and the pass that puts it right.

mod difference;
mod pass;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::clock::Now;
use super::note::Note;
use super::rows::{Compared, Extent};
use crate::dataplane::{Outcome, RefusedStep};
use crate::model::{Departed, DesiredState, ObservedState, PolicyId, PublicKey, Touched};
use crate::plan::{Plan, PlanError, Scope};
use difference::{Difference, Settled};
pub(super) use pass::{FIRST_LINES, Pass, PassObstacle};
use pass::{PassView, Passes};

#[derive(Debug)]
pub(super) struct Work {
    difference: Difference,
    passes: Passes,
}

/// What is to become of a plan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is empty, and it is all that the rows ask for: nothing differs.
    Prove,
    Apply,
    /// Nothing of it can be done now. `left`: the kernel acknowledged such steps often, and they are still to do.
    Wait {
        left: Option<Left>,
    },
}

/// Steps that are still to do although the kernel acknowledges them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left {
    steps: usize,
    /// The first of them in full.
    first: Vec<String>,
}

/// What became of the steps of a plan.
#[derive(Debug)]
pub(super) struct Applied {
    /// Routes of other programs are in the way of these, which are given up until all rows are read again.
    pub blocked: Vec<RefusedStep>,
    /// The kernel did not acknowledge these.
    pub refused: Vec<RefusedStep>,
    /// Everything was compared, and every step was acknowledged: only a reading proves that.
    pub wants_reading: bool,
    /// Rows changed while the plan was applied.
    pub has_new_rows: bool,
}

/// The kernel agrees with the rows: what differed is settled.
#[derive(Debug)]
pub(super) struct Agreement {
    /// Everything was compared, by a reading.
    pub whole: bool,
    /// It ends a pass.
    pub ends_pass: bool,
    extent: Extent,
    settled: Settled,
}

/// A pass that has come to its end.
#[derive(Debug)]
pub(super) struct Ended {
    pub pass: Pass,
    /// The extent of its last plan.
    pub extent: Extent,
    /// The policies that changed since the one before.
    pub policies: BTreeMap<PolicyId, Box<str>>,
}

/// The view for readers.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkView<'a> {
    /// Something may differ that no plan was made from yet.
    pub compares: bool,
    pub blocked_routes: &'a BTreeMap<IpNet, String>,
    /// Who the peers were that left the desired state and may still be in the kernel.
    pub departed: &'a BTreeMap<PublicKey, Departed>,
    pub passes: PassView<'a>,
}

impl Work {
    /// Everything may differ. `departed`: peers that an earlier run held.
    pub fn new(departed: BTreeMap<PublicKey, Departed>, seed: u64) -> Self {
        Self { difference: Difference::new(departed), passes: Passes::new(seed) }
    }

    pub fn view(&self) -> WorkView<'_> {
        WorkView {
            compares: !self.difference.is_nothing(),
            blocked_routes: self.difference.blocked_routes(),
            departed: self.difference.departed(),
            passes: self.passes.view(),
        }
    }

    /// When what was refused is tried again.
    pub const fn due(&self) -> Option<Instant> {
        self.passes.due()
    }

    /// Whether it is time to try again.
    pub fn let_time_pass(&mut self, now: Instant) -> bool {
        self.passes.let_time_pass(now)
    }

    /// The peers that left the desired state since the last full proof.
    pub const fn departed(&self) -> &BTreeMap<PublicKey, Departed> {
        self.difference.departed()
    }

    /// The part that may differ.
    pub const fn scope(&self) -> &Scope {
        self.difference.scope()
    }

    /// Whether nothing is known that may differ.
    pub fn is_done(&self) -> bool {
        self.difference.is_nothing()
    }

    /// Whether everything may differ.
    pub fn is_everything(&self) -> bool {
        self.difference.is_everything()
    }

    /// Whether something may differ that need not wait.
    pub fn may_begin(&self) -> bool {
        !self.is_done() && self.passes.may_plan()
    }

    /// Whether no route of another program is in the way.
    pub fn has_all_routes(&self) -> bool {
        self.difference.blocked_routes().is_empty()
    }

    /// Whether rows changed since the pass under way made its last plan.
    pub fn has_new_rows(&self) -> bool {
        self.passes.rows_changed_since_plan()
    }

    /// Whether the pass has planned too often without coming to rest.
    pub fn never_rests(&self) -> bool {
        self.passes.has_too_many_attempts()
    }

    /// The kernel was read, or profiles are left out: anything may differ.
    pub fn compare_everything(&mut self) {
        self.difference.everything();
    }

    /// Takes in that this may differ because of a change. Says whether that is anything.
    pub fn changed(&mut self, touched: Touched, compared: Compared, since: Instant) -> bool {
        self.difference.changed(touched, compared, since)
    }

    /// New work arrived: the pass begins to count its attempts anew, and what was refused is retried now. Says
    /// whether anything was.
    pub fn more_to_do(&mut self) -> bool {
        self.passes.rows_changed();
        self.passes.retry_now()
    }

    /// What was refused is retried now.
    pub fn retry_now(&mut self) {
        self.passes.retry_now();
    }

    /// The next wait before the kernel is read again.
    pub fn next_wait(&mut self) -> Duration {
        self.passes.next_wait()
    }

    /// The plan without the routes that were given up.
    pub fn without_blocked(&self, plan: Plan) -> Plan {
        self.difference.without_blocked(plan)
    }

    /// Decides what becomes of a plan. Beside an `obstacle` only withdrawals go on, and nothing is proven.
    pub fn judge(&mut self, plan: &Plan, obstacle: Option<PlanError>) -> Next {
        let ends_for_now = self.never_rests();
        match obstacle {
            None if plan.is_empty() => Next::Prove,
            None if ends_for_now => {
                let (steps, first) = (plan.steps().len(), self.passes.not_converged(plan));
                Next::Wait { left: Some(Left { steps, first }) }
            }
            None => Next::Apply,
            Some(error) => {
                self.passes.cannot_plan(error);
                let waits = plan.is_empty() || ends_for_now;
                if waits { Next::Wait { left: None } } else { Next::Apply }
            }
        }
    }

    /// Applying a plan begins. Returns the peers that it removes; `names_of` names those that left before this agent
    /// began. `cause`: what announced the difference, if no row did.
    pub fn begin(
        &mut self,
        plan: &Plan,
        names_of: impl FnOnce(&BTreeSet<PublicKey>) -> BTreeMap<PublicKey, Departed>,
        cause: impl FnOnce() -> String,
        observed: &ObservedState,
        now: Instant,
    ) -> &BTreeMap<PublicKey, Departed> {
        let drift = self.difference.is_drift().then(cause);
        let removing = self.difference.take_departed(plan, names_of);
        self.passes.begin(plan, removing, observed, drift, now)
    }

    /// Applying a plan ended; `observed`: the kernel now.
    pub fn applied(&mut self, mut outcome: Outcome, observed: Option<&ObservedState>) -> Applied {
        let stayed = self.passes.applied(&outcome, observed);
        self.difference.stayed(stayed);
        let blocked = self.difference.block_routes(&mut outcome);
        self.passes.give_up_steps(&blocked);
        let Outcome { refused, untried, .. } = outcome;
        self.passes.refused(&refused);
        let is_acknowledged = refused.is_empty() && untried == 0;
        Applied {
            wants_reading: is_acknowledged && self.is_everything(),
            has_new_rows: self.has_new_rows(),
            blocked,
            refused,
        }
    }

    /// Tries again after a while, which is returned: then everything is compared. Repeated refusals cause no extra
    /// readings: one attempt in each `reading_interval`.
    pub fn retry_later(&mut self, reading_interval: Duration, now: Instant) -> Duration {
        self.difference.everything();
        self.passes.retry_later(reading_interval, now)
    }

    /// The pass is given up; what it did stays done.
    pub fn leave(&mut self, now: Now) -> Option<Pass> {
        self.passes.leave(now)
    }

    /// Nothing of this extent differs in the scope. If the kernel is not `readable`, an older reading proves nothing
    /// about the whole. The peers that are `held` may still be there.
    pub fn settle(
        &mut self,
        extent: Extent,
        readable: bool,
        held: impl Fn(&PublicKey) -> bool,
    ) -> Agreement {
        let whole = self.is_everything() && readable;
        let settled = self.difference.settle(whole, extent, held);
        Agreement { whole, ends_pass: self.passes.is_under_way(), extent, settled }
    }

    /// Ends the pass with what was settled. Returns it, if it changed anything. `is_proven`: the kernel is known to
    /// be as the rows ask for.
    pub fn end(&mut self, agreement: Agreement, is_proven: bool, now: Now) -> Option<Ended> {
        let Agreement { whole, extent, settled, .. } = agreement;
        let Settled { policies, changed_since } = settled;
        let changed_since = changed_since.filter(|_| is_proven);
        let pass = self.passes.prove(whole, changed_since, now)?;
        Some(Ended { pass, extent, policies })
    }
}

impl Left {
    /// The note for the operator, if they are tried again so much later.
    pub fn into_note(self, retry_in: Duration) -> Note {
        let Self { steps, first } = self;
        Note::NotConverged { steps, first, retry_in }
    }
}

impl Ended {
    /// The note for the operator, by the rows that are desired now.
    pub fn into_note(self, desired: Option<&DesiredState>) -> Note {
        let Self { pass, extent, policies } = self;
        pass.into_note(extent, &policies, desired)
    }
}

#[cfg(test)]
mod tests;
