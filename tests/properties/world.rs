//! A host and a database made of values, in which an agent lives.

mod changes;
mod database;
mod kernel;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gatepost::dataplane::{Glance, Reading};
use gatepost::model::{
    BarredBy, BlockList, DesiredState, DeviceId, Local, Mark, ObservedFirewall, ObservedState,
    PeerId, PublicKey, Traffic, Unloadable, UserId,
};
use gatepost::plan::guard::MaxRemoved;
use gatepost::plan::{ModelKernel, Scope, Step, plan};
use gatepost::reconcile::{
    Action, BellNews, EpochRead, Event, Keep, LastGood, Machine, MachineOptions, Mode, Note, Now,
    ReadAnswer, ReadKind, Report, Sent, StaleOptions, StalePolicy, Timing, Withdrawals,
};
use ipnet::IpNet;

pub use super::rows::quiet_tables;
use super::rows::{NOW_SECS, Tables, at, local};
pub use trouble::{Trouble, Watch, away, refused};
use trouble::{refusal, unreadable};

pub fn options() -> MachineOptions {
    MachineOptions {
        local: local(),
        block_list: BlockList::default(),
        timing: Timing {
            poll_interval: Duration::from_secs(1),
            safety_poll_interval: Duration::from_secs(10),
            resync_interval: Duration::from_secs(600),
            report_interval: Duration::from_secs(15),
            heartbeat: Duration::from_secs(10),
            heartbeat_among_many: Duration::from_secs(60),
            seed: 1,
        },
        max_removed: MaxRemoved::Percent(50),
        lost_history: Duration::from_secs(900),
        withdrawals: Withdrawals::default(),
        stale: StaleOptions { policy: StalePolicy::Keep, after: Duration::from_secs(86_400) },
    }
}

/// A host and a database, with a clock that stands still until told.
pub struct World {
    pub tables: Tables,
    /// What the reader saw last; a change read answers with everything when this differs.
    pub read: Option<Tables>,
    read_at: SystemTime,
    /// The times of reads whose rows the kernel was equal to.
    true_as_of: BTreeSet<SystemTime>,
    pub kernel: ModelKernel,
    pub machine: Machine,
    pub local: Arc<Local>,
    start: Instant,
    pub elapsed: Duration,
    /// How long a complete reading of the kernel takes.
    pub reading_takes: Duration,
    /// The firewall as it was last read or written.
    firewall_known: Option<ObservedFirewall>,
    pub queue: VecDeque<Action>,
    pub database_up: bool,
    /// The bell gives signs of life.
    pub bell_lives: bool,
    pub reports: Vec<Report>,
    pub notes: Vec<Note>,
    pub kept: Vec<Keep>,
    /// How often it was tried to connect.
    pub tries: usize,
    pub reads: Vec<ReadKind>,
    pub observations: usize,
    pub applied_steps: usize,
    pub troubles: BTreeSet<Trouble>,
    pub foreign_routes: BTreeSet<IpNet>,
    /// What the peers sent, as the kernel counts it.
    pub traffic: BTreeMap<PublicKey, Traffic>,
    /// How far this host's clock was set forward (or back).
    pub clock_set_secs: i64,
    /// How far the database's clock is ahead of the one of the first server.
    pub server_ahead: Duration,
    /// Whom the host blocks.
    pub block_list: Arc<BlockList>,
    /// Somebody changed the kernel without a word, and nobody has looked since.
    pub meddled: bool,
    /// The kernel announced a change, and no reading has begun since.
    pub announced: bool,
    /// The kernel announced a change of its routing, and no look has begun since.
    routing_announced: bool,
    /// What the database knows of its commits, each with its time.
    pub marks: Vec<(Mark, SystemTime)>,
    marks_read: usize,
    read_epoch: u32,
    /// Changes when the database loses commits.
    pub epoch: u32,
    /// What the agent keeps on disk.
    pub remembered: Withdrawals,
    /// The last good rows of an earlier run.
    pub last_good: Option<LastGood>,
    /// The host has booted since rows were read.
    pub booted: bool,
    /// How many plans were applied.
    pub plans: usize,
    pub watch: Option<Watch>,
    /// `gateways.vpn_cidr`, if it is another than usual.
    pub pool: Option<IpNet>,
    /// `[stale]`
    pub stale: StaleOptions,
    /// The users of the devices that rows of peers have named.
    pub devices: BTreeMap<DeviceId, UserId>,
    /// Those of them that are revoked without a row of a peer that names them.
    pub revoked_devices: BTreeSet<DeviceId>,
    /// Devices that are deleted or whose users are, or are not active, as far as no row of a peer says so.
    pub barred_devices: BTreeSet<DeviceId>,
}

impl World {
    pub fn new(tables: Tables, kernel: ModelKernel) -> Self {
        Self::with(options(), tables, kernel)
    }

    pub fn with(options: MachineOptions, tables: Tables, kernel: ModelKernel) -> Self {
        let start = Instant::now();
        let now = Now { instant: start, wall: at(NOW_SECS) };
        Self {
            tables,
            block_list: Arc::new(options.block_list.clone()),
            stale: options.stale,
            read: None,
            read_at: at(NOW_SECS),
            true_as_of: BTreeSet::new(),
            kernel,
            local: options.local.clone(),
            machine: Machine::new(options, now),
            start,
            elapsed: Duration::ZERO,
            reading_takes: Duration::ZERO,
            firewall_known: None,
            queue: VecDeque::new(),
            database_up: true,
            bell_lives: false,
            reports: Vec::new(),
            notes: Vec::new(),
            kept: Vec::new(),
            tries: 0,
            reads: Vec::new(),
            observations: 0,
            applied_steps: 0,
            troubles: BTreeSet::new(),
            foreign_routes: BTreeSet::new(),
            traffic: BTreeMap::new(),
            clock_set_secs: 0,
            server_ahead: Duration::ZERO,
            meddled: false,
            announced: false,
            routing_announced: false,
            marks: Vec::new(),
            marks_read: 0,
            read_epoch: 0,
            epoch: 0,
            remembered: Withdrawals::default(),
            last_good: None,
            booted: false,
            plans: 0,
            watch: None,
            pool: None,
            devices: BTreeMap::new(),
            revoked_devices: BTreeSet::new(),
            barred_devices: BTreeSet::new(),
        }
    }

    pub fn now(&self) -> Now {
        let set = Duration::from_secs(self.clock_set_secs.unsigned_abs());
        let right = at(NOW_SECS) + self.elapsed;
        let wall = if self.clock_set_secs < 0 { right - set } else { right + set };
        Now { instant: self.start + self.elapsed, wall }
    }

    pub fn database_now(&self) -> SystemTime {
        at(NOW_SECS) + self.elapsed + self.server_ahead
    }

    fn suffers(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }

    pub fn tell(&mut self, event: Event) {
        self.announced |= matches!(event, Event::KernelChanged { .. });
        self.routing_announced |= matches!(event, Event::RoutingChanged);
        let shown = |world: &Self| world.machine.view().status().sync.last_sync_at;
        let waits = self.announced || self.routing_announced;
        let before = waits.then(|| shown(self));
        let actions = self.machine.handle(event, self.now());
        if let Some(before) = before {
            assert_eq!(before, shown(self), "a proof while a kernel event waits");
        }
        self.announced &= !actions.iter().any(|action| matches!(action, Action::Observe));
        let looks = |action: &Action| matches!(action, Action::Observe | Action::Glance);
        self.routing_announced &= !actions.iter().any(looks);
        let known = self.true_as_of.contains(&self.read_at);
        if !known && self.read.as_ref().is_some_and(|read| self.kernel_follows(read)) {
            self.true_as_of.insert(self.read_at);
        }
        for action in actions {
            match action {
                // A disk that is fast enough.
                Action::Remember(withdrawals) => self.remembered = withdrawals,
                action => self.queue.push_back(action),
            }
        }
    }

    /// Carries out one action, as the shell would.
    pub fn carry_out(&mut self, action: Action) {
        let event = match action {
            Action::Say(note) => return self.notes.push(note),
            Action::Restore => match self.last_good.take() {
                Some(last_good) => Event::Restored {
                    last_good: Box::new(last_good),
                    database_now: (!self.booted).then(|| self.database_now()),
                },
                None => Event::NothingRestored,
            },
            Action::Keep(keep, _) => return self.kept.push(keep),
            Action::Connect => {
                self.tries += 1;
                if self.database_up {
                    Event::Connected { mode: Mode::Listen }
                } else {
                    Event::Disconnected { error: away() }
                }
            }
            Action::Read(_) if self.suffers(Trouble::HangingReads) => return,
            Action::Read(kind) if !self.database_up || self.suffers(Trouble::Reads) => {
                self.reads.push(kind);
                let error = away();
                self.tell(Event::Read(Err(error.clone())));
                Event::Disconnected { error }
            }
            Action::Read(kind) => {
                self.reads.push(kind);
                let answer = self.answer(kind);
                if matches!(answer, ReadAnswer::Everything(_)) {
                    let marks = self.marks.iter().map(|(mark, _)| mark.clone()).collect();
                    let (epoch, read_at) = (self.epoch.to_string(), self.read_at);
                    self.tell(Event::Epoch(EpochRead { epoch, why: None, marks, read_at }));
                }
                Event::Read(Ok(answer))
            }
            Action::AskMarks { epoch, .. } if !self.database_up || self.suffers(Trouble::Reads) => {
                Event::MarksAnswered { epoch, lost: Err(away()) }
            }
            Action::AskMarks { epoch, withdrawals } => {
                Event::MarksAnswered { epoch, lost: Ok(self.lost(&withdrawals)) }
            }
            Action::AskDevices(_) if !self.database_up || self.suffers(Trouble::Reads) => {
                Event::DevicesAnswered(Err(away()))
            }
            Action::AskDevices(asked) => Event::DevicesAnswered(Ok(self.standings(&asked))),
            Action::Remember(_) => return,
            Action::Observe if self.suffers(Trouble::Observations) => {
                self.observations += 1;
                Event::Observed(Err(unreadable()))
            }
            Action::Glance if self.suffers(Trouble::Observations) => {
                Event::Glanced(Err(unreadable()))
            }
            Action::Observe => {
                self.observations += 1;
                self.meddled = false;
                self.elapsed += self.reading_takes;
                let state = self.kernel.state.clone();
                self.firewall_known.clone_from(&state.firewall);
                let traffic = self.traffic.clone();
                Event::Observed(Ok(Box::new(Reading { state, traffic, ..Reading::default() })))
            }
            Action::Glance => {
                let ObservedState { interface, routes, routing, firewall, .. } =
                    self.kernel.state.clone();
                let firewall_is_current = firewall == self.firewall_known;
                Event::Glanced(Ok(Glance { interface, routes, routing, firewall_is_current }))
            }
            Action::Apply(plan, observed) => Event::Applied(self.apply(&plan, &observed)),
            Action::Report(report) if self.database_up => {
                if let Some(as_of) = report.synced_as_of {
                    let held = self.true_as_of.contains(&as_of);
                    assert!(held || self.meddled, "reported as synced, and never was");
                }
                self.reports.push(report);
                let refused = self.suffers(Trouble::Reports);
                let refusals = refused.then(|| refusal(at(NOW_SECS), self.elapsed));
                Event::Reported(Sent {
                    refusals: Some(Vec::from_iter(refusals)),
                    ..Sent::default()
                })
            }
            Action::Report(left) => {
                Event::Reported(Sent { left, error: Some(away()), ..Sent::default() })
            }
        };
        self.tell(event);
    }

    fn desired(&self, tables: &Tables) -> DesiredState {
        let mut rows = tables.snapshot();
        rows.taken_at = self.database_now();
        rows.gateway.vpn_cidr = self.pool.unwrap_or(rows.gateway.vpn_cidr);
        let block_list = self.block_list.clone();
        let mut desired =
            DesiredState::build_without(block_list, self.local.clone(), rows).unwrap();
        let refused = self.kernel.unloadable.iter().cloned();
        desired.quarantine_profiles(refused.map(|profile| Unloadable {
            profile,
            why: Box::default(),
            remedy: "",
        }));
        desired
    }

    pub fn settle(&mut self) {
        for _ in 0..1_000 {
            match self.queue.pop_front() {
                Some(action) => self.carry_out(action),
                None => return,
            }
        }
        panic!("the machine never rests");
    }

    /// Lets time go by from one due moment to the next.
    pub fn pass_time(&mut self, time: Duration) {
        let end = self.elapsed + time;
        let mut at_once = 0;
        loop {
            self.settle();
            let due = self.machine.next_wakeup(self.now()).duration_since(self.start);
            at_once = if due <= self.elapsed { at_once + 1 } else { 0 };
            assert!(at_once < 20, "it wakes up again and again, and does nothing");
            if due > end {
                break;
            }
            self.elapsed = due.max(self.elapsed + Duration::from_micros(1));
            if self.bell_lives {
                self.tell(Event::Bell(BellNews::Alive));
            }
            self.tell(Event::Tick);
        }
        self.elapsed = end;
        self.tell(Event::Tick);
        self.settle();
    }

    /// How many commits of the present epoch the agent has read.
    pub fn commits_read(&self) -> usize {
        if self.read_epoch == self.epoch { self.marks_read } else { 0 }
    }

    /// These peers' devices are not active any more.
    pub fn revoke(&mut self, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            let row = self.tables.peers.get_mut(&PeerId(super::rows::id(2, number))).unwrap();
            row.bars = BarredBy::DEVICE_STATUS;
        }
    }

    /// The users of these peers are not active any more: a mistake with a table may look like this.
    pub fn deactivate(&mut self, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            let row = self.tables.peers.get_mut(&PeerId(super::rows::id(2, number))).unwrap();
            row.bars = BarredBy::USER_INACTIVE;
        }
    }

    /// An operator confirms what is held back by the rows that were read until now.
    pub fn confirm(&mut self) {
        let until = self.database_now();
        self.tell(Event::ConfirmRemovals { until, let_in_until: None });
    }

    /// Everybody is welcome again.
    pub fn restore_all(&mut self) {
        self.tables.peers.values_mut().for_each(|row| row.bars = BarredBy::default());
    }

    pub fn kernel_equals_database(&self) -> bool {
        self.kernel_is(&self.tables)
    }

    /// But for the routes that others stand in the way of, and the profiles that the kernel refuses.
    pub fn kernel_is(&self, tables: &Tables) -> bool {
        self.kernel_is_as(&self.desired(tables))
    }

    /// But for peers that the agent keeps out on purpose, too.
    fn kernel_follows(&self, tables: &Tables) -> bool {
        let mut desired = self.desired(tables);
        let kept_out = self.machine.view().desired().map(|desired| desired.kept_out().collect());
        desired.keep_out(kept_out.unwrap_or_default());
        self.kernel_is_as(&desired)
    }

    fn kernel_is_as(&self, desired: &DesiredState) -> bool {
        // A kernel for which there is no plan is not equal.
        let left = plan(desired, &self.kernel.state, &Scope::Everything);
        let Ok(left) = left else { return false };
        let blocked = |prefix: &IpNet| self.foreign_routes.contains(prefix);
        left.without(|step| matches!(step, Step::AddRoute { prefix } if blocked(prefix))).is_empty()
    }
}

/// The rows that an earlier run of the agent kept, before the host booted.
pub fn restored(last_good: LastGood) -> Event {
    Event::Restored { last_good: Box::new(last_good), database_now: None }
}

pub fn quiet_world() -> World {
    let mut world = World::new(quiet_tables(20), ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    world
}
