//! One pass: plan, guard, apply, and prove by planning again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::Machine;
use super::database::chain;
use super::event::{Action, Keep, Note, Now};
use super::lately::Trouble;
use super::machine::{Obstacle, Proven, Trust};
use crate::dataplane::{Outcome, Reading, RefusedStep, SharedObserved};
use crate::model::{Departed, DesiredState, ObservedState, PublicKey};
use crate::plan::guard::{Guard, HeldBack, plan_guarded};
use crate::plan::{Held, Plan, PlanError, Scope, Step, plan};
use crate::store::Backoff;

/// A pass that changes this often without coming to rest is given up for a while.
const MAX_ATTEMPTS: u32 = 3;
/// So many lines of a plan are printed in full.
const FIRST_LINES: usize = 8;

/// A pass that has begun to change the kernel.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    pub started: Instant,
    attempts: u32,
    /// Steps that were tried.
    pub steps: usize,
    /// Steps that the kernel acknowledged and that changed something: not that flows were cut.
    pub applied: usize,
    pub first: Vec<String>,
    /// Nobody changed a row: somebody changed the kernel.
    pub drift: Option<String>,
    pub revoked: BTreeMap<PublicKey, Departed>,
    pub flows_cut: u64,
    /// Flows were cut of others, too, than those revoked.
    pub cut_others: bool,
    cutting: bool,
    refused: usize,
}

impl Pass {
    fn figures(&self, now: Now, lag: Option<Duration>) -> PassFigures {
        let took = now.instant.duration_since(self.started);
        PassFigures { at: now.wall, took, lag, steps: self.steps, refused: self.refused }
    }

    /// One of its steps is left out for good.
    pub fn gives_up(&mut self, step: &str) {
        self.steps = self.steps.saturating_sub(1);
        self.first.retain(|line| line != step);
    }

    /// Rows changed meanwhile: what it still has to do says nothing of what it did.
    pub(super) const fn forgive(&mut self) {
        self.attempts = 0;
    }
}

/// What the last pass that had something to change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassFigures {
    pub at: SystemTime,
    pub took: Duration,
    /// From when its oldest change was heard of, or was begun to be read, to the proof. `None`: it
    /// was not proven, or no row had changed.
    pub lag: Option<Duration>,
    pub steps: usize,
    /// Of these the kernel refused so many.
    pub refused: usize,
}

impl Machine {
    pub(super) fn take_reading(
        &mut self,
        reading: Result<Reading, String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.due.last_observed = Some(now.instant);
        let reading = match reading {
            Ok(reading) => reading,
            Err(error) => {
                self.obstacles.reading = Some(Obstacle::Observe(error.clone()));
                self.proven = None;
                self.due.compare = now.instant + self.backoffs.pass.next_wait();
                self.complain(Trouble::Kernel, Note::ObserveFailed { error }, now, actions);
                return;
            }
        };
        self.obstacles.reading = None;
        let took = now.instant.duration_since(self.due.observing_since);
        self.due.compare_interval = self.options.timing.compare_interval_after(took);
        self.due.compare = self.due.observing_since + self.due.compare_interval;
        self.backend = reading.backend;
        let guarded = self.observed.as_ref().is_some_and(|former| self.is_guarded(&former.read()));
        if guarded && !self.is_guarded(&reading.state) {
            // Whatever else the kernel refuses: nothing is filtered now.
            self.due.retry_pass = None;
        }
        self.observed = Some(reading.state.into());
        self.trust = Trust::Fresh;
        self.scope = Scope::Everything;
        self.take_traffic(reading.traffic, now);
        self.suspend_the_disconnected(now);
    }

    fn is_guarded(&self, observed: &ObservedState) -> bool {
        let interface = self.options.local.interface.as_str();
        observed.firewall.as_ref().is_some_and(|table| table.guards(interface))
    }

    /// Whether something may differ, and may be planned.
    pub(super) fn is_to_plan(&self, now: Now) -> bool {
        !self.scope.is_nothing()
            && (self.desired.is_some() && self.obstacles.rows.is_none() || self.suspends())
            && self.observed.is_some()
            && self.trust != Trust::Doubtful
            && self.due.retry_pass.is_none_or(|at| at <= now.instant)
    }

    /// Plans what is in scope, and begins to apply it or proves that nothing differs.
    pub(super) fn next_step(&mut self, now: Now, actions: &mut Vec<Action>) {
        // The whole is judged by a reading, where one is wanted.
        let wait = self.scope == Scope::Everything
            && self.trust == Trust::Kept
            && self.observe_wanted.is_some();
        if wait || !self.is_to_plan(now) {
            return;
        }
        let Some(observed) = self.observed.clone() else { return };
        let observed = observed.read();
        let (planned, staying) = match self.plan(&observed, now) {
            Ok(planned) => planned,
            Err(error) => return self.meet(error, now, actions),
        };
        let wanted = self.desired.as_ref().map(DesiredState::peers);
        let gone = |key: &PublicKey| {
            !observed.peers.contains_key(key) || wanted.is_some_and(|it| it.contains_key(key))
        };
        self.confirmed.retain(|key| !gone(key));
        let present = observed.peers.len();
        drop(observed);
        self.hold(staying, present, actions);
        let planned = self.less_blocked(planned);
        if planned.is_empty() {
            return self.prove(now, actions);
        }
        if self.pass.as_ref().is_some_and(|pass| pass.attempts >= MAX_ATTEMPTS) {
            return self.give_up_for_now(&planned, now, actions);
        }
        self.begin_apply(planned, now, actions);
    }

    fn plan(&self, observed: &ObservedState, now: Now) -> Result<(Plan, Held), PlanError> {
        let Some(desired) = &self.desired else {
            return Ok((self.withdrawal(observed, now), Held::default()));
        };
        if self.suspends() {
            // That they go is meant.
            return Ok((plan(desired, observed, &self.scope)?, Held::default()));
        }
        let limit = self.options.max_removed;
        let guard = Guard { limit, held: &self.staying, confirmed: &self.confirmed };
        plan_guarded(desired, observed, &self.scope, guard)
    }

    /// Notes whose removal waits, and says what becomes of the rows that were read.
    fn hold(&mut self, staying: Held, present: usize, actions: &mut Vec<Action>) {
        let (removed, limit) = (staying.peers().len(), self.options.max_removed);
        let more = staying.peers().iter().any(|key| !self.staying.peers().contains(key));
        self.held = (removed > 0).then_some(HeldBack { removed, present, limit });
        if let Some(held) = self.held {
            self.proven = None;
            if staying.peers() != self.staying.peers() {
                actions.push(Action::Say(Note::HeldBack(held)));
            }
        }
        self.staying = staying;
        if self.suspends() {
            // It is not the rows that decide now: the word on them waits until they can be read.
            return;
        }
        let keep = match self.held {
            None => Keep::All,
            Some(_) if more => Keep::Later,
            Some(_) => Keep::These,
        };
        if std::mem::take(&mut self.keep_wanted) || (self.keep_waits && keep == Keep::All) {
            self.keep_waits = keep != Keep::All;
            actions.push(Action::Keep(keep));
        }
    }

    fn begin_apply(&mut self, planned: Plan, now: Now, actions: &mut Vec<Action>) {
        let Some(observed) = self.observed.clone() else { return };
        // Until the job ends.
        self.trust = Trust::Doubtful;
        let drift = (!self.rows_changed).then(|| self.observing.clone());
        let pass = self.pass.get_or_insert_with(|| Pass {
            started: now.instant,
            attempts: 0,
            steps: 0,
            applied: 0,
            first: Vec::new(),
            drift,
            revoked: BTreeMap::new(),
            flows_cut: 0,
            cut_others: false,
            cutting: false,
            refused: 0,
        });
        pass.attempts += 1;
        pass.steps += planned.steps().len();
        let room = FIRST_LINES.saturating_sub(pass.first.len());
        pass.first.extend(planned.steps().iter().take(room).map(ToString::to_string));
        let reading = observed.read();
        let (mut cut, mut revoked) = (0, 0);
        for step in planned.steps() {
            match step {
                Step::RemovePeer { key } => {
                    let departed = self.departed.remove(key);
                    pass.revoked.extend(departed.map(|departed| (*key, departed)));
                    let had = reading.peers.get(key).map(|peer| peer.allowed_ips.as_slice());
                    revoked += had.map_or(0, <[_]>::len);
                }
                Step::CutFlows { prefixes } => cut = prefixes.len(),
                _ => {}
            }
        }
        drop(reading);
        pass.cutting = cut > 0;
        pass.cut_others |= cut > revoked;
        // From here until the next proof the kernel is not known to be equal.
        self.begin(Action::Apply(planned, observed), actions);
    }

    pub(super) fn take_outcome(
        &mut self,
        mut outcome: Outcome,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.trust = Trust::Kept;
        self.totals.steps += outcome.applied as u64;
        self.totals.refused_steps += outcome.refused.len() as u64;
        self.totals.flows_cut += outcome.flows_cut as u64;
        if let Some(pass) = &mut self.pass {
            pass.applied += outcome.applied.saturating_sub(usize::from(pass.cutting));
            pass.flows_cut += outcome.flows_cut as u64;
            pass.refused += outcome.refused.len();
            let there = self.observed.as_ref().map(SharedObserved::read);
            let stayed =
                |key: &PublicKey| there.as_ref().is_some_and(|there| there.peers.contains_key(key));
            let revoked = std::mem::take(&mut pass.revoked);
            let (stayed, gone) = revoked.into_iter().partition(|(key, _)| stayed(key));
            pass.revoked = gone;
            self.departed.extend::<BTreeMap<_, _>>(stayed);
        }
        self.block_routes(&mut outcome, now, actions);
        let Some(RefusedStep { step, error }) = outcome.refused.first() else {
            if self.scope == Scope::Everything {
                self.observe_wanted = Some("verify".into());
            }
            return;
        };
        let first = format!("{step}: {}", chain(error.as_ref()));
        for RefusedStep { step, error } in outcome.refused.iter().take(FIRST_LINES) {
            let (step, error) = (step.to_string(), chain(error.as_ref()));
            self.complain(Trouble::Kernel, Note::StepRefused { step, error }, now, actions);
        }
        self.proven = None;
        self.obstacles.pass = Some(Obstacle::Refused { steps: outcome.refused.len(), first });
        self.retry_later(now);
    }

    /// The agent ends: what a pass did so far is told.
    pub(super) fn leave(&mut self, now: Now) {
        if let Some(pass) = self.pass.take() {
            self.leave_unfinished(&pass, now);
        }
    }

    /// Tries again after a while, from a reading made then.
    fn retry_later(&mut self, now: Now) -> Duration {
        let wait = self.backoffs.pass.next_wait();
        // What is refused time after time is not worth more readings than there are anyway.
        let lasts = wait >= Backoff::LAST / 2;
        let delay = if lasts { wait.max(self.due.compare_interval) } else { wait };
        self.due.retry_pass = Some(now.instant + delay);
        self.due.compare = now.instant + delay;
        self.scope = Scope::Everything;
        self.trust = Trust::Doubtful;
        if let Some(pass) = self.pass.take() {
            self.last_pass = Some(pass.figures(now, None));
            self.leave_unfinished(&pass, now);
        }
        delay
    }

    /// What waits to be tried again is tried now, as soon as the kernel is read.
    pub(super) fn retry_now(&mut self) {
        if self.due.retry_pass.take().is_some() {
            self.observe_wanted.get_or_insert_with(|| "retry".into());
        }
    }

    fn give_up_for_now(&mut self, planned: &Plan, now: Now, actions: &mut Vec<Action>) {
        let first: Vec<String> =
            planned.steps().iter().take(FIRST_LINES).map(ToString::to_string).collect();
        let steps = planned.steps().len();
        self.proven = None;
        let one = first.first().cloned().unwrap_or_default();
        self.obstacles.pass = Some(Obstacle::Refused { steps, first: one });
        let retry_in = self.retry_later(now);
        let note = Note::NotConverged { steps, first, retry_in };
        self.complain(Trouble::Kernel, note, now, actions);
    }

    fn meet(&mut self, error: PlanError, now: Now, actions: &mut Vec<Action>) {
        let obstacle = Some(Obstacle::Plan(error.clone()));
        if self.obstacles.pass != obstacle {
            actions.push(Action::Say(Note::CannotPlan(error)));
        }
        self.obstacles.pass = obstacle;
        self.proven = None;
        self.retry_later(now);
    }

    /// Nothing differs within the scope: what was a plan is now a proof.
    fn prove(&mut self, now: Now, actions: &mut Vec<Action>) {
        // While the kernel cannot be read, what was read before proves nothing.
        let readable = self.obstacles.reading.is_none();
        let whole = self.scope == Scope::Everything && readable;
        // A beat is the proof of a reading, not of what we remember.
        let read_back = std::mem::take(&mut self.glanced) || self.trust == Trust::Fresh;
        self.trust = Trust::Kept;
        self.scope = Scope::nothing();
        self.due.retry_pass = None;
        let policies = std::mem::take(&mut self.policies_changed);
        if whole {
            self.backoffs.pass.reset();
            self.lately.forget(Trouble::Kernel);
            self.obstacles.pass = None;
            self.departed.retain(|key, _| self.staying.peers().contains(key));
        }
        self.rows_changed = false;
        self.totals.passes += 1;
        self.say_started();
        // A part only extends a whole.
        if readable
            && (whole || self.proven.is_some())
            && self.held.is_none()
            && self.obstacles.rows.is_none()
            && let Some(desired) = &self.desired
        {
            if whole {
                self.resyncs.proves();
            }
            let as_of = desired.as_of();
            let first = self.proven.replace(Proven { as_of, at: now.wall }).is_none();
            let beat = read_back && self.take_beat();
            if first || beat || self.pass.is_some() {
                self.tell_synced(as_of);
                if read_back {
                    // It is the beat that was due by now.
                    self.due.heartbeat = now.instant + self.options.timing.heartbeat;
                }
            }
        }
        let changed_since = self.changed_since.take().filter(|_| self.proven.is_some());
        if let Some(pass) = self.pass.take().filter(|pass| pass.steps > 0) {
            let since = changed_since.filter(|_| pass.drift.is_none());
            let lag = since.map(|since| now.instant.duration_since(since));
            self.last_pass = Some(pass.figures(now, lag));
            self.finish(pass, &policies, now, actions);
        }
    }
}
