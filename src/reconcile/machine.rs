//! The loop's core: what to do next, given what happened. No clock, no I/O.
//!
//! It is level-triggered: every event only widens what must be looked at, and one job at a time is
//! under way, but for the first reading of both sides. However many commits come, at most one pass runs and one is pending.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::event::{Action, Event, Mode, Note, Now, ReadKind, Sent};
use super::ledger::Ledger;
use super::pass::Pass;
use super::resync::Resyncs;
use super::session::Sessions;
use super::timing::{Due, Timing};
use crate::dataplane::{Backend, SharedObserved};
use crate::model::{
    BuildError, Departed, DesiredState, Local, PeerId, PolicyId, PublicKey, Reason, Traffic,
};
use crate::plan::guard::{HeldBack, MaxRemoved};
use crate::plan::{PlanError, Scope};
use crate::store::Backoff;

/// How the machine behaves; from the configuration.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    pub local: Arc<Local>,
    pub timing: Timing,
    pub max_removed: MaxRemoved,
    pub stale: StaleOptions,
}

/// `[stale]`: what happens when the database has been out of reach for long.
#[derive(Debug, Clone, Copy)]
pub struct StaleOptions {
    pub policy: StalePolicy,
    pub after: Duration,
}

/// `stale.policy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StalePolicy {
    /// Everything stays as it was last told.
    #[default]
    Keep,
    /// Peers without a live session are removed: nobody can connect anew.
    DenyNew,
    /// All peers are removed.
    Down,
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
    /// The database is read.
    pub reading: bool,
    /// The kernel is read or changed.
    pub kernel: bool,
}

impl Jobs {
    pub const fn any(self) -> bool {
        self.reading || self.kernel
    }
}

/// The machine. Feed it every [`Event`]; carry out every [`Action`] it returns.
pub struct Machine {
    pub(super) options: MachineOptions,
    pub(super) database: Database,
    /// Since when it has been up, or away.
    pub(super) database_since: SystemTime,
    pub(super) backoff: Backoff,
    pub(super) random: fastrand::Rng,
    pub(super) desired: Option<DesiredState>,
    /// Shared with the job that changes the kernel.
    pub(super) observed: Option<SharedObserved>,
    /// What must be read; `None`: nothing that we know of.
    pub(super) read_wanted: Option<ReadKind>,
    pub(super) observe_wanted: Option<String>,
    pub(super) glance_wanted: bool,
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
    pub(super) removals_confirmed: bool,
    pub(super) notified_since_read: bool,
    /// The first notification since the last read began.
    pub(super) heard_at: Option<Instant>,
    /// Since when what the last read found may have waited, as far as is known here: a notification,
    /// else the beginning of that read.
    pub(super) found_since: Instant,
    /// The same for the oldest change that is not proven yet.
    pub(super) changed_since: Option<Instant>,
    /// A notification, not a timer, asked for the read that is under way.
    pub(super) read_notified: bool,
    pub(super) pass: Option<Pass>,
    pub(super) obstacle: Option<Obstacle>,
    /// A removal that waits for an operator's word. Smaller changes go on meanwhile.
    pub(super) held: Option<HeldBack>,
    pub(super) departed: BTreeMap<PublicKey, Departed>,
    /// Policies that changed since the last proof, with their names.
    pub(super) policies_changed: BTreeMap<PolicyId, Box<str>>,
    pub(super) heartbeat_wanted: bool,
    pub(super) restore_tried: bool,
    /// The desired state is what an earlier run read last.
    pub(super) restored: bool,
    /// `None`: it may differ, as far as is known.
    pub(super) proven: Option<Proven>,
    /// What was proven last, also while the kernel may differ.
    pub(super) last_proven: Option<Proven>,
    pub(super) last_pass: Option<super::PassFigures>,
    pub(super) stale: bool,
    /// The database's clock less this host's, in seconds; positive: the database is ahead.
    pub(super) clock_offset_secs: f64,
    pub(super) sessions: Sessions,
    pub(super) backend: Option<Backend>,
    pub(super) traffic: BTreeMap<PublicKey, Traffic>,
    pub(super) ledger: Ledger,
    pub(super) quarantine_said: BTreeMap<PeerId, Reason>,
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
            backoff: Backoff::new(options.timing.seed),
            random: fastrand::Rng::with_seed(options.timing.seed),
            due: Due::new(now.instant, options.timing),
            options,
            desired: None,
            observed: None,
            read_wanted: Some(ReadKind::Everything),
            observe_wanted: Some("start".into()),
            glance_wanted: false,
            glanced: false,
            observing: String::new(),
            scope: Scope::Everything,
            rows_changed: true,
            jobs: Jobs::default(),
            resyncs: Resyncs::default(),
            reporting: false,
            removals_confirmed: false,
            notified_since_read: false,
            heard_at: None,
            found_since: now.instant,
            changed_since: None,
            read_notified: false,
            pass: None,
            obstacle: None,
            held: None,
            departed: BTreeMap::new(),
            policies_changed: BTreeMap::new(),
            heartbeat_wanted: false,
            restore_tried: false,
            restored: false,
            proven: None,
            last_proven: None,
            last_pass: None,
            stale: false,
            clock_offset_secs: 0.0,
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
        self.take(event, now, &mut actions);
        self.check_timers(now, &mut actions);
        if self.rows_changed && self.desired.is_some() {
            self.changed_since.get_or_insert(since);
        }
        self.advance(now, &mut actions);
        self.last_proven = self.proven.or(self.last_proven);
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
                self.stale_over();
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
                self.removals_confirmed = true;
                self.scope = Scope::Everything;
                self.due.retry_pass = None;
            }
            Event::Tick => {}
            Event::Read(answer) => {
                self.jobs.reading = false;
                self.take_read(answer, now, actions);
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
            Event::Reported(Sent { left, refused, error }) => {
                self.reporting = false;
                self.ledger.put_back(left);
                if let Some(first) = refused.first().cloned() {
                    self.ledger.refused_audit_entries += refused.len() as u64;
                    actions.push(Action::Say(Note::AuditRefused { entries: refused.len(), first }));
                }
                if let Some(error) = error {
                    self.due.report = now.instant + self.backoff.next_wait();
                    actions.push(Action::Say(Note::ReportFailed { error }));
                }
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
        let retry_in = self.backoff.next_wait();
        self.database =
            Database::Down { since, retry_at: now.instant + retry_in, error: error.clone() };
        actions.push(Action::Say(Note::DatabaseDown { error, retry_in }));
    }

    /// What to do next, if nothing is under way.
    fn advance(&mut self, now: Now, actions: &mut Vec<Action>) {
        if let Database::Down { since, retry_at, .. } = self.database
            && retry_at <= now.instant
        {
            self.database = Database::Connecting { since };
            actions.push(Action::Connect);
        }
        self.report(now, actions);
        // The first reading of the kernel and the first of the database need nothing of each other.
        let first = self.observed.is_none() && self.desired.is_none() && !self.jobs.reading;
        if self.jobs.any() && !first {
            return;
        }
        let connected = matches!(self.database, Database::Up { .. });
        let may_read = self.due.retry_read.is_none_or(|at| at <= now.instant);
        if connected
            && may_read
            && let Some(kind) = self.read_wanted.take()
        {
            self.due.retry_read = None;
            self.read_notified = std::mem::take(&mut self.notified_since_read);
            self.found_since = self.heard_at.take().unwrap_or(now.instant);
            self.begin(Action::Read(self.possible_read(kind)), actions);
        } else if self.jobs.any() {
            // The kernel is still being read.
        } else if self.due.may_observe(now.instant)
            && let Some(why) = self.observe_wanted.take()
        {
            self.observing = why;
            self.due.compare = now.instant + self.options.timing.compare_interval();
            self.due.observing_since = now.instant;
            self.glance_wanted = false;
            self.totals.observations += 1;
            self.begin(Action::Observe, actions);
        } else if std::mem::take(&mut self.glance_wanted) {
            self.begin(Action::Glance, actions);
        } else {
            self.next_step(now, actions);
        }
    }

    pub(super) fn begin(&mut self, action: Action, actions: &mut Vec<Action>) {
        self.resyncs.begins(&action);
        match action {
            Action::Read(_) => self.jobs.reading = true,
            _ => self.jobs.kernel = true,
        }
        actions.push(action);
    }
}
