//! What follows from each event, and what to do next. The order of a plan's steps is decided in
//! `plan/step.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Machine;
use crate::causes::causes;
use crate::dataplane::{DataplaneError, Glance, Outcome, Reading};
use crate::model::{BlockList, DesiredState, ObservedState, PublicKey};
use crate::plan::Plan;
use crate::reconcile::clock::Now;
use crate::reconcile::device_standings::DeviceStandings;
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::{Action, EpochRead, ReadAnswer, ReadKind, Sent};
use crate::reconcile::hold::{Answered, Guarded};
use crate::reconcile::note::Note;
use crate::reconcile::options::Reloaded;
use crate::reconcile::proof::{Evidence, Grounds};
use crate::reconcile::rows::{Change, Extent, Taken, Verdict};
use crate::reconcile::trouble::Trouble;
use crate::reconcile::work::Next;

/// What follows from the database's side.
impl Machine {
    pub(super) fn disconnected(&mut self, error: DatabaseError, now: Now) {
        let note = self.source.disconnected(error, now);
        self.rows.doubt();
        self.outbox.disconnected();
        self.proof.forget_reading();
        if let Some(note) = note {
            self.notices.complain(Trouble::Database, note, now.instant);
        }
    }

    /// Everything was read: the rows come next.
    pub(super) fn epoch_read(&mut self, read: EpochRead, now: Now) {
        let (clock, observed) = (self.source.exact_clock(now), self.mirror.observed());
        let guard = || self.hold.guard_as_is();
        let change = self.rows.epoch_read(read, clock, observed.as_deref(), guard);
        drop(observed);
        self.changed(change, now.instant);
    }

    pub(super) fn rows_read(&mut self, answer: Result<ReadAnswer, DatabaseError>, now: Now) {
        let read = self.source.end_read(&answer, now);
        let Taken { verdict, change, renewal } = self.rows.take_in(answer, now.instant);
        self.source.judged(read, &verdict, self.proof.is_current(), now);
        self.changed(change, read.since);
        self.changed(renewal, now.instant);
        match verdict {
            Verdict::Good { kind, .. } => {
                self.hold.rows_read(kind);
                self.repeat_proof(false);
            }
            Verdict::Refused(_) => self.proof.lose(),
            Verdict::TooLittle | Verdict::Unknown => {}
        }
        self.notices.judged(verdict, self.rows.desired(), now.instant);
    }

    /// The database of this epoch says which withdrawals it has lost.
    pub(super) fn marks_answered(
        &mut self,
        epoch: &str,
        answer: &Result<BTreeSet<PublicKey>, DatabaseError>,
        now: Now,
    ) {
        self.question_ended(answer.as_ref().err(), now);
        let (lost, database_now) = (answer.as_ref().ok(), self.source.database_now(now));
        let change = self.rows.marks_answered(epoch, lost, database_now);
        self.changed(change, now.instant);
    }

    /// The database says what becomes of the devices of held peers that no row names.
    pub(super) fn devices_answered(
        &mut self,
        answer: Result<DeviceStandings, DatabaseError>,
        now: Now,
    ) {
        self.question_ended(answer.as_ref().err(), now);
        let (standings, names) = (answer.ok(), self.work.departed());
        let Answered { taken_out, change } =
            self.hold.devices_answered(standings, names, now.instant);
        self.rows.taken_out(&taken_out, self.source.clock(now));
        self.changed(change, now.instant);
    }

    /// A question beside the reads was answered, or was not.
    fn question_ended(&mut self, error: Option<&DatabaseError>, now: Now) {
        if let Some(error) = error {
            self.source.question_failed(error);
            self.notices.question_failed(error, now.instant);
        }
    }

    pub(super) fn reported(&mut self, mut sent: Sent, now: Now) {
        self.outbox.reported(&mut sent, self.source.is_connected(), now.instant);
        self.notices.reported(&sent, now.instant);
        if sent.error.is_some() {
            // The read meets the same trouble, and reports it.
            self.source.want(ReadKind::Changes);
        }
    }
}

/// What follows from the kernel's side.
impl Machine {
    pub(super) fn kernel_read(&mut self, reading: Result<Reading, DataplaneError>, now: Now) {
        match reading {
            Ok(reading) => {
                if self.mirror.end_reading(reading, now).guard_lost {
                    // Nothing is filtered now: the repair does not wait for other refusals.
                    self.work.retry_now();
                }
                self.work.compare_everything();
                if let Some(desired) = self.rows.desired() {
                    let clocks = self.mirror.clocks(self.source.exact_clock(now), now.instant);
                    self.outbox.traffic(self.mirror.traffic(), desired, clocks);
                }
                let connected = || self.mirror.just_connected(now.instant);
                let change = self.rows.suspend_disconnected(connected).into();
                self.changed(change, now.instant);
            }
            Err(error) => {
                let error = causes(&error);
                self.mirror.reading_failed(error.clone(), self.work.next_wait(), now.instant);
                self.proof.lose();
                self.notices.complain(Trouble::Kernel, Note::ObserveFailed { error }, now.instant);
            }
        }
    }

    /// Everything except the peers and the firewall's contents was read.
    pub(super) fn glanced(&mut self, glance: Option<Glance>, now: Now) {
        let gate_differs = |observed: &ObservedState| self.rows.gate_differs(observed);
        if self.mirror.end_glance(glance, gate_differs, now.instant) {
            self.repeat_proof(true);
        }
    }

    pub(super) fn plan_applied(&mut self, mut outcome: Outcome, now: Now) {
        self.mirror.applied(&outcome);
        self.remember_withdrawals(now);
        if self.rows.quarantine_profiles(std::mem::take(&mut outcome.unloadable)) {
            self.notices.quarantined_policies(self.rows.desired(), false);
            self.work.compare_everything();
        }
        let applied = self.work.applied(outcome, self.mirror.observed().as_deref());
        self.notices.applied(&applied, now.instant);
        if applied.wants_reading {
            self.mirror.want_reading_for("verify");
        }
        if !applied.refused.is_empty() {
            self.proof.lose();
            self.retry_later(now);
            if applied.has_new_rows {
                // What rows withdraw that came while the plan was applied does not wait for its retry.
                self.more_to_do();
            }
        }
    }

    /// The kernel was changed, or is as it should be.
    fn remember_withdrawals(&mut self, now: Now) {
        if let Some(observed) = self.mirror.observed() {
            self.rows.applied(&observed, self.source.exact_clock(now));
        }
    }
}

/// What follows from what an operator does.
impl Machine {
    /// Follows the host's block list from now on.
    pub(super) fn block(&mut self, list: Arc<BlockList>, now: Now) {
        self.notices.block_list(&list, now.instant);
        let change = self.rows.block(list);
        self.changed(change, now.instant);
    }

    /// Follows these options from now on. The next rows are evaluated by them, which are read at once.
    pub(super) fn reload(&mut self, options: Reloaded, now: Now) {
        let Reloaded { local, timing, max_removed, lost_history, stale } = options;
        self.hold.set_limit(max_removed);
        self.outbox.set_report_interval(timing.report_interval);
        self.source.reload(timing, now);
        self.follow_timing();
        let change = self.rows.reload(local, stale, lost_history);
        self.changed(change, now.instant);
    }

    /// The heartbeat depends on the number of gateways.
    pub(super) fn follow_timing(&mut self) {
        let timing = self.source.timing();
        self.proof.set_heartbeat(timing.heartbeat);
        self.mirror.set_timing(timing);
    }
}

/// What is left to do.
impl Machine {
    /// Says what changed, and compares it. `since`: when it changed.
    pub(super) fn changed(&mut self, change: Change, since: Instant) {
        let Change { notes, mut touched, compared } = change;
        self.notices.say_all(notes);
        self.notices.rows_judged(std::mem::take(&mut touched.rows));
        if self.work.changed(touched, compared, since) {
            self.more_to_do();
        }
    }

    /// New work arrived: retries what was refused now, and waits for no long job that applies an older plan.
    fn more_to_do(&mut self) {
        self.mirror.more_to_do();
        if self.work.more_to_do() {
            self.mirror.want_reading("retry");
        }
    }

    /// Tries again after a while, from a reading made then.
    fn retry_later(&mut self, now: Now) -> Duration {
        if self.work.is_everything() {
            self.outbox.disprove();
        }
        let wait = self.work.retry_later(self.mirror.interval(), now.instant);
        self.mirror.doubt(wait, now.instant);
        self.leave(now);
        wait
    }

    /// Gives up the pass. What it did so far is reported.
    pub(in crate::reconcile) fn leave(&mut self, now: Now) {
        if let Some(pass) = self.work.leave(now) {
            self.outbox.left(&pass, self.rows.desired());
        }
    }

    /// Whether rows may be read: those that were read before are planned.
    fn may_read_rows(&self, now: Now) -> bool {
        if self.mirror.is_applying() {
            return self.mirror.is_in_long_job(now.instant) && !self.work.has_new_rows();
        }
        !self.may_plan()
    }

    /// Whether something may differ, and a plan may be made.
    fn may_plan(&self) -> bool {
        self.mirror.can_be_planned() && self.has_to_plan()
    }

    /// Whether something may differ that need not wait.
    fn has_to_plan(&self) -> bool {
        self.work.may_begin() && self.rows.may_plan()
    }

    /// What a proof needs to know of the rows.
    fn grounds(&self) -> Option<Grounds> {
        self.rows.grounds(self.hold.lets_all_go(), self.source.announces_all())
    }
}

/// What to do next.
impl Machine {
    /// Decides the next actions. Rows that were read are planned before more are read. A read that is under way
    /// holds up neither a look at the kernel nor a step, and a long job holds up no read.
    pub(super) fn begin_next(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        actions.extend(self.source.begin_connect(now));
        if self.source.is_down() {
            actions.extend(self.rows.begin_restore());
        }
        let (connected, events) = (self.source.is_connected(), self.rows.audit_events());
        actions.extend(self.outbox.begin_report(connected, events, now.instant));
        actions.extend(self.begin_withdrawals(now));
        actions.extend(self.mirror.begin_reading(now.instant));
        actions.extend(self.begin_plan(now));
        actions.extend(self.mirror.begin_glance(now.instant));
        if self.may_read_rows(now) {
            actions.extend(self.source.begin_read(|kind| self.rows.enough(kind), now));
        }
        let departed = self.work.departed();
        actions.extend(self.rows.begin_question(connected, now.instant));
        actions.extend(self.hold.begin_question(departed, connected, now.instant));
        actions.extend(self.rows.begin_remember(self.hold.begin_remember(), departed));
        actions.iter().for_each(|action| self.proof.begins(action));
        actions
    }

    /// Plans withdrawals from the last reading, which is in doubt, before a newer one is tried: that may
    /// fail again, or take long. They give nothing, and so are safe whatever became of what was refused.
    fn begin_withdrawals(&mut self, now: Now) -> Option<Action> {
        if !self.mirror.can_be_withdrawn_by() || !self.has_to_plan() {
            return None;
        }
        self.mirror.assume_given();
        let observed = self.mirror.observed()?;
        let Guarded { plan, news, .. } =
            self.hold.plan(self.rows.confirmed_at(), &observed, false, |guard| {
                // Only a reading would show which sessions are alive.
                self.rows.plan_withdrawals(&observed, guard, || None)
            });
        let plan = self.mirror.safe(plan, &observed);
        drop(observed);
        self.notices.held_back(news, self.hold.holds_nothing_back());
        self.proof.lose();
        if plan.is_empty() || self.work.never_rests() {
            self.mirror.exhausted();
            self.leave(now);
            return None;
        }
        self.begin_apply(plan, now)
    }

    /// Plans what is in scope, and begins to apply it or proves that nothing differs.
    fn begin_plan(&mut self, now: Now) -> Vec<Action> {
        // The whole is compared with a new reading, where one is wanted.
        let waits = self.work.is_everything() && self.mirror.awaits_reading();
        if self.mirror.is_busy() || waits || !self.may_plan() {
            return Vec::new();
        }
        let Some(observed) = self.mirror.observed() else { return Vec::new() };
        let Guarded { plan, extent, obstacle, news, keep } =
            self.hold.plan(self.rows.confirmed_at(), &observed, self.rows.decide(), |guard| {
                let connected = || self.mirror.just_connected(now.instant);
                self.rows.plan(&observed, self.work.scope(), guard, connected)
            });
        self.hold.forget_confirmed(self.rows.followed(), &observed);
        drop(observed);
        self.rows.planned(keep);
        self.notices.held_back(news, self.hold.holds_nothing_back());
        self.proof.planned(self.grounds());
        let cuts_flows = self.rows.desired().is_some_and(DesiredState::cuts_flows);
        let plan = self.mirror.cut_in(self.work.without_blocked(plan), cuts_flows);
        if plan.is_empty() {
            self.remember_withdrawals(now);
        }
        if let Some(error) = &obstacle {
            self.notices.cannot_plan(error, now.instant);
            self.proof.lose();
        }
        let mut actions = Vec::from_iter(keep.map(|keep| self.hold.keep(keep)));
        match self.work.judge(&plan, obstacle) {
            Next::Prove => self.prove(extent, now),
            Next::Apply => actions.extend(self.begin_apply(plan, now)),
            Next::Wait { left } => {
                self.proof.lose();
                let retry_in = self.retry_later(now);
                if let Some(left) = left {
                    self.notices.complain(Trouble::Kernel, left.into_note(retry_in), now.instant);
                }
            }
        }
        actions
    }

    fn begin_apply(&mut self, plan: Plan, now: Now) -> Option<Action> {
        if self.work.is_everything() {
            // What a reading shows may have been so when the last proof was made.
            self.outbox.disprove();
        }
        if let Some(observed) = self.mirror.observed() {
            let names_of = |keys: &BTreeSet<_>| self.rows.names_of(keys);
            let cause = || self.mirror.drift(&plan);
            let removing = self.work.begin(&plan, names_of, cause, &observed, now.instant);
            self.rows.removing(removing);
        }
        self.mirror.begin_apply(plan, now.instant)
    }

    /// Nothing of this extent differs within the scope: what was a plan is now a proof.
    fn prove(&mut self, extent: Extent, now: Now) {
        let readable = self.mirror.is_readable();
        let settled = self.work.settle(extent, readable, |key| self.hold.waits(key));
        let evidence = Evidence {
            readable,
            whole: settled.whole,
            read_back: self.mirror.prove(settled.whole),
            ends_pass: settled.ends_pass,
            disturbed: self.mirror.is_disturbed(),
        };
        if settled.whole {
            self.notices.proven(self.work.has_all_routes(), self.rows.desired());
        }
        self.outbox.started(self.rows.desired());
        if let Some(grounds) = self.grounds() {
            let proven = self.proof.prove(grounds, evidence, now.instant);
            self.outbox.synced(proven.told);
            if proven.lacks_reading {
                self.mirror.want_reading("verify");
            }
        }
        let Some(ended) = self.work.end(settled, self.proof.is_current(), now) else { return };
        self.outbox.ended(&ended, self.rows.desired());
        self.notices.say(ended.into_note(self.rows.desired()));
    }

    /// Nothing is known to differ: the proof holds as of now. `read_back`: a glance just found the
    /// kernel as it is known to be; else the rows were just read.
    fn repeat_proof(&mut self, read_back: bool) {
        let is_quiet = self.work.is_done() && self.mirror.is_undisturbed(read_back);
        let grounds = if is_quiet { self.grounds() } else { None };
        let Some(grounds) = grounds.filter(|it| self.proof.may_repeat(*it, read_back)) else {
            return;
        };
        if read_back {
            self.mirror.prove(false);
        }
        let told = self.proof.repeat(grounds, read_back);
        self.outbox.synced(told);
    }
}
