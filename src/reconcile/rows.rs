//! What a read of the database makes of the machine.

use std::time::Duration;

use super::Machine;
use super::event::{Action, Mode, Note, Now, ReadAnswer, ReadKind};
use super::lately::Trouble;
use super::machine::{Database, Obstacle};
use crate::model::{ChangedRows, DesiredState, SnapshotRows, Touched};
use crate::plan::Scope;

/// A notification that comes later than this after its change was read has not come.
const NOTIFY_WITHIN: Duration = Duration::from_secs(2);

impl Machine {
    /// `kind`: how much was to be read.
    pub(super) fn take_read(
        &mut self,
        kind: ReadKind,
        answer: Result<ReadAnswer, String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        match answer {
            Err(error) => {
                self.read_again(kind, now);
                self.complain(Trouble::Database, Note::ReadFailed { error }, now, actions);
            }
            Ok(ReadAnswer::Unchanged { taken_at }) => {
                self.totals.change_reads += 1;
                // Who asks in turns is told of a time that may lie back: a clock does not run back.
                if taken_at > self.database_now(now) {
                    self.database_clock = Some((taken_at, now.instant));
                }
                if let Some(desired) = &mut self.desired {
                    let touched = desired.unchanged(taken_at);
                    self.touch(touched);
                    self.rows_are_good(now);
                }
            }
            Ok(ReadAnswer::Changed(rows)) => self.take_changes(rows, now, actions),
            Ok(ReadAnswer::Everything(rows)) => self.take_everything(*rows, now, actions),
        }
    }

    /// What nobody tells of is found by reading everything each time we hear that it is so, and once
    /// more when it is over.
    pub(super) fn take_unwatched(&mut self, tables: Vec<String>, actions: &mut Vec<Action>) {
        let over = tables.is_empty();
        if over && self.unwatched.is_empty() {
            return;
        }
        self.want_read(ReadKind::Everything);
        if over {
            actions.push(Action::Say(Note::Watched));
        } else if self.unwatched != tables {
            actions.push(Action::Say(Note::Unwatched { tables: tables.clone() }));
        }
        self.unwatched = tables;
    }

    fn take_changes(&mut self, rows: ChangedRows, now: Now, actions: &mut Vec<Action>) {
        self.totals.change_reads += 1;
        self.database_clock = Some((rows.taken_at, now.instant));
        let listening = self.database == Database::Up { mode: Mode::Listen };
        let notified = self.read_notified || self.notified_since_read;
        if listening && !notified && self.proven.is_some() {
            // Its notification may yet be on the way.
            self.due.suspicion = Some(now.instant + NOTIFY_WITHIN);
        }
        let Some(desired) = &mut self.desired else {
            return self.want_read(ReadKind::Everything);
        };
        let touched = desired.apply(rows);
        self.touch(touched);
        self.keep_wanted = true;
        self.rows_are_good(now);
        self.say_quarantine(actions);
    }

    fn take_everything(&mut self, rows: SnapshotRows, now: Now, actions: &mut Vec<Action>) {
        self.totals.full_reads += 1;
        self.database_clock = Some((rows.taken_at, now.instant));
        self.due.resync = now.instant + self.options.timing.resync_interval;
        let desired = match DesiredState::build(self.options.local.clone(), rows) {
            Ok(desired) => desired,
            Err(error) => {
                let obstacle = Some(Obstacle::Build(error.clone()));
                if self.obstacles.rows != obstacle {
                    actions.push(Action::Say(Note::CannotBuild(error)));
                }
                self.obstacles.rows = obstacle;
                self.proven = None;
                return self.read_again(ReadKind::Everything, now);
            }
        };
        if !desired.gateway().active {
            actions.push(Action::Say(Note::GatewayInactive));
        }
        self.note_departed(&desired);
        self.note_policies(&desired);
        self.obstacles.rows = None;
        self.restored = false;
        self.keep_wanted = true;
        self.desired = Some(desired);
        self.scope = Scope::Everything;
        // They may be free by now.
        self.blocked_routes.clear();
        self.rows_differ();
        self.rows_are_good(now);
        self.say_quarantine(actions);
    }

    fn read_again(&mut self, kind: ReadKind, now: Now) {
        self.rows_in_doubt = true;
        self.want_read(kind);
        self.due.retry_read = Some(now.instant + self.backoffs.read.next_wait());
    }

    /// The desired state is what the database holds now.
    fn rows_are_good(&mut self, now: Now) {
        self.rows_in_doubt = false;
        self.rows_read_at = now.instant;
        self.backoffs.connect.reset();
        self.backoffs.read.reset();
        self.lately.forget(Trouble::Database);
        self.stale_over();
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
                self.scope = Scope::Everything;
                self.rows_differ();
                // There was nobody to suspend when the time was up: look again.
                self.stale = false;
            }
            Err(error) => actions.push(Action::Say(Note::CannotBuild(error))),
        }
    }

    pub(super) fn want_read(&mut self, kind: ReadKind) {
        self.read_wanted = self.read_wanted.max(Some(kind));
    }

    /// Without a state to change, or with one that is only remembered, only everything will do; nor
    /// are the changes enough since rows that could not be built.
    pub(super) const fn possible_read(&self, kind: ReadKind) -> ReadKind {
        if self.desired.is_none() || self.restored || self.obstacles.rows.is_some() {
            ReadKind::Everything
        } else {
            kind
        }
    }

    /// Marks show what happened while the connection was away, so they are enough.
    pub(super) const fn read_after_connect(&self) -> ReadKind {
        self.possible_read(ReadKind::Changes)
    }

    pub(super) fn touch(&mut self, touched: Touched) {
        if !touched.peers.is_empty() || !touched.prefixes.is_empty() {
            self.departed.extend(touched.departed);
            self.policies_changed.extend(touched.policies);
            self.scope.merge(Scope::Changed { peers: touched.peers, prefixes: touched.prefixes });
            self.rows_differ();
        }
    }

    /// There is more to do, which is no failure to converge.
    fn rows_differ(&mut self) {
        self.rows_changed = true;
        self.rows_told = false;
        self.retry_now();
        if let Some(pass) = &mut self.pass {
            pass.forgive();
        }
    }
}
