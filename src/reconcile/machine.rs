//! The loop's core: takes events and returns actions. No clock, no I/O.
//!
//! Every event only widens what must be read or compared. At most one read of the database and one
//! job on the kernel are under way at a time: however many commits come, one pass runs and one waits,
//! and a read that hangs holds up no work on the kernel.

mod block;
mod decide;
mod history;
mod old_rows;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::clock::Now;
use super::difference::Difference;
use super::event::{Action, Event, ReadKind};
use super::handshakes::Handshakes;
use super::history::History;
use super::hold::Hold;
use super::mirror::Mirror;
use super::note::Note;
use super::notices::{Notices, Trouble};
use super::options::MachineOptions;
use super::outbox::Outbox;
use super::pass::Passes;
use super::proof::Proof;
use super::rows::Rows;
use super::source::Source;
use super::view::View;
use crate::model::Unloadable;

/// The machine. Feed it every [`Event`]; carry out every [`Action`] it returns.
#[derive(Debug)]
pub struct Machine {
    source: Source,
    rows: Rows,
    mirror: Mirror,
    difference: Difference,
    hold: Hold,
    passes: Passes,
    proof: Proof,
    outbox: Outbox,
    history: History,
    notices: Notices,
    handshakes: Handshakes,
}

impl Machine {
    /// A machine that knows nothing yet: it will read the kernel and connect.
    #[must_use]
    pub fn new(options: MachineOptions, now: Now) -> Self {
        let MachineOptions { local, block_list, timing, max_removed, stale, .. } = options;
        let mut machine = Self {
            source: Source::new(timing, now),
            mirror: Mirror::new(timing, local.interface.clone(), now.instant),
            rows: Rows::new(local, Arc::new(block_list), stale, now.instant),
            difference: Difference::new(),
            hold: Hold::new(max_removed),
            passes: Passes::new(timing.seed.wrapping_add(2)),
            proof: Proof::new(timing.heartbeat, now.instant),
            outbox: Outbox::new(timing, now.instant),
            history: History::new(options.lost_history, options.withdrawals),
            notices: Notices::default(),
            handshakes: Handshakes::new(now),
        };
        machine.keep_out(now);
        machine.blocks_unknown(now);
        machine
    }

    /// Takes in one event and says what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.take_in(event, now);
        self.let_time_pass(now);
        let next = self.begin_next(now);
        if self.shows_proofs() {
            self.proof.show();
        }
        let mut actions = self.say();
        actions.extend(next);
        actions
    }

    /// What readers see.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            source: self.source.view(),
            rows: self.rows.view(),
            mirror: self.mirror.view(),
            compares: !self.difference.is_nothing(),
            blocked_routes: self.difference.blocked_routes(),
            held: self.hold.staying(),
            held_back: self.hold.held_back(),
            departed: self.difference.departed(),
            passes: self.passes.view(),
            proof: self.proof.view(),
            outbox: self.outbox.view(),
            lost: self.history.lost(),
            is_busy: self.source.is_reading() || self.mirror.is_busy(),
        }
    }

    fn take_in(&mut self, event: Event, now: Now) {
        self.proof.hears(&event);
        match event {
            Event::Connected { mode } => {
                self.source.connected(mode, now);
                self.outbox.connected();
                self.notices.say(Note::DatabaseUp { mode });
            }
            Event::Disconnected { error } => {
                let (what, text) = (error.in_short(), error.to_string());
                let retry_in = self.source.disconnected(error, now);
                self.rows.doubt();
                self.outbox.disconnected();
                self.proof.forget_reading();
                let note = Note::DatabaseDown { what, error: text, retry_in };
                self.complain(Trouble::Database, note, now);
            }
            Event::Notified => self.source.notified(now),
            Event::Unannounced { tables } => {
                self.source.unannounced(tables).into_iter().for_each(|note| self.notices.say(note));
            }
            Event::KernelChanged { why } => self.mirror.kernel_changed(why),
            Event::Read(answer) => {
                let reading = self.source.end_read(answer.is_ok(), now);
                self.rows_read(reading, answer, now);
            }
            Event::Epoch { epoch, why, marks, read_at } => {
                self.epoch_read(epoch, why, (marks, read_at), now);
            }
            Event::MarksAnswered(answer) => self.marks_answered(answer, now),
            Event::Restored(rows) => self.rows_restored(*rows, now),
            Event::Observed(reading) => self.kernel_read(reading.map(|reading| *reading), now),
            Event::Glanced(glance) => {
                if self.mirror.take_glance(glance.ok()) {
                    self.repeat_proof(true);
                }
            }
            Event::Applied(outcome) => self.plan_applied(outcome, now),
            Event::Reported(mut sent) => {
                self.outbox.reported(&mut sent, self.source.is_connected(), now.instant);
                self.notices.reported(&sent, now.instant);
            }
            Event::Resync => {
                self.source.want(ReadKind::Everything);
                self.mirror.want_reading_for("resync asked for");
            }
            Event::ConfirmRemovals { until, let_in_until } => {
                self.hold.confirm(|since| since <= until);
                if let Some(until) = let_in_until {
                    self.let_in_shown(until, now);
                }
                self.compare_on_purpose(now);
            }
            Event::Blocks(list) => self.block(list, now),
            Event::Tick => {}
        }
    }

    /// When [`Machine::handle`] must be called with [`Event::Tick`] at the latest, if nothing else
    /// happens.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Instant {
        let connected = self.source.is_connected();
        let by_database = |at: SystemTime| {
            now.instant + at.duration_since(self.source.clock(now)).unwrap_or_default()
        };
        let dues = [
            self.source.due(now),
            self.mirror.due(now),
            self.passes.due(),
            self.proof.due().filter(|_| connected),
            self.outbox.due().filter(|_| connected),
            self.rows.stale_due(),
            self.rows.next_expiry().map(by_database),
            self.history.next_end().map(by_database),
            self.history.asks_at().filter(|_| connected),
        ];
        let latest = now.instant + self.source.view().resync_interval;
        dues.into_iter().flatten().min().map_or(latest, |at| at.min(latest))
    }

    fn let_time_pass(&mut self, now: Now) {
        let elapsed = self.source.let_time_pass(now);
        if elapsed.resync {
            self.mirror.want_reading_for("resync interval");
        }
        if elapsed.notify_missed {
            self.notices.say(Note::NotifyMissed);
        }
        if self.source.is_connected() && self.proof.let_time_pass(now.instant) {
            self.mirror.want_beat(now.instant);
            self.source.want(ReadKind::Changes);
        }
        self.mirror.let_time_pass(now.instant);
        if self.passes.let_time_pass(now.instant) {
            self.mirror.want_reading("retry");
        }
        let touched = self.rows.expire(self.source.clock(now));
        self.touch(touched, now.instant);
        self.let_in_in_time(now);
        if let Some((age, policy)) = self.rows.grow_stale(now.instant) {
            self.notices.say(Note::Stale { since: age, policy });
            self.rows_are_stale(policy, now);
        }
    }

    /// Leaves out what the kernel refused to load, and plans again.
    fn quarantine_profiles(&mut self, refused: Vec<Unloadable>) {
        if self.rows.quarantine_profiles(refused) {
            self.tell_quarantined_policies(false);
            self.difference.everything();
        }
    }

    /// `settled`: policies that are not quarantined are in force.
    fn tell_quarantined_policies(&mut self, settled: bool) {
        if let Some(desired) = self.rows.desired() {
            self.notices.quarantined_policies(desired.quarantined_policies(), settled);
        }
    }

    fn complain(&mut self, trouble: Trouble, note: Note, now: Now) {
        self.notices.complain(trouble, note, now.instant);
    }

    /// Hands what is to be said to the journal and to the audit log.
    fn say(&mut self) -> Vec<Action> {
        let notes = self.notices.take();
        self.outbox.audit(notes.iter().filter_map(Note::audit_entry));
        notes.into_iter().map(Action::Say).collect()
    }
}
