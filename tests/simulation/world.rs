//! An agent on a host beside a database: what it was told, what it has under way, and the clocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gatepost::dataplane::{Glance, Outcome, Reading, SharedObserved};
use gatepost::model::{BlockList, ObservedState, PublicKey};
use gatepost::plan::guard::MaxRemoved;
use gatepost::plan::{ModelJob, Plan};
use gatepost::reconcile::{
    Action, AskedDevice, DatabaseError, Event, Machine, MachineOptions, Mode, Now, ReadKind,
    Report, StaleOptions, StalePolicy, Timing, Withdrawal, Withdrawals,
};

use super::bytes::Bytes;
use super::database::{Cursor, Database, Seen};
use super::disk::{Disk, Keeper};
use super::host::Host;
use super::oracle::Oracle;
use super::tables::{Tables, local};

const SECOND: Duration = Duration::from_secs(1);
/// The database's time at the start.
const START_SECS: u64 = 1_000_000;

/// What the agent has under way with the database and the disk.
#[derive(Debug)]
pub enum Errand {
    Connect,
    Restore,
    Read { kind: ReadKind, began_at: Duration, seen: Option<Seen> },
    AskMarks { epoch: String, about: BTreeMap<PublicKey, Withdrawal> },
    MarksAnswered { epoch: String, lost: Result<BTreeSet<PublicKey>, DatabaseError> },
    AskDevices(BTreeMap<PublicKey, AskedDevice>),
    Report { report: Report, written: bool },
    Remember(Withdrawals),
}

/// What the agent has under way on the kernel.
pub enum Job {
    Look(Option<Option<Box<Reading>>>),
    Glance(Option<Option<Glance>>),
    Apply(Box<Application>),
}

/// A plan that is being applied.
pub struct Application {
    pub steps: VecDeque<gatepost::plan::Step>,
    pub job: ModelJob,
    pub observed: ObservedState,
    pub shared: SharedObserved,
    pub outcome: Outcome,
    /// One step was applied at least.
    pub is_begun: bool,
}

/// The rows that the agent was told last.
#[derive(Debug, Clone)]
pub struct Followed {
    pub tables: Rc<Tables>,
    /// The database's time of the rows.
    pub as_of: SystemTime,
    /// How many versions the database had when they were read.
    pub versions: usize,
}

/// What dies with the process.
pub struct Agent {
    pub machine: Machine,
    pub cursor: Option<Cursor>,
    pub errands: Vec<Errand>,
    pub job: Option<Job>,
    pub keeper: Keeper,
    pub followed: Option<Followed>,
    pub is_connected: bool,
    pub mode: Mode,
    pub notified: bool,
}

pub struct World {
    start: Instant,
    pub elapsed: Duration,
    /// How far this host's clock was set forward (or back).
    pub wall_is_off_secs: i64,
    pub database: Database,
    pub host: Host,
    pub disk: Disk,
    pub blocks: Arc<BlockList>,
    pub options: MachineOptions,
    pub agent: Agent,
    /// Notifications that are on their way.
    pub hints: u8,
    pub oracle: Oracle,
    pub failure: Option<String>,
    /// What happened, if that is to be told.
    pub story: Option<Vec<String>>,
    /// Calls of the machine since time last went by.
    calls: u32,
    pub figures: Figures,
}

/// What a history was made of, so that a test can say that nothing is missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    pub events: u64,
    pub steps: u64,
    pub proofs: u64,
    pub refused: u64,
    pub looks: u64,
    pub notes: u64,
}

impl Figures {
    pub const fn add(&mut self, other: Self) {
        self.events += other.events;
        self.steps += other.steps;
        self.proofs += other.proofs;
        self.refused += other.refused;
        self.looks += other.looks;
        self.notes += other.notes;
    }
}

fn options(bytes: &mut Bytes<'_>) -> MachineOptions {
    let policy = bytes.pick(&[StalePolicy::Keep, StalePolicy::Down, StalePolicy::DenyNew]);
    MachineOptions {
        local: local(),
        block_list: BlockList::default(),
        timing: Timing {
            poll_interval: SECOND,
            safety_poll_interval: 10 * SECOND,
            resync_interval: 600 * SECOND,
            report_interval: 15 * SECOND,
            heartbeat: 10 * SECOND,
            heartbeat_among_many: 60 * SECOND,
            seed: u64::from(bytes.next()),
        },
        max_removed: MaxRemoved::Percent(50),
        lost_history: 900 * SECOND,
        withdrawals: Withdrawals::default(),
        stale: StaleOptions { policy, after: 120 * SECOND },
    }
}

impl Agent {
    fn new(machine: Machine) -> Self {
        Self {
            machine,
            cursor: None,
            errands: Vec::new(),
            job: None,
            keeper: Keeper::default(),
            followed: None,
            is_connected: false,
            mode: Mode::Listen,
            notified: false,
        }
    }
}

impl World {
    pub fn new(bytes: &mut Bytes<'_>, tells: bool) -> Self {
        let options = options(bytes);
        let (start, wall) = (Instant::now(), database_time(Duration::ZERO));
        let machine = Machine::new(options.clone(), Now { instant: start, wall });
        let mut world = Self {
            start,
            elapsed: Duration::ZERO,
            wall_is_off_secs: 0,
            database: Database::new(Tables::first(bytes), wall),
            host: Host::new(),
            disk: Disk::default(),
            blocks: Arc::default(),
            options,
            agent: Agent::new(machine),
            hints: 0,
            oracle: Oracle::default(),
            failure: None,
            story: tells.then(Vec::new),
            calls: 0,
            figures: Figures::default(),
        };
        world.tell(Event::Tick);
        world
    }

    pub fn now(&self) -> Now {
        let right = self.database_now();
        let off = Duration::from_secs(self.wall_is_off_secs.unsigned_abs());
        let wall = if self.wall_is_off_secs < 0 { right - off } else { right + off };
        Now { instant: self.start + self.elapsed, wall }
    }

    pub fn database_now(&self) -> SystemTime {
        database_time(self.elapsed)
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some(what.into());
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let at = self.elapsed;
        if let Some(story) = &mut self.story {
            story.push(format!("{:>9.3} {}", at.as_secs_f64(), line()));
        }
    }

    /// Tells the machine of an event, and takes in what it wants to be done.
    pub fn tell(&mut self, event: Event) {
        self.note(|| format!("  {}", short(&event)));
        self.figures.events += 1;
        self.calls += 1;
        if self.calls > 2_000 {
            self.fail("the machine is called again and again, and no time goes by");
        }
        match &event {
            Event::Connected { .. } => self.agent.is_connected = true,
            Event::Disconnected { .. } => self.agent.is_connected = false,
            Event::Notified => self.agent.notified = true,
            _ => {}
        }
        self.before_event(&event);
        let now = self.now();
        let actions = self.agent.machine.handle(event, now);
        self.check_proof();
        for action in actions {
            self.take(action);
        }
        self.after_event();
    }

    fn take(&mut self, action: Action) {
        self.note(|| format!("    -> {}", short_action(&action)));
        if let Action::Observe | Action::Glance | Action::Apply(..) = &action
            && self.agent.job.is_some()
        {
            self.fail("two jobs on the kernel at once");
        }
        match action {
            Action::Say(_) => self.figures.notes += 1,
            Action::Keep(keep, held) => self.agent.keeper.keep(keep, &held, &mut self.disk),
            Action::Connect => self.agent.errands.push(Errand::Connect),
            Action::Restore => self.agent.errands.push(Errand::Restore),
            Action::Read(kind) => {
                let is_read = |it: &Errand| matches!(it, Errand::Read { .. });
                if self.agent.errands.iter().any(is_read) {
                    self.fail("two reads of the database at once");
                }
                self.agent.notified = false;
                self.agent.errands.push(Errand::Read { kind, began_at: self.elapsed, seen: None });
            }
            Action::AskMarks { epoch, withdrawals: about } => {
                self.agent.errands.push(Errand::AskMarks { epoch, about });
            }
            Action::AskDevices(asked) => self.agent.errands.push(Errand::AskDevices(asked)),
            Action::Remember(withdrawals) => {
                self.agent.errands.retain(|it| !matches!(it, Errand::Remember(_)));
                self.agent.errands.push(Errand::Remember(withdrawals));
            }
            Action::Report(report) => {
                self.check_report(&report);
                self.agent.errands.push(Errand::Report { report, written: false });
            }
            Action::Observe => {
                self.figures.looks += 1;
                self.oracle.announced = false;
                self.oracle.routing_announced = false;
                self.agent.job = Some(Job::Look(None));
            }
            Action::Glance => {
                self.oracle.routing_announced = false;
                self.agent.job = Some(Job::Glance(None));
            }
            Action::Apply(plan, shared) => self.begin_apply(&plan, shared),
        }
    }

    fn begin_apply(&mut self, plan: &Plan, shared: SharedObserved) {
        self.plan_begins(plan);
        let observed = shared.read().clone();
        self.agent.job = Some(Job::Apply(Box::new(Application {
            steps: plan.steps().iter().cloned().collect(),
            job: ModelJob::default(),
            observed,
            shared,
            outcome: Outcome::default(),
            is_begun: false,
        })));
    }

    /// The process is killed, and started again.
    pub fn crash(&mut self) {
        self.note(|| "killed".into());
        let withdrawals = self.disk.withdrawals.clone();
        let block_list = BlockList::clone(&self.blocks);
        let options = MachineOptions { withdrawals, block_list, ..self.options.clone() };
        self.agent = Agent::new(Machine::new(options, self.now()));
        self.host.events.clear();
        self.hints = 0;
        self.agent_began();
        self.tell(Event::Tick);
    }

    /// Lets time go by. The machine hears of it only if it is told.
    pub fn pass(&mut self, time: Duration) {
        if !time.is_zero() {
            self.calls = 0;
        }
        // The machine cannot do anything about a call that comes late.
        self.time_passes(time.min(self.until_wakeup()));
        self.elapsed += time;
    }

    /// How long until the machine wants to be called.
    pub fn until_wakeup(&self) -> Duration {
        let now = self.now();
        self.agent.machine.next_wakeup(now).saturating_duration_since(now.instant)
    }
}

fn database_time(elapsed: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(START_SECS) + elapsed
}

fn first_word(debug: &str) -> String {
    debug.chars().take(110).collect()
}

fn short(event: &Event) -> String {
    match event {
        Event::Observed(Ok(_)) => "Observed".into(),
        Event::Read(Ok(_)) => "Read".into(),
        event => first_word(&format!("{event:?}")),
    }
}

fn short_action(action: &Action) -> String {
    match action {
        Action::Apply(plan, _) => {
            let steps: Vec<_> = plan.steps().iter().map(ToString::to_string).collect();
            format!("Apply {steps:#?}")
        }
        Action::Report(report) => {
            format!("Report as of {:?}, {} entries", report.synced_as_of, report.audit.len())
        }
        Action::Say(note) => first_word(&format!("Say {note:?}")),
        action => first_word(&format!("{action:?}")),
    }
}
