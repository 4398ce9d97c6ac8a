//! The loop's core: takes events and returns actions. No clock, no I/O.
//!
//! Every event only widens what must be read or compared. At most one read of the database and one
//! job on the kernel are under way at a time: however many commits come, one pass runs and one waits,
//! and a read that hangs holds up no work on the kernel.

mod decide;

use std::sync::Arc;
use std::time::Instant;

use super::clock::Now;
use super::event::{Action, Event, ReadKind};
use super::history::History;
use super::hold::Hold;
use super::mirror::Mirror;
use super::note::Note;
use super::notices::Notices;
use super::options::MachineOptions;
use super::outbox::Outbox;
use super::proof::Proof;
use super::rows::Rows;
use super::source::Source;
use super::view::View;
use super::work::Work;

/// The machine. Feed it every [`Event`]; carry out every [`Action`] it returns.
#[derive(Debug)]
pub struct Machine {
    source: Source,
    rows: Rows,
    mirror: Mirror,
    work: Work,
    hold: Hold,
    proof: Proof,
    outbox: Outbox,
    notices: Notices,
}

impl Machine {
    /// A machine that knows nothing yet: it will read the kernel and connect.
    #[must_use]
    pub fn new(options: MachineOptions, now: Now) -> Self {
        let MachineOptions { local, block_list, timing, max_removed, stale, .. } = options;
        let hold = Hold::new(max_removed, &options.withdrawals, now.instant);
        let departed = options.withdrawals.departed.clone();
        let history = History::new(options.lost_history, options.withdrawals);
        let mut notices = Notices::default();
        notices.block_list(&block_list, now.instant);
        Self {
            source: Source::new(timing, now),
            mirror: Mirror::new(timing, local.interface.clone(), now),
            rows: Rows::new(local, Arc::new(block_list), stale, history, now.instant),
            work: Work::new(departed, timing.seed.wrapping_add(2)),
            hold,
            proof: Proof::new(timing.heartbeat, now.instant),
            outbox: Outbox::new(timing, now.instant),
            notices,
        }
    }

    /// Takes in one event and says what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.take_in(event, now);
        self.let_time_pass(now);
        let next = self.begin_next(now);
        if self.rows.decide() && self.source.announces_all() {
            self.proof.show();
        }
        let mut actions = self.say();
        actions.extend(next);
        actions
    }

    /// When [`Self::handle`] must be called with [`Event::Tick`] at the latest, if nothing else happens. Each
    /// deadline stands in one part, whose `due` also decides whether the part acts.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Instant {
        let connected = self.source.is_connected();
        let dues = [
            self.source.due(now),
            self.rows.due(connected, self.source.database_now(now)),
            self.mirror.due(now),
            self.work.due(),
            self.hold.question_due(connected),
            self.proof.due(connected),
            self.outbox.due(connected),
        ];
        let latest = now.instant + self.source.view().resync_interval;
        dues.into_iter().flatten().fold(latest, Instant::min)
    }

    /// What readers see.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            source: self.source.view(),
            rows: self.rows.view(),
            mirror: self.mirror.view(),
            work: self.work.view(),
            hold: self.hold.view(),
            proof: self.proof.view(),
            outbox: self.outbox.view(),
            is_busy: self.source.is_reading() || self.mirror.is_busy(),
        }
    }

    fn take_in(&mut self, event: Event, now: Now) {
        self.proof.hears(&event);
        match event {
            Event::Connected { mode } => {
                self.source.connected(mode, now);
                self.outbox.connected();
                self.notices.connected(mode);
            }
            Event::NoSession { why } => {
                self.notices.no_session(why.as_deref(), now.instant);
                self.source.no_session(why);
            }
            Event::Disconnected { error } => self.disconnected(error, now),
            Event::Notified => self.source.notified(now),
            Event::Hinted => self.notices.say_all(self.source.hinted(now)),
            Event::Bell(news) => self.notices.say_all(self.source.bell_news(news, now)),
            Event::Gateways { count } => {
                self.source.gateways(count, now);
                self.follow_timing();
            }
            Event::Unannounced { tables } => self.notices.say_all(self.source.unannounced(tables)),
            Event::Epoch(read) => self.epoch_read(read, now),
            Event::Read(answer) => self.rows_read(answer, now),
            Event::MarksAnswered { epoch, lost } => self.marks_answered(&epoch, &lost, now),
            Event::DevicesAnswered(answer) => self.devices_answered(answer, now),
            Event::Restored { last_good, database_now } => {
                let (as_of, change) = self.rows.restore(*last_good);
                self.source.rows_are_restored(as_of, database_now, now);
                self.changed(change, now.instant);
            }
            Event::NothingRestored => {
                let change = self.rows.nothing_restored();
                self.changed(change, now.instant);
            }
            Event::Reported(sent) => self.reported(sent, now),
            Event::Hosts(hosts) => self.outbox.hosts(hosts, now.instant),
            Event::KernelChanged { why } => self.mirror.kernel_changed(why),
            Event::RoutingChanged => self.mirror.routing_changed(),
            Event::Observed(reading) => self.kernel_read(reading.map(|reading| *reading), now),
            Event::Glanced(glance) => self.glanced(glance.ok(), now),
            Event::Applied(outcome) => self.plan_applied(outcome, now),
            Event::PeersAsked => self.mirror.peers_asked(now.instant),
            Event::Resync => {
                self.source.want(ReadKind::Everything);
                self.mirror.want_reading_for("resync asked for");
            }
            Event::Reloaded(options) => self.reload(*options, now),
            Event::ConfirmRemovals { until, let_in_until } => {
                self.hold.confirm(|since| since <= until);
                let change = self.rows.confirmed(let_in_until);
                self.changed(change, now.instant);
            }
            Event::Blocks(list) => self.block(list, now),
            Event::Tick => {}
        }
    }

    fn let_time_pass(&mut self, now: Now) {
        let elapsed = self.source.let_time_pass(now);
        if elapsed.resync {
            self.mirror.want_reading_for("resync interval");
        }
        self.notices.say_all(elapsed.notes);
        if self.proof.let_time_pass(self.source.is_connected(), now.instant) {
            self.mirror.want_beat(now.instant);
            self.source.want(ReadKind::Check);
        }
        self.mirror.let_time_pass(now.instant);
        if self.work.let_time_pass(now.instant) {
            self.mirror.want_reading("retry");
        }
        // A peer that connected since the last reading has a live session, too: none is removed before
        // the next reading, and until then none is added.
        let present = || self.mirror.recheck_sessions("stale rows");
        for change in self.rows.let_time_pass(present, self.source.database_now(now)) {
            self.changed(change, now.instant);
        }
    }

    /// Hands what is to be said to the journal and to the audit log.
    fn say(&mut self) -> Vec<Action> {
        let notes = self.notices.take();
        self.outbox.audit(notes.iter().flat_map(Note::audit_entries), self.rows.audit_events());
        notes.into_iter().map(Action::Say).collect()
    }
}
