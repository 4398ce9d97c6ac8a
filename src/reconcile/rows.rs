//! What a read of the database makes of the machine.

use std::time::{Duration, SystemTime};

use super::Machine;
use super::event::{Action, Mode, Note, Now, ReadAnswer, ReadKind};
use super::machine::{Database, Obstacle};
use crate::model::{ChangedRows, DesiredState, SnapshotRows, Touched};
use crate::plan::Scope;

/// A notification that comes later than this after its change was read has not come.
const NOTIFY_WITHIN: Duration = Duration::from_secs(2);

impl Machine {
    pub(super) fn take_read(
        &mut self,
        answer: Result<ReadAnswer, String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if answer.is_ok() {
            self.backoff.reset();
        }
        match answer {
            Err(error) => {
                self.want_read(ReadKind::Changes);
                self.due.retry_read = Some(now.instant + self.backoff.next_wait());
                actions.push(Action::Say(Note::ReadFailed { error }));
            }
            Ok(ReadAnswer::Unchanged { taken_at }) => {
                self.totals.change_reads += 1;
                self.learn_clock(taken_at, now);
                if let Some(desired) = &mut self.desired {
                    let touched = desired.expire(taken_at);
                    self.touch(touched);
                }
            }
            Ok(ReadAnswer::Changed(rows)) => {
                self.totals.change_reads += 1;
                self.learn_clock(rows.taken_at, now);
                let listening = self.database == Database::Up { mode: Mode::Listen };
                if listening && !self.read_notified && self.proven.is_some() {
                    // Its notification may yet be on the way.
                    self.due.suspicion = Some(now.instant + NOTIFY_WITHIN);
                }
                if let Some(desired) = &mut self.desired {
                    let touched = desired.apply(rows);
                    self.touch(touched);
                    self.say_quarantine(actions);
                } else {
                    self.want_read(ReadKind::Everything);
                }
            }
            Ok(ReadAnswer::Everything(rows)) => {
                self.totals.full_reads += 1;
                self.learn_clock(rows.taken_at, now);
                self.due.resync = now.instant + self.options.timing.resync_interval;
                match DesiredState::build(self.options.local.clone(), *rows) {
                    Ok(desired) => {
                        if !desired.gateway().active {
                            actions.push(Action::Say(Note::GatewayInactive));
                        }
                        self.note_departed(&desired);
                        self.note_policies(&desired);
                        if let Some(pass) = &mut self.pass {
                            pass.forgive();
                        }
                        self.restored = false;
                        self.desired = Some(desired);
                        self.scope = Scope::Everything;
                        self.rows_changed = true;
                        self.due.retry_pass = None;
                        self.obstacle = None;
                        self.say_quarantine(actions);
                    }
                    Err(error) => {
                        let obstacle = Obstacle::Build(error.clone());
                        if self.obstacle.as_ref() != Some(&obstacle) {
                            actions.push(Action::Say(Note::CannotBuild(error)));
                        }
                        self.obstacle = Some(obstacle);
                        self.proven = None;
                        self.read_wanted = Some(ReadKind::Everything);
                        self.due.retry_read = Some(now.instant + self.backoff.next_wait());
                    }
                }
            }
        }
    }

    /// Starts from the last good rows, unless the database was quicker.
    pub(super) fn restore(
        &mut self,
        rows: SnapshotRows,
        changes: Vec<ChangedRows>,
        actions: &mut Vec<Action>,
    ) {
        if self.desired.is_some() {
            return;
        }
        match DesiredState::build(self.options.local.clone(), rows) {
            Ok(mut desired) => {
                for rows in changes {
                    desired.apply(rows);
                }
                actions.push(Action::Say(Note::Restored { as_of: desired.as_of() }));
                self.desired = Some(desired);
                self.restored = true;
                // There was nobody to suspend when the time was up: look again.
                self.stale = false;
            }
            Err(error) => actions.push(Action::Say(Note::CannotBuild(error))),
        }
    }

    pub(super) fn want_read(&mut self, kind: ReadKind) {
        self.read_wanted = self.read_wanted.max(Some(kind));
    }

    /// Without a state to change, or with one that is only remembered, only everything will do.
    pub(super) fn possible_read(&self, kind: ReadKind) -> ReadKind {
        if self.desired.is_none() || self.restored { ReadKind::Everything } else { kind }
    }

    /// Marks show what happened while the connection was away, so they are enough.
    pub(super) fn read_after_connect(&self) -> ReadKind {
        self.possible_read(ReadKind::Changes)
    }

    pub(super) fn touch(&mut self, touched: Touched) {
        if !touched.peers.is_empty() || !touched.prefixes.is_empty() {
            self.rows_changed = true;
            self.due.retry_pass = None;
            // More to do is no failure to converge.
            if let Some(pass) = &mut self.pass {
                pass.forgive();
            }
            self.departed.extend(touched.departed);
            self.policies_changed.extend(touched.policies);
            self.scope.merge(Scope::Changed { peers: touched.peers, prefixes: touched.prefixes });
        }
    }

    pub(super) fn learn_clock(&mut self, database: SystemTime, now: Now) {
        self.clock_offset_secs = match database.duration_since(now.wall) {
            Ok(ahead) => ahead.as_secs_f64(),
            Err(behind) => -behind.duration().as_secs_f64(),
        };
    }
}
