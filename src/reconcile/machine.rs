//! The loop's core: takes events and returns actions. No clock, no I/O.
//!
//! Every event only widens what must be read or compared. At most one read of the database and one
//! job on the kernel are under way at a time: however many commits come, one pass runs and one waits,
//! and a read that hangs holds up no work on the kernel.

mod decide;
mod doubt;
mod prove;
mod reload;
mod time;

use std::sync::Arc;

use super::clock::Now;
use super::difference::Difference;
use super::event::{Action, Event, ReadKind};
use super::history::History;
use super::hold::Hold;
use super::mirror::Mirror;
use super::notices::Notices;
use super::options::MachineOptions;
use super::outbox::Outbox;
use super::pass::Passes;
use super::proof::Proof;
use super::rows::Rows;
use super::source::Source;
use super::trouble::Trouble;
use super::view::View;

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
            difference: Difference::new(departed),
            hold,
            passes: Passes::new(timing.seed.wrapping_add(2)),
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
            unjudged: self.hold.unjudged(),
            departed: self.difference.departed(),
            passes: self.passes.view(),
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
            Event::Disconnected { error } => {
                let note = self.source.disconnected(error, now);
                self.rows.doubt();
                self.outbox.disconnected();
                self.proof.forget_reading();
                if let Some(note) = note {
                    self.notices.complain(Trouble::Database, note, now.instant);
                }
            }
            Event::Notified => self.source.notified(now),
            Event::Hinted => self.notices.say_all(self.source.hinted(now)),
            Event::Bell(news) => self.notices.say_all(self.source.bell_news(news, now)),
            Event::Gateways { count } => {
                self.source.gateways(count, now);
                self.follow_timing();
            }
            Event::Unannounced { tables } => self.notices.say_all(self.source.unannounced(tables)),
            Event::KernelChanged { why } => self.mirror.kernel_changed(why),
            Event::RoutingChanged => self.mirror.routing_changed(),
            Event::Read(answer) => self.rows_read(answer, now),
            Event::Epoch(read) => self.epoch_read(read, now),
            Event::MarksAnswered { epoch, lost } => self.marks_answered(&epoch, lost, now),
            Event::DevicesAnswered(answer) => self.devices_answered(answer, now),
            Event::Restored { last_good, database_now } => {
                self.rows_restored(*last_good, database_now, now);
            }
            Event::NothingRestored => self.nothing_restored(now),
            Event::Observed(reading) => self.kernel_read(reading.map(|reading| *reading), now),
            Event::Glanced(glance) => self.glanced(glance.ok(), now),
            Event::Applied(outcome) => self.plan_applied(outcome, now),
            Event::Reported(mut sent) => {
                self.outbox.reported(&mut sent, self.source.is_connected(), now.instant);
                self.notices.reported(&sent, now.instant);
                if sent.error.is_some() {
                    // The read meets the same trouble, and reports it.
                    self.source.want(ReadKind::Changes);
                }
            }
            Event::PeersAsked => self.mirror.peers_asked(now.instant),
            Event::Hosts(hosts) => self.outbox.hosts(hosts, now.instant),
            Event::Resync => {
                self.source.want(ReadKind::Everything);
                self.mirror.want_reading_for("resync asked for");
            }
            Event::Reloaded(options) => self.reload(*options, now),
            Event::ConfirmRemovals { until, let_in_until } => {
                self.hold.confirm(|since| since <= until);
                if let Some(until) = let_in_until {
                    let change = self.rows.let_in_shown(until);
                    self.changed(change, now);
                }
                self.compare_on_purpose(now);
            }
            Event::Blocks(list) => self.block(list, now),
            Event::Tick => {}
        }
    }

    /// Decides the next actions. Rows that were read are planned before more are read. A read that is under way
    /// holds up neither a look at the kernel nor a step, and a long job holds up no read.
    fn begin_next(&mut self, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        actions.extend(self.source.begin_connect(now));
        if self.source.is_down() {
            actions.extend(self.rows.begin_restore());
        }
        let events = self.rows.desired().map(|desired| &desired.settings().audit_events);
        actions.extend(self.outbox.begin_report(self.source.is_connected(), events, now.instant));
        self.begin_withdrawals(now, &mut actions);
        actions.extend(self.mirror.begin_reading(now.instant));
        self.begin_plan(now, &mut actions);
        actions.extend(self.mirror.begin_glance(now.instant));
        if self.may_read_rows(now) {
            actions.extend(self.source.begin_read(|kind| self.rows.enough(kind), now));
        }
        let (connected, departed) = (self.source.is_connected(), self.difference.departed());
        actions.extend(self.rows.begin_question(connected, now.instant));
        actions.extend(self.hold.begin_question(departed, connected, now.instant));
        actions.extend(self.rows.begin_remember(self.hold.begin_remember(), departed));
        actions.iter().for_each(|action| self.proof.begins(action));
        actions
    }
}
