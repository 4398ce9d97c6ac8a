//! The loop's core: what to do next, given what happened. No clock, no I/O.
//!
//! It is level-triggered: every event only widens what must be looked at, and one job at a time is
//! under way, but for the first reading of both sides. However many commits come, at most one pass runs and one is pending.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;

use super::event::{Action, Event, Mode, Note, Now, ReadKind, Sent};
use super::lately::{Lately, Trouble};
use super::ledger::Ledger;
use super::pass::Pass;
use super::resync::Resyncs;
use super::session::Sessions;
use super::stale::StaleOptions;
use super::summary::RowStatus;
use super::timing::{Backoffs, Due, Timing};
use crate::dataplane::{Backend, SharedObserved};
use crate::model::{
    BuildError, Departed, DesiredState, Local, PeerId, PolicyId, PublicKey, Reason, Traffic,
};
use crate::plan::guard::{HeldBack, MaxRemoved};
use crate::plan::{Held, PlanError, Scope};

/// How the machine behaves; from the configuration.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    pub local: Arc<Local>,
    pub timing: Timing,
    pub max_removed: MaxRemoved,
    pub stale: StaleOptions,
}

/// The database, as the machine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Database {
    Down { since: Instant, retry_at: Instant, error: String },
    Connecting { since: Instant },
    Up { mode: Mode },
}

/// Why the kernel is left as it is although it may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    Build(BuildError),
    Plan(PlanError),
    Refused { steps: usize, first: String },
    Observe(String),
}

/// What is in the way, by what lifts it.
#[derive(Debug, Clone, Default)]
pub(super) struct Obstacles {
    /// A snapshot that can be built. Until then no plan is made.
    pub rows: Option<Obstacle>,
    /// A complete reading of the kernel.
    pub reading: Option<Obstacle>,
    /// A pass that comes to its end.
    pub pass: Option<Obstacle>,
}

impl Obstacles {
    /// The one to speak of.
    pub fn first(&self) -> Option<&Obstacle> {
        self.rows.as_ref().or(self.reading.as_ref()).or(self.pass.as_ref())
    }
}

/// What the reading of the kernel that we hold is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// A write was refused, and perhaps obeyed in part: nothing is planned on this reading.
    Doubtful,
    /// What was read once, and what acknowledged writes made of it.
    Kept,
    /// Just read; nothing was planned on it yet.
    Fresh,
}

/// When, and as of when, the kernel was last proven equal to what the database held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proven {
    /// The database's time of the rows.
    pub as_of: SystemTime,
    /// This host's time of the proof.
    pub at: SystemTime,
}

/// Figures that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub passes: u64,
    pub steps: u64,
    pub refused_steps: u64,
    pub drift_repairs: u64,
    pub notifications: u64,
    pub notify_missed: u64,
    pub full_reads: u64,
    pub change_reads: u64,
    pub observations: u64,
    pub flows_cut: u64,
}

/// What is under way. Both only at the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Jobs {
    /// So much of the database is read.
    pub reading: Option<ReadKind>,
    /// The kernel is read or changed.
    pub kernel: bool,
}

impl Jobs {
    pub const fn any(self) -> bool {
        self.reading.is_some() || self.kernel
    }
}

/// The machine. Feed it every [`Event`]; carry out every [`Action`] it returns.
pub struct Machine {
    pub(super) options: MachineOptions,
    pub(super) database: Database,
    /// Since when it has been up, or away.
    pub(super) database_since: SystemTime,
    /// The database's clock as the last read told it, and when that was.
    pub(super) database_clock: Option<(SystemTime, Instant)>,
    /// When rows were last read and could be built; before that, the start.
    pub(super) rows_read_at: Instant,
    /// The database cannot be read: the rows grow old.
    pub(super) rows_in_doubt: bool,
    pub(super) backoffs: Backoffs,
    pub(super) lately: Lately,
    pub(super) random: fastrand::Rng,
    pub(super) desired: Option<DesiredState>,
    /// Shared with the job that changes the kernel.
    pub(super) observed: Option<SharedObserved>,
    pub(super) trust: Trust,
    /// What must be read; `None`: nothing that we know of.
    pub(super) read_wanted: Option<ReadKind>,
    pub(super) observe_wanted: Option<String>,
    pub(super) glance_wanted: bool,
    /// A look at the kernel was wanted when the last read began: now it is its turn.
    pub(super) look_waited: bool,
    /// A glance found everything as it is known to be, and no proof was made of that yet.
    pub(super) glanced: bool,
    /// Why the last observation was made.
    pub(super) observing: String,
    /// What may differ from the desired state.
    pub(super) scope: Scope,
    /// Whether rows changed since the last proof: what then differs is no drift.
    pub(super) rows_changed: bool,
    pub(super) jobs: Jobs,
    pub(super) resyncs: Resyncs,
    pub(super) reporting: bool,
    /// Whose removal an operator confirmed when it was held back.
    pub(super) confirmed: BTreeSet<PublicKey>,
    /// Rows were read on which no word was given yet: may they be kept?
    pub(super) keep_wanted: bool,
    /// Some of those that were read wait for an operator's word.
    pub(super) keep_waits: bool,
    pub(super) notified_since_read: bool,
    /// The first notification since the last read began.
    pub(super) heard_at: Option<Instant>,
    /// Tables whose changes nobody tells.
    pub(super) unwatched: Vec<String>,
    /// Since when what the last read found may have waited, as far as is known here: a notification,
    /// else the beginning of that read.
    pub(super) found_since: Instant,
    /// The same for the oldest change that is not proven yet.
    pub(super) changed_since: Option<Instant>,
    /// A notification, not a timer, asked for the read that is under way.
    pub(super) read_notified: bool,
    pub(super) pass: Option<Pass>,
    /// What the status says of the rows, made when they change.
    pub(super) row_status: RowStatus,
    pub(super) rows_told: bool,
    pub(super) obstacles: Obstacles,
    /// The removals that wait for an operator's word. All else goes on meanwhile.
    pub(super) held: Option<HeldBack>,
    /// Who stays until then.
    pub(super) staying: Held,
    /// Routes that somebody else's stand in the way of, each with the kernel's reason.
    pub(super) blocked_routes: BTreeMap<IpNet, String>,
    pub(super) departed: BTreeMap<PublicKey, Departed>,
    /// Policies that changed since the last proof, with their names.
    pub(super) policies_changed: BTreeMap<PolicyId, Box<str>>,
    /// Since when `last_sync_at` is to be written anew.
    pub(super) beat_wanted: Option<Instant>,
    pub(super) restore_tried: bool,
    /// That the agent started stands in the audit log.
    pub(super) started_told: bool,
    /// The desired state is what an earlier run read last.
    pub(super) restored: bool,
    /// `None`: it may differ, as far as is known.
    pub(super) proven: Option<Proven>,
    /// What was proven last, also while the kernel may differ.
    pub(super) last_proven: Option<Proven>,
    pub(super) last_pass: Option<super::PassFigures>,
    pub(super) stale: bool,
    pub(super) sessions: Sessions,
    pub(super) backend: Option<Backend>,
    pub(super) traffic: BTreeMap<PublicKey, Traffic>,
    pub(super) ledger: Ledger,
    pub(super) quarantine_said: BTreeMap<PeerId, (Reason, String)>,
    pub(super) ignored_said: BTreeSet<String>,
    pub(super) due: Due,
    pub(super) totals: Totals,
}

impl Machine {
    /// A machine that knows nothing yet: it will read the kernel and connect.
    #[must_use]
    pub fn new(options: MachineOptions, now: Now) -> Self {
        Self {
            database: Database::Down {
                since: now.instant,
                retry_at: now.instant,
                error: "not tried yet".into(),
            },
            database_since: now.wall,
            database_clock: None,
            rows_read_at: now.instant,
            rows_in_doubt: true,
            backoffs: Backoffs::new(options.timing.seed),
            lately: Lately::default(),
            random: fastrand::Rng::with_seed(options.timing.seed),
            due: Due::new(now.instant, options.timing),
            options,
            desired: None,
            observed: None,
            trust: Trust::Kept,
            read_wanted: Some(ReadKind::Everything),
            observe_wanted: Some("start".into()),
            glance_wanted: false,
            look_waited: false,
            glanced: false,
            observing: String::new(),
            scope: Scope::Everything,
            rows_changed: true,
            jobs: Jobs::default(),
            resyncs: Resyncs::default(),
            reporting: false,
            confirmed: BTreeSet::new(),
            keep_wanted: false,
            keep_waits: false,
            notified_since_read: false,
            heard_at: None,
            unwatched: Vec::new(),
            found_since: now.instant,
            changed_since: None,
            read_notified: false,
            pass: None,
            row_status: RowStatus::default(),
            rows_told: true,
            obstacles: Obstacles::default(),
            held: None,
            staying: Held::default(),
            blocked_routes: BTreeMap::new(),
            departed: BTreeMap::new(),
            policies_changed: BTreeMap::new(),
            beat_wanted: None,
            restore_tried: false,
            started_told: false,
            restored: false,
            proven: None,
            last_proven: None,
            last_pass: None,
            stale: false,
            sessions: Sessions::default(),
            backend: None,
            traffic: BTreeMap::new(),
            ledger: Ledger::default(),
            quarantine_said: BTreeMap::new(),
            ignored_said: BTreeSet::new(),
            totals: Totals::default(),
        }
    }

    /// Takes in one event and says what to do.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        let since = if matches!(event, Event::Read(_)) { self.found_since } else { now.instant };
        self.rows_told &= !event.brings_rows();
        self.take(event, now, &mut actions);
        self.check_timers(now, &mut actions);
        if self.rows_changed && self.desired.is_some() {
            self.changed_since.get_or_insert(since);
        }
        self.advance(now, &mut actions);
        if !std::mem::replace(&mut self.rows_told, true) {
            self.row_status = self.desired.as_ref().map(RowStatus::of).unwrap_or_default();
        }
        if self.is_told() {
            self.last_proven = self.proven.or(self.last_proven);
        }
        actions
    }

    fn take(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        self.resyncs.hears(&event);
        match event {
            Event::Connected { mode } => {
                if !matches!(self.database, Database::Up { .. }) {
                    self.database_since = now.wall;
                }
                self.database = Database::Up { mode };
                self.ledger.database_is_away = false;
                // Nothing could be heard meanwhile, so nothing was missed.
                self.notified_since_read = true;
                // A read is due on every connect: what was notified meanwhile is lost.
                self.want_read(self.read_after_connect());
                actions.push(Action::Say(Note::DatabaseUp { mode }));
            }
            Event::Disconnected { error } => self.lose_database(error, now, actions),
            Event::Notified => {
                self.totals.notifications += 1;
                self.notified_since_read = true;
                self.heard_at.get_or_insert(now.instant);
                self.due.suspicion = None;
                self.want_read(ReadKind::Changes);
            }
            Event::KernelChanged { why } => {
                self.glanced = false;
                self.observe_wanted = Some(why);
            }
            Event::Resync => {
                self.want_read(ReadKind::Everything);
                self.observe_wanted = Some("resync asked for".into());
            }
            Event::ConfirmRemovals => {
                self.confirmed.clone_from(self.staying.peers());
                // What an operator asks for is no drift.
                self.rows_changed = true;
                self.scope = Scope::Everything;
                self.retry_now();
            }
            Event::Unwatched { tables } => self.take_unwatched(tables, actions),
            Event::Tick => {}
            Event::Read(answer) => {
                let kind = self.jobs.reading.take().unwrap_or(ReadKind::Changes);
                self.take_read(kind, answer, now, actions);
            }
            Event::Restored(rows, changes) => self.restore(*rows, changes, actions),
            Event::Observed(reading) => {
                self.jobs.kernel = false;
                self.take_reading(reading.map(|reading| *reading), now, actions);
            }
            Event::Glanced(glance) => {
                self.jobs.kernel = false;
                self.take_glance(glance, now);
            }
            Event::Applied(outcome) => {
                self.jobs.kernel = false;
                self.take_outcome(outcome, now, actions);
            }
            Event::Reported(sent) => {
                self.reporting = false;
                self.take_back(sent, now, actions);
            }
        }
    }

    fn lose_database(&mut self, error: String, now: Now, actions: &mut Vec<Action>) {
        let since = match self.database {
            Database::Down { since, .. } | Database::Connecting { since } => since,
            Database::Up { .. } => {
                self.database_since = now.wall;
                now.instant
            }
        };
        if self.desired.is_none() && !std::mem::replace(&mut self.restore_tried, true) {
            actions.push(Action::Restore);
        }
        self.rows_in_doubt = true;
        self.ledger.unsynced();
        self.ledger.database_is_away = true;
        let retry_in = self.backoffs.connect.next_wait();
        self.database =
            Database::Down { since, retry_at: now.instant + retry_in, error: error.clone() };
        self.complain(Trouble::Database, Note::DatabaseDown { error, retry_in }, now, actions);
    }

    /// A report came back, with what of it was not taken.
    fn take_back(&mut self, sent: Sent, now: Now, actions: &mut Vec<Action>) {
        let Sent { left, refused, error } = sent;
        let connected = matches!(self.database, Database::Up { .. });
        self.ledger.database_is_away = error.is_some() || !connected;
        self.ledger.put_back(left);
        if !connected {
            self.ledger.unsynced();
        }
        if let Some(first) = refused.first().cloned() {
            self.ledger.refused_audit_entries += refused.len() as u64;
            actions.push(Action::Say(Note::AuditRefused { entries: refused.len(), first }));
        }
        let Some(error) = error else {
            self.backoffs.report.reset();
            return self.lately.forget(Trouble::Report);
        };
        self.due.report = now.instant + self.backoffs.report.next_wait();
        self.complain(Trouble::Report, Note::ReportFailed { error }, now, actions);
    }
}
