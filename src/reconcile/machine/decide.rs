//! Handles each event, and chooses the next job. The order of a plan's steps is decided in
//! `plan/step.rs`.

use std::time::{Duration, Instant, SystemTime};

use super::Machine;
use crate::causes::causes;
use crate::dataplane::{DataplaneError, Outcome, Reading};
use crate::model::{SnapshotRows, Touched};
use crate::plan::{Plan, PlanError};
use crate::reconcile::audit;
use crate::reconcile::clock::{Clocks, Now};
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::{Action, ReadAnswer, ReadKind};
use crate::reconcile::note::Note;
use crate::reconcile::notices::Trouble;
use crate::reconcile::pass::FIRST_LINES;
use crate::reconcile::proof::Evidence;
use crate::reconcile::rows::{NotBuilt, Planned};
use crate::reconcile::source;

impl Machine {
    pub(super) fn rows_read(
        &mut self,
        reading: source::Reading,
        answer: Result<ReadAnswer, DatabaseError>,
        now: Now,
    ) {
        let since = reading.found_since();
        match answer {
            Err(error) => {
                self.read_again(reading.kind, now);
                let note = Note::ReadFailed { error: error.to_string() };
                self.complain(Trouble::Database, note, now);
            }
            Ok(ReadAnswer::Unchanged { taken_at }) => {
                self.source.read_nothing(taken_at, now);
                if let Some(touched) = self.rows.unchanged(taken_at) {
                    self.touch(Some(touched), since);
                    self.rows_are_good(now);
                }
            }
            Ok(ReadAnswer::Changed(mut rows)) => {
                self.history.hears(std::mem::take(&mut rows.marks), rows.taken_at);
                let settled = self.proof.is_current();
                self.source.read_changes(rows.taken_at, reading, settled, now);
                match self.rows.apply(rows) {
                    Some(touched) => {
                        self.history.departs(&touched.departed);
                        self.remember_barred();
                        self.touch(Some(touched), since);
                        self.rows_are_new(now);
                    }
                    None => self.source.want(ReadKind::Everything),
                }
            }
            Ok(ReadAnswer::Everything(rows)) => self.replace_rows(*rows, reading, now),
        }
    }

    fn replace_rows(&mut self, rows: SnapshotRows, reading: source::Reading, now: Now) {
        self.source.read_everything(rows.taken_at, reading, now);
        match self.rows.replace(rows) {
            Ok(replaced) => {
                self.notices.forget(Trouble::Rows);
                self.history.departs(&replaced.departed);
                self.remember_barred();
                self.history.rows_are_read(now.instant);
                self.difference.replaced(replaced, reading.found_since());
                self.more_to_do();
                self.rows_are_new(now);
            }
            Err(refused) => {
                let NotBuilt { error, withdrawn } = *refused;
                self.proof.lose();
                self.read_again(ReadKind::Everything, now);
                self.complain(Trouble::Rows, Note::CannotBuild(error), now);
                // What the other rows withdraw does not wait for this one.
                self.history.departs(&withdrawn.departed);
                self.remember_barred();
                self.difference.replaced(withdrawn, reading.found_since());
                self.more_to_do();
            }
        }
    }

    fn read_again(&mut self, kind: ReadKind, now: Now) {
        self.rows.doubt();
        self.source.read_again(kind, now);
    }

    /// Rows changed, and can be used.
    fn rows_are_new(&mut self, now: Now) {
        self.hold.rows_read();
        self.rows_are_good(now);
        if let Some(desired) = self.rows.desired() {
            self.notices.rows(desired, now.instant);
        }
    }

    /// The rows are what the database holds now.
    fn rows_are_good(&mut self, now: Now) {
        self.source.rows_are_good();
        self.notices.forget(Trouble::Database);
        let touched = self.rows.are_good(now.instant);
        self.touch(touched, now.instant);
        self.repeat_proof(false);
    }

    pub(super) fn kernel_read(&mut self, reading: Result<Reading, DataplaneError>, now: Now) {
        match reading {
            Ok(mut reading) => {
                self.handshakes.steady(&mut reading.traffic, now);
                if self.mirror.take_reading(reading, now.instant).guard_lost {
                    // Nothing is filtered now: the repair does not wait for other refusals.
                    self.passes.retry_now();
                }
                self.difference.everything();
                if let Some(desired) = self.rows.desired() {
                    let clocks = Clocks {
                        instant: now.instant,
                        steady: self.handshakes.clock(now.instant),
                        database: self.source.clock(now),
                    };
                    self.outbox.traffic(self.mirror.traffic(), desired, clocks);
                }
                // Peers may have connected since a reading that is to be followed by another.
                if !self.mirror.wants_reading() {
                    let steady = self.handshakes.clock(now.instant);
                    let connected = || self.mirror.connected(steady);
                    let touched = self.rows.suspend_disconnected(connected);
                    self.touch(touched, now.instant);
                }
            }
            Err(error) => {
                let wait = self.passes.next_wait();
                let error = causes(&error);
                self.mirror.reading_failed(error.clone(), wait, now.instant);
                self.proof.lose();
                let note = Note::ObserveFailed { error };
                self.complain(Trouble::Kernel, note, now);
            }
        }
    }

    pub(super) fn plan_applied(&mut self, mut outcome: Outcome, now: Now) {
        self.mirror.applied();
        self.remember_withdrawals(now);
        let stayed = self.passes.applied(&outcome, self.mirror.observed().as_deref());
        self.difference.stayed(stayed);
        self.quarantine_profiles(std::mem::take(&mut outcome.unloadable));
        let blocked = self.difference.block_routes(&mut outcome);
        blocked.iter().for_each(|refused| self.passes.give_up_step(&refused.step));
        self.notices.refused(Trouble::Route, &blocked, now.instant);
        if outcome.refused.is_empty() {
            if self.difference.is_everything() {
                self.mirror.want_reading_for("verify");
            }
            return;
        }
        let listed = outcome.refused.iter().take(FIRST_LINES);
        self.notices.refused(Trouble::Kernel, listed, now.instant);
        self.proof.lose();
        self.passes.refused(&outcome.refused);
        let rows_changed = self.passes.is_forgiven();
        self.retry_later(now);
        if rows_changed {
            // What rows withdraw that came while the plan was applied does not wait for its retry.
            self.more_to_do();
        }
    }

    /// Takes in what may differ because rows changed at this moment.
    pub(super) fn touch(&mut self, touched: Option<Touched>, since: Instant) {
        if touched.is_some_and(|touched| self.difference.touch(touched, since)) {
            self.more_to_do();
        }
    }

    /// Compares everything because of a decision, not of a change in the kernel: what differs is no
    /// drift.
    pub(super) fn compare_on_purpose(&mut self, now: Now) {
        self.difference.rows_changed(now.instant);
        self.difference.everything();
        self.more_to_do();
    }

    /// New work arrived: resets the pass's attempts, and retries what was refused now.
    fn more_to_do(&mut self) {
        self.passes.forgive();
        if self.passes.retry_now() {
            self.mirror.want_reading("retry");
        }
    }

    /// Tries again after a while, from a reading made then.
    fn retry_later(&mut self, now: Now) -> Duration {
        let wait = self.passes.retry_later(self.mirror.interval(), now.instant);
        self.mirror.doubt(wait, now.instant);
        self.difference.everything();
        self.leave(now);
        wait
    }

    /// Gives up the pass. What it did so far is reported.
    pub(in crate::reconcile) fn leave(&mut self, now: Now) {
        if let (Some(pass), Some(desired)) = (self.passes.leave(now), self.rows.desired()) {
            self.outbox.audit(audit::unfinished(&pass, desired.gateway().id));
        }
    }

    /// What to do next. What was read is carried out before more is read, and a read that is under way
    /// holds up neither a look at the kernel nor a step.
    pub(super) fn begin_next(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.source.begin_connect(now) {
            actions.push(Action::Connect);
        }
        if self.source.is_away() && self.rows.begin_restore() {
            actions.push(Action::Restore);
        }
        if let Some(mode) = self.source.mode() {
            let report = self.outbox.begin_report(mode, now.instant);
            actions.extend(report.map(Action::Report));
        }
        let begins: [fn(&mut Self, Now, &mut Vec<Action>); 3] =
            [Self::begin_reading, Self::plan_next, Self::begin_glance];
        for begin in begins {
            if !self.mirror.is_busy() {
                begin(self, now, &mut actions);
            }
        }
        self.begin_read(now, &mut actions);
        self.begin_history(now, &mut actions);
        actions.iter().for_each(|action| self.proof.begins(action));
        actions
    }

    fn begin_read(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.source.is_reading() || self.mirror.is_applying() || self.may_plan() {
            return;
        }
        let kind = self.source.begin_read(|kind| self.rows.enough(kind), now);
        actions.extend(kind.map(Action::Read));
    }

    fn begin_reading(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.mirror.begin_reading(now.instant) {
            actions.push(Action::Observe);
        }
    }

    fn begin_glance(&mut self, _: Now, actions: &mut Vec<Action>) {
        if self.mirror.begin_glance() {
            actions.push(Action::Glance);
        }
    }

    /// Whether something may differ, and a plan may be made.
    fn may_plan(&self) -> bool {
        !self.difference.is_nothing()
            && self.rows.may_plan()
            && self.mirror.can_be_planned()
            && self.passes.may_plan()
    }

    /// Plans what is in scope, and begins to apply it or proves that nothing differs.
    fn plan_next(&mut self, now: Now, actions: &mut Vec<Action>) {
        // The whole is judged by a new reading, where one is wanted.
        let waits = self.difference.is_everything() && self.mirror.awaits_reading();
        if waits || !self.may_plan() {
            return;
        }
        let Some(observed) = self.mirror.observed() else { return };
        let confirmed_at = self.rows.confirmed_at();
        self.hold.confirm(|since| confirmed_at.is_some_and(|at| since < at));
        let steady = self.handshakes.clock(now.instant);
        let connected = || self.mirror.just_connected(steady);
        let (scope, guard) = (self.difference.scope(), self.hold.guard());
        let planned = self.rows.plan(&observed, scope, guard, connected);
        let Planned { plan: planned, held, obstacle } = planned;
        self.hold.forget_confirmed(self.rows.followed(), &observed);
        let (present, decides) = (observed.peers.len(), self.rows.decide() && obstacle.is_none());
        drop(observed);
        self.rows.planned();
        let update = self.hold.update(held, present, decides);
        actions.extend(update.keep.map(Action::Keep));
        if self.hold.held_back().is_some() || self.rows.sealed_count() > 0 {
            self.proof.lose();
        }
        if let Some(held_back) = update.news {
            self.notices.say(Note::HeldBack(held_back));
        }
        if let Some(error) = obstacle {
            return self.cannot_plan(error, planned, now, actions);
        }
        let planned = self.difference.without_blocked(planned);
        if planned.is_empty() {
            self.prove(now);
        } else if self.passes.is_restless() {
            self.give_up_for_now(&planned, now);
        } else {
            self.begin_apply(planned, now, actions);
        }
    }

    /// No plan of the whole can be made: only withdrawals go on.
    fn cannot_plan(
        &mut self,
        error: PlanError,
        withdrawals: Plan,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.complain(Trouble::Kernel, Note::CannotPlan(error.clone()), now);
        self.passes.cannot_plan(error);
        self.proof.lose();
        if withdrawals.is_empty() || self.passes.is_restless() {
            self.retry_later(now);
        } else {
            self.begin_apply(withdrawals, now, actions);
        }
    }

    fn give_up_for_now(&mut self, planned: &Plan, now: Now) {
        let (steps, first) = (planned.steps().len(), self.passes.not_converged(planned));
        self.proof.lose();
        let retry_in = self.retry_later(now);
        self.complain(Trouble::Kernel, Note::NotConverged { steps, first, retry_in }, now);
    }

    fn begin_apply(&mut self, planned: Plan, now: Now, actions: &mut Vec<Action>) {
        let drift = self.difference.is_drift().then(|| self.mirror.drift(&planned));
        let revoked = self.difference.take_departed(&planned, |keys| self.rows.names_of(keys));
        if !self.rows.are_suspended() {
            self.history.departs(&revoked);
        }
        if let Some(observed) = self.mirror.observed() {
            self.passes.begin(&planned, revoked, &observed, drift, now.instant);
        }
        actions.extend(self.mirror.begin_apply().map(|observed| Action::Apply(planned, observed)));
    }

    /// Nothing differs within the scope: what was a plan is now a proof.
    fn prove(&mut self, now: Now) {
        // While the kernel cannot be read, an older reading proves nothing.
        let (readable, disturbed) = (self.mirror.is_readable(), self.mirror.is_disturbed());
        let whole = self.difference.is_everything() && readable;
        let read_back = self.mirror.prove();
        let settled = self.difference.settle(whole, self.hold.staying());
        if whole {
            self.notices.forget(Trouble::Kernel);
            self.tell_quarantined_policies(true);
        }
        let provable = readable
            && (whole || self.proof.is_current())
            && self.hold.held_back().is_none()
            && self.rows.are_usable();
        let ends_pass = self.passes.is_under_way();
        if let Some(desired) = self.rows.desired() {
            self.outbox.started(desired);
            let (as_of, rows_read_at) = (desired.as_of(), self.rows.read_at());
            let evidence = Evidence { as_of, rows_read_at, whole, read_back, ends_pass, disturbed };
            if provable && self.proof.prove(evidence, now.instant) {
                self.tell_proof(as_of);
            }
        }
        let changed_since = settled.changed_since.filter(|_| self.proof.is_current());
        let Some(pass) = self.passes.prove(whole, changed_since, now) else { return };
        if let Some(desired) = self.rows.desired() {
            self.outbox.audit(audit::finished(&pass, &settled.policies, desired));
        }
        self.notices.say(pass.into_note());
    }

    /// Nothing is known to differ: the proof holds as of now. `read_back`: a glance just found the
    /// kernel as it is known to be; else the rows were just read.
    pub(super) fn repeat_proof(&mut self, read_back: bool) {
        // What the kernel announced is not read yet, or is being read.
        let looks = self.mirror.wants_reading() || !read_back && self.mirror.is_busy();
        if looks
            || !self.difference.is_nothing()
            || self.hold.held_back().is_some()
            || !self.proof.is_current()
        {
            return;
        }
        let Some(as_of) = self.rows.desired().map(|desired| desired.as_of()) else { return };
        if read_back {
            self.mirror.prove();
        }
        if self.proof.repeat(as_of, self.rows.read_at(), read_back) {
            self.tell_proof(as_of);
        }
    }

    /// Reports the proof, unless the rows may be old or do not decide.
    fn tell_proof(&mut self, as_of: SystemTime) {
        if self.shows_proofs() && !self.rows.in_doubt() {
            self.outbox.synced(as_of);
        }
    }

    /// Whether the rows decide, and all their changes are announced.
    pub(super) fn shows_proofs(&self) -> bool {
        self.rows.decide() && self.source.notifications().announce_all()
    }
}
