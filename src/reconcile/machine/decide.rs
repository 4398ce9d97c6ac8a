//! What follows from each event, and what to plan next. The order of a plan's steps is decided in
//! `plan/step.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Machine;
use crate::causes::causes;
use crate::dataplane::{DataplaneError, Outcome, Reading};
use crate::model::{BlockList, DesiredState, PublicKey, Touched};
use crate::plan::Plan;
use crate::reconcile::audit;
use crate::reconcile::clock::Now;
use crate::reconcile::device_standings::DeviceStandings;
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::{Action, EpochRead, Keep, LastGood, ReadAnswer, ReadKind};
use crate::reconcile::note::Note;
use crate::reconcile::pass::FIRST_LINES;
use crate::reconcile::rows::{Change, NotBuilt, Planned, Rows};
use crate::reconcile::trouble::Trouble;

impl Machine {
    pub(super) fn rows_read(&mut self, answer: Result<ReadAnswer, DatabaseError>, now: Now) {
        let settled = self.proof.is_current();
        let read = self.source.end_read(&answer, now);
        match answer {
            // The end of the connection, which comes next, says why.
            Err(_) => self.rows.doubt(),
            Ok(ReadAnswer::Unchanged { taken_at }) => {
                if let Some(touched) = self.rows.unchanged(taken_at) {
                    self.touch(Some(touched), read.since);
                    self.rows_are_good(now);
                }
            }
            Ok(ReadAnswer::Changed(rows)) => match self.rows.apply(rows) {
                Some(touched) => {
                    // An inserted target of a policy is not announced: it has no effect without a peer.
                    if settled && !touched.is_empty() {
                        self.source.found_changes(read, now);
                    }
                    self.touch(Some(touched), read.since);
                    self.rows_are_new(ReadKind::Changes, now);
                    if self.rows.desired().is_some_and(DesiredState::is_beyond_limits) {
                        self.source.want(ReadKind::Everything);
                    }
                }
                None => self.source.want(ReadKind::Everything),
            },
            Ok(ReadAnswer::Everything(rows)) => match self.rows.replace(*rows, now.instant) {
                Ok(replaced) => {
                    self.notices.ended(Trouble::Rows);
                    self.notices.all_rows_judged();
                    self.difference.replaced(replaced, read.since);
                    self.more_to_do();
                    self.rows_are_new(ReadKind::Everything, now);
                }
                Err(refused) => {
                    let NotBuilt { error, withdrawn } = *refused;
                    self.proof.lose();
                    self.source.read_again(ReadKind::Everything, now);
                    self.notices.complain(Trouble::Rows, Note::CannotBuild(error), now.instant);
                    // What the other rows withdraw does not wait for this one.
                    self.difference.replaced(withdrawn, read.since);
                    self.more_to_do();
                }
            },
        }
    }

    /// Everything was read: the rows come next.
    pub(super) fn epoch_read(&mut self, read: EpochRead, now: Now) {
        let observed = self.mirror.observed();
        let held = |rows: &Rows| rows.held(observed.as_deref(), self.hold.guard_as_is());
        let change = self.rows.epoch_read(read, self.source.exact_clock(now), held);
        drop(observed);
        self.changed(change, now);
    }

    /// Rows changed, and can be used.
    fn rows_are_new(&mut self, kind: ReadKind, now: Now) {
        self.hold.rows_read(kind);
        self.rows_are_good(now);
        if let Some(desired) = self.rows.desired() {
            self.notices.rows(desired, now.instant);
        }
    }

    /// The rows are what the database holds now.
    fn rows_are_good(&mut self, now: Now) {
        self.source.rows_are_good();
        self.notices.ended(Trouble::Database);
        self.notices.ended(Trouble::Stale);
        let touched = self.rows.are_good(now.instant);
        self.touch(touched, now.instant);
        self.repeat_proof(false);
    }

    /// Starts from the last good rows of an earlier run, unless the database answered first.
    pub(super) fn rows_restored(
        &mut self,
        last_good: LastGood,
        database_now: Option<SystemTime>,
        now: Now,
    ) {
        match self.rows.restore(last_good) {
            Some(Ok(as_of)) => {
                self.source.rows_are_restored(as_of, database_now, now);
                self.notices.say(Note::Restored { as_of });
                self.compare_on_purpose(now);
            }
            Some(Err(error)) => self.notices.say(Note::CannotBuild(error)),
            None => {}
        }
    }

    /// There are neither rows of the database nor last good ones: whatever may forward must deny.
    pub(super) fn nothing_restored(&mut self, now: Now) {
        self.rows.nothing_restored();
        if self.rows.are_missing() {
            self.compare_on_purpose(now);
        }
    }

    /// The database of this epoch says which withdrawals it has lost.
    pub(super) fn marks_answered(
        &mut self,
        epoch: &str,
        answer: Result<BTreeSet<PublicKey>, DatabaseError>,
        now: Now,
    ) {
        match answer {
            Ok(lost) => {
                let change = self.rows.withdrawals_lost(epoch, &lost, self.source.clock(now));
                self.changed(change, now);
            }
            Err(error) => {
                self.rows.withdrawals_unknown(epoch, now.instant);
                if matches!(error, DatabaseError::OtherServer) {
                    // Only a full read says which server is to be asked.
                    self.source.want(ReadKind::Everything);
                }
                self.question_failed(&error, now);
            }
        }
    }

    /// The database says what becomes of the devices of held peers that no row names: a revocation, a
    /// narrowed policy and the removal of a few whose users are no longer active wait for no operator.
    pub(super) fn devices_answered(
        &mut self,
        answer: Result<DeviceStandings, DatabaseError>,
        now: Now,
    ) {
        match answer {
            Ok(standings) => {
                let (taken_out, peers) = self.hold.devices_answered(standings, now.instant);
                let names = self.difference.departed();
                let named =
                    taken_out.iter().filter_map(|key| Some((*key, names.get(key)?.clone())));
                self.rows.taken_out(&named.collect(), self.source.clock(now));
                self.touch(Some(Touched { peers, ..Touched::default() }), now.instant);
            }
            Err(error) => {
                self.hold.not_answered(now.instant);
                self.question_failed(&error, now);
            }
        }
    }

    /// Says that the database did not answer a question beside the reads.
    fn question_failed(&mut self, error: &DatabaseError, now: Now) {
        let note = Note::ReadFailed { state: error.state(), error: error.to_string() };
        self.notices.complain(Trouble::Database, note, now.instant);
    }

    /// Follows the host's block list from now on.
    pub(super) fn block(&mut self, list: Arc<BlockList>, now: Now) {
        self.notices.block_list(&list, now.instant);
        let (changes, touched) = self.rows.block(list);
        self.notices.say_all(changes.into_iter().map(Note::Block));
        self.touch(touched, now.instant);
        self.compare_on_purpose(now);
    }

    pub(super) fn kernel_read(&mut self, reading: Result<Reading, DataplaneError>, now: Now) {
        match reading {
            Ok(reading) => {
                if self.mirror.end_reading(reading, now).guard_lost {
                    // Nothing is filtered now: the repair does not wait for other refusals.
                    self.passes.retry_now();
                }
                self.difference.everything();
                if let Some(desired) = self.rows.desired() {
                    let clocks = self.mirror.clocks(self.source.exact_clock(now), now.instant);
                    self.outbox.traffic(self.mirror.traffic(), desired, clocks);
                }
                let connected = || self.mirror.just_connected(now.instant);
                let touched = self.rows.suspend_disconnected(connected);
                self.touch(touched, now.instant);
            }
            Err(error) => {
                let error = causes(&error);
                let wait = self.passes.next_wait();
                self.mirror.reading_failed(error.clone(), wait, now.instant);
                self.proof.lose();
                self.notices.complain(Trouble::Kernel, Note::ObserveFailed { error }, now.instant);
            }
        }
    }

    pub(super) fn plan_applied(&mut self, mut outcome: Outcome, now: Now) {
        self.mirror.applied(&outcome);
        self.remember_withdrawals(now);
        let stayed = self.passes.applied(&outcome, self.mirror.observed().as_deref());
        self.difference.stayed(stayed);
        if self.rows.quarantine_profiles(std::mem::take(&mut outcome.unloadable)) {
            self.notices.quarantined_policies(self.rows.desired(), false);
            self.difference.everything();
        }
        let blocked = self.difference.block_routes(&mut outcome);
        self.passes.give_up_steps(&blocked);
        self.notices.refused(Trouble::Route, &blocked, now.instant);
        if outcome.refused.is_empty() {
            if self.difference.is_everything() && outcome.untried == 0 {
                self.mirror.want_reading_for("verify");
            }
            return;
        }
        let listed = outcome.refused.iter().take(FIRST_LINES);
        self.notices.refused(Trouble::Kernel, listed, now.instant);
        self.proof.lose();
        self.passes.refused(&outcome.refused);
        let rows_changed = self.passes.rows_changed_since_plan();
        self.retry_later(now);
        if rows_changed {
            // What rows withdraw that came while the plan was applied does not wait for its retry.
            self.more_to_do();
        }
    }

    /// Says and compares what changed without a row.
    pub(super) fn changed(&mut self, change: Change, now: Now) {
        self.notices.say_all(change.note);
        self.touch(change.touched, now.instant);
    }

    /// Takes in what may differ because rows changed at this moment.
    pub(super) fn touch(&mut self, touched: Option<Touched>, since: Instant) {
        let Some(mut touched) = touched else { return };
        self.notices.rows_judged(std::mem::take(&mut touched.rows));
        if self.difference.touch(touched, since) {
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

    /// New work arrived: resets the pass's attempts, retries what was refused now, and waits for no long
    /// job that applies an older plan.
    fn more_to_do(&mut self) {
        self.passes.rows_changed();
        self.mirror.interrupt();
        self.mirror.more_to_do();
        if self.passes.retry_now() {
            self.mirror.want_reading("retry");
        }
    }

    /// Tries again after a while, from a reading made then.
    fn retry_later(&mut self, now: Now) -> Duration {
        if self.difference.is_everything() {
            self.outbox.disprove();
        }
        let wait = self.passes.retry_later(self.mirror.interval(), now.instant);
        self.mirror.doubt(wait, now.instant);
        self.difference.everything();
        self.leave(now);
        wait
    }

    /// Gives up the pass. What it did so far is reported.
    pub(in crate::reconcile) fn leave(&mut self, now: Now) {
        if let (Some(pass), Some(desired)) = (self.passes.leave(now), self.rows.desired()) {
            let entries = audit::unfinished(&pass, desired.gateway().id);
            self.outbox.audit(entries, Some(&desired.settings().audit_events));
        }
    }

    /// The kernel was changed, or is as it should be.
    fn remember_withdrawals(&mut self, now: Now) {
        if let Some(observed) = self.mirror.observed() {
            let database_now = self.source.exact_clock(now);
            self.rows.applied(&observed, database_now.unwrap_or(SystemTime::UNIX_EPOCH));
        }
    }

    /// Whether rows may be read: those that were read before are planned.
    pub(super) fn may_read_rows(&self, now: Now) -> bool {
        if self.mirror.is_applying() {
            return self.mirror.is_in_long_job(now.instant)
                && !self.passes.rows_changed_since_plan();
        }
        !self.may_plan()
    }

    /// Whether something may differ, and a plan may be made.
    pub(super) fn may_plan(&self) -> bool {
        self.mirror.can_be_planned() && self.has_to_plan()
    }

    /// Whether something may differ that need not wait.
    pub(super) fn has_to_plan(&self) -> bool {
        !self.difference.is_nothing() && self.rows.may_plan() && self.passes.may_plan()
    }

    /// Plans what is in scope, and begins to apply it or proves that nothing differs.
    pub(super) fn begin_plan(&mut self, now: Now, actions: &mut Vec<Action>) {
        // The whole is compared with a new reading, where one is wanted.
        let waits = self.difference.is_everything() && self.mirror.awaits_reading();
        if self.mirror.is_busy() || waits || !self.may_plan() {
            return;
        }
        let Some(observed) = self.mirror.observed() else { return };
        self.hold.confirmed_by_setting(self.rows.confirmed_at());
        let connected = || self.mirror.just_connected(now.instant);
        let (scope, guard) = (self.difference.scope(), self.hold.guard());
        let Planned { plan, extent, held, obstacle } =
            self.rows.plan(&observed, scope, guard, connected);
        let (present, decides) = (observed.peers.len(), self.rows.decide() && obstacle.is_none());
        let update = self.hold.update(held, present, decides);
        self.hold.forget_confirmed(self.rows.followed(), &observed);
        drop(observed);
        self.rows.planned();
        self.notices.held_back(update.news, self.hold.held_back().is_some());
        if update.keep == Some(Keep::All) {
            self.rows.are_kept();
        }
        actions.extend(update.keep.map(|keep| Action::Keep(keep, self.hold.kept_around(keep))));
        if !self.follows_all_rows() || self.rows.sealed_count() > 0 {
            self.proof.lose();
        }
        let plan = self.difference.without_blocked(plan);
        let cuts_flows = self.rows.desired().is_some_and(DesiredState::cuts_flows);
        let plan = self.mirror.cut_in(plan, cuts_flows);
        let ends_for_now = self.passes.has_too_many_attempts();
        if plan.is_empty() {
            self.remember_withdrawals(now);
        }
        match obstacle {
            Some(error) => {
                // Only withdrawals go on.
                let note = Note::CannotPlan(error.clone());
                self.notices.complain(Trouble::Kernel, note, now.instant);
                self.passes.cannot_plan(error);
                self.proof.lose();
                if plan.is_empty() || ends_for_now {
                    self.retry_later(now);
                } else {
                    actions.extend(self.begin_apply(plan, now));
                }
            }
            None if plan.is_empty() => self.prove(extent, now),
            None if ends_for_now => self.give_up_for_now(&plan, now),
            None => actions.extend(self.begin_apply(plan, now)),
        }
    }

    fn give_up_for_now(&mut self, plan: &Plan, now: Now) {
        let (steps, first) = (plan.steps().len(), self.passes.not_converged(plan));
        self.proof.lose();
        let retry_in = self.retry_later(now);
        self.notices.complain(
            Trouble::Kernel,
            Note::NotConverged { steps, first, retry_in },
            now.instant,
        );
    }

    pub(super) fn begin_apply(&mut self, plan: Plan, now: Now) -> Option<Action> {
        let drift = self.difference.is_drift().then(|| self.mirror.drift(&plan));
        if self.difference.is_everything() {
            // What a reading shows may have been so when the last proof was made.
            self.outbox.disprove();
        }
        let removing = self.difference.take_departed(&plan, |keys| self.rows.names_of(keys));
        self.rows.removing(&removing);
        if let Some(observed) = self.mirror.observed() {
            self.passes.begin(&plan, removing, &observed, drift, now.instant);
        }
        self.mirror.begin_apply(plan, now.instant)
    }

    /// Hands what is to be said to the journal and to the audit log.
    pub(super) fn say(&mut self) -> Vec<Action> {
        let notes = self.notices.take();
        let entries = notes.iter().flat_map(Note::audit_entries);
        let events = self.rows.desired().map(|desired| &desired.settings().audit_events);
        self.outbox.audit(entries, events);
        notes.into_iter().map(Action::Say).collect()
    }
}
