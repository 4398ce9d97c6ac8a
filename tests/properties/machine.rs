//! Whole lives of an agent, simulated: commits, lost notifications, a lost database, a meddling
//! neighbour, kills. The kernel must end equal to the database, and no report may claim it early.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gatepost::dataplane::{Glance, Outcome, Reading};
use gatepost::model::{DesiredState, ObservedFirewall, ObservedState};
use gatepost::plan::guard::MaxRemoved;
use gatepost::plan::{ModelKernel, Scope, plan};
use gatepost::reconcile::{
    Action, Event, Machine, MachineOptions, Mode, Note, Now, ReadAnswer, Report, Sent,
    StaleOptions, StalePolicy, Timing,
};
use gatepost::store::AuditEvent;
use proptest::prelude::*;

use super::rows::{NOW_SECS, Tables, at, local, peer_row, tables};

fn options() -> MachineOptions {
    MachineOptions {
        local: local(),
        timing: Timing {
            poll_interval: Duration::from_secs(1),
            safety_poll_interval: Duration::from_secs(10),
            resync_interval: Duration::from_secs(600),
            report_interval: Duration::from_secs(15),
            heartbeat: Duration::from_secs(10),
            seed: 1,
        },
        max_removed: MaxRemoved::Percent(50),
        stale: StaleOptions { policy: StalePolicy::Keep, after: Duration::from_secs(86_400) },
    }
}

/// A host and a database, with a clock that stands still until told.
pub struct World {
    pub tables: Tables,
    /// What the reader saw last; a change read answers with everything when this differs.
    read: Option<Tables>,
    pub kernel: ModelKernel,
    pub machine: Machine,
    start: Instant,
    pub elapsed: Duration,
    /// How long a complete reading of the kernel takes.
    pub reading_takes: Duration,
    /// The firewall as it was last read or written.
    firewall_known: Option<ObservedFirewall>,
    queue: VecDeque<Action>,
    database_up: bool,
    pub reports: Vec<Report>,
    pub notes: Vec<Note>,
    full_reads: usize,
    pub observations: usize,
    applied_steps: usize,
    /// Somebody changed the kernel without a word, and nobody has looked since.
    meddled: bool,
}

impl World {
    fn new(tables: Tables, kernel: ModelKernel) -> Self {
        Self::with(options(), tables, kernel)
    }

    fn with(options: MachineOptions, tables: Tables, kernel: ModelKernel) -> Self {
        let start = Instant::now();
        let now = Now { instant: start, wall: at(NOW_SECS) };
        Self {
            tables,
            read: None,
            kernel,
            machine: Machine::new(options, now),
            start,
            elapsed: Duration::ZERO,
            reading_takes: Duration::ZERO,
            firewall_known: None,
            queue: VecDeque::new(),
            database_up: true,
            reports: Vec::new(),
            notes: Vec::new(),
            full_reads: 0,
            observations: 0,
            applied_steps: 0,
            meddled: false,
        }
    }

    pub fn now(&self) -> Now {
        Now { instant: self.start + self.elapsed, wall: at(NOW_SECS) + self.elapsed }
    }

    pub fn tell(&mut self, event: Event) {
        let actions = self.machine.handle(event, self.now());
        self.queue.extend(actions);
    }

    /// Carries out one action, as the shell would.
    fn carry_out(&mut self, action: Action) {
        let event = match action {
            Action::Say(note) => return self.notes.push(note),
            Action::Restore => return,
            Action::Connect if self.database_up => Event::Connected { mode: Mode::Listen },
            Action::Connect => Event::Disconnected { error: "refused".into() },
            Action::Read(_) if !self.database_up => Event::Read(Err("gone".into())),
            Action::Read(_) => Event::Read(Ok(self.read())),
            Action::Observe => {
                self.observations += 1;
                self.meddled = false;
                self.elapsed += self.reading_takes;
                let state = self.kernel.state.clone();
                self.firewall_known.clone_from(&state.firewall);
                Event::Observed(Ok(Box::new(Reading { state, ..Reading::default() })))
            }
            Action::Glance => {
                let ObservedState { interface, routes, firewall, .. } = self.kernel.state.clone();
                let firewall_is_current = firewall == self.firewall_known;
                Event::Glanced(Ok(Glance { interface, routes, firewall_is_current }))
            }
            Action::Apply(plan, observed) => {
                let mut outcome = Outcome::default();
                for step in plan.steps() {
                    match self.kernel.obey(step) {
                        Ok(()) => {
                            observed.obey(step);
                            outcome.applied += 1;
                        }
                        Err(why) => outcome.refused.push((step.clone(), why.to_string())),
                    }
                }
                self.applied_steps += outcome.applied;
                self.firewall_known.clone_from(&self.kernel.state.firewall);
                Event::Applied(outcome)
            }
            Action::Report(report) if self.database_up => {
                if report.synced_as_of.is_some() && !self.meddled {
                    self.assert_true_to_what_was_read();
                }
                self.reports.push(report);
                Event::Reported(Sent::default())
            }
            Action::Report(left) => {
                Event::Reported(Sent { left, error: Some("gone".into()), ..Sent::default() })
            }
        };
        self.tell(event);
    }

    fn read(&mut self) -> ReadAnswer {
        if self.read.as_ref() == Some(&self.tables) {
            return ReadAnswer::Unchanged { taken_at: self.now().wall };
        }
        self.full_reads += 1;
        self.read = Some(self.tables.clone());
        let mut rows = self.tables.snapshot();
        rows.taken_at = self.now().wall;
        ReadAnswer::Everything(Box::new(rows))
    }

    /// `last_sync_at` may be written only while the kernel is what the last read said.
    fn assert_true_to_what_was_read(&self) {
        let desired = self.desired(self.read.as_ref().unwrap());
        let left = plan(&desired, &self.kernel.state, &Scope::Everything).unwrap();
        assert!(left.is_empty(), "reported as synced while it was not: {:?}", left.steps());
    }

    fn desired(&self, tables: &Tables) -> DesiredState {
        let mut rows = tables.snapshot();
        rows.taken_at = self.now().wall;
        DesiredState::build(local(), rows).unwrap()
    }

    fn settle(&mut self) {
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
        loop {
            self.settle();
            let due = self.machine.next_wakeup(self.now()).duration_since(self.start);
            if due > end {
                break;
            }
            self.elapsed = due.max(self.elapsed + Duration::from_micros(1));
            self.tell(Event::Tick);
        }
        self.elapsed = end;
        self.tell(Event::Tick);
        self.settle();
    }

    pub fn kernel_equals_database(&self) -> bool {
        let desired = self.desired(&self.tables);
        plan(&desired, &self.kernel.state, &Scope::Everything).unwrap().is_empty()
    }
}

#[derive(Debug, Clone)]
pub enum Happening {
    Commit(Box<gatepost::model::PeerRow>, bool),
    Delete(u8),
    LoseLink,
    FlushFirewall,
    ForgetPeers,
    DatabaseGone(u64),
    Kill,
    Pause(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        5 => (peer_row(), any::<bool>()).prop_map(|(row, notify)| Happening::Commit(Box::new(row), notify)),
        2 => (0u8..12).prop_map(Happening::Delete),
        1 => Just(Happening::LoseLink),
        1 => Just(Happening::FlushFirewall),
        1 => Just(Happening::ForgetPeers),
        1 => (1u64..100).prop_map(Happening::DatabaseGone),
        1 => Just(Happening::Kill),
        3 => (1u64..20_000).prop_map(Happening::Pause),
    ]
}

impl World {
    pub fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Commit(row, notify) => {
                self.tables.peers.insert(row.id, *row);
                if notify && self.database_up {
                    self.tell(Event::Notified);
                }
            }
            Happening::Delete(number) => {
                self.tables.peers.remove(&gatepost::model::PeerId(super::rows::id(2, number)));
            }
            Happening::LoseLink => {
                self.kernel.lose_link();
                self.tell(Event::KernelChanged { why: "link removed".into() });
            }
            Happening::FlushFirewall => {
                self.kernel.state.firewall = None;
                self.tell(Event::KernelChanged { why: "table removed".into() });
            }
            // Nobody tells of peers: only the compare interval can see it.
            Happening::ForgetPeers => {
                self.kernel.state.peers.clear();
                self.meddled = true;
            }
            Happening::DatabaseGone(secs) => {
                self.database_up = false;
                self.tell(Event::Disconnected { error: "gone".into() });
                self.pass_time(Duration::from_secs(secs));
                self.database_up = true;
            }
            Happening::Kill => {
                let now = self.now();
                self.queue.clear();
                self.read = None;
                self.machine = Machine::new(options(), now);
                self.tell(Event::Tick);
            }
            Happening::Pause(millis) => self.pass_time(Duration::from_millis(millis)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn whatever_happens_the_kernel_ends_equal_and_nobody_lied(
        first in tables(), happenings in prop::collection::vec(happening(), 0..12),
    ) {
        let mut world = World::new(first, ModelKernel::default());
        world.tell(Event::Tick);
        for happening in happenings {
            world.happen(happening);
        }
        world.pass_time(Duration::from_secs(60));
        prop_assert!(world.kernel_equals_database(), "obstacle: {:?}", world.machine.obstacle());
    }
}

fn quiet_tables() -> Tables {
    let mut tables = Tables {
        peers: std::collections::BTreeMap::new(),
        memberships: std::collections::BTreeMap::new(),
        policies: std::collections::BTreeMap::new(),
        settings: Vec::new(),
    };
    for number in 1..=20u8 {
        let row = gatepost::model::PeerRow {
            id: gatepost::model::PeerId(super::rows::id(2, number)),
            device_id: gatepost::model::DeviceId(super::rows::id(3, number)),
            user_id: gatepost::model::UserId(super::rows::id(4, number)),
            device_name: "laptop".into(),
            username: format!("user-{number}").into(),
            public_key: gatepost::model::KeyText::Key(
                gatepost::model::PublicKey::from_bytes([number; 32]).unwrap(),
            ),
            assigned_ip: format!("10.64.0.{}/32", number + 1).parse().unwrap(),
            preshared_key: None,
            allowed_ips: Box::new([]),
            dns_servers: Box::new([]),
            bars: gatepost::model::Bars::default(),
            revoked_at: None,
            allocation: gatepost::model::Allocation::Held,
            created_at: at(1),
        };
        tables.peers.insert(row.id, row);
    }
    tables
}

pub fn quiet_world() -> World {
    let mut world = World::new(quiet_tables(), ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    world
}

#[test]
fn a_quiet_agent_writes_nothing_to_the_kernel_and_keeps_last_sync_fresh() {
    let mut world = quiet_world();
    let (steps, notes) = (world.applied_steps, world.notes.len());
    world.reports.clear();
    world.pass_time(Duration::from_secs(300));
    assert_eq!(world.applied_steps, steps);
    assert_eq!(world.notes.len(), notes, "{:?}", &world.notes[notes..]);
    let beats: Vec<_> = world.reports.iter().filter_map(|report| report.synced_as_of).collect();
    assert!((28..=32).contains(&beats.len()), "{} heartbeats in 300 s", beats.len());
    let gaps = beats.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap());
    assert!(gaps.max().unwrap() <= Duration::from_secs(11));
}

#[test]
fn one_change_costs_one_write_and_no_look_at_the_rest() {
    let mut world = quiet_world();
    let (steps, observations) = (world.applied_steps, world.observations);
    let mut row = world.tables.peers.values().next().unwrap().clone();
    row.bars = gatepost::model::Bars::DEVICE_STATUS;
    let rows = gatepost::model::ChangedRows {
        peers: [(row.device_id, vec![row.clone()])].into(),
        memberships: std::collections::BTreeMap::new(),
        policies: std::collections::BTreeMap::new(),
        taken_at: world.now().wall,
    };
    world.tables.peers.insert(row.id, row);
    let actions = world.machine.handle(Event::Notified, world.now());
    assert!(matches!(actions[..], [Action::Read(_)]));
    world.read = Some(world.tables.clone());
    world.tell(Event::Read(Ok(ReadAnswer::Changed(rows))));
    world.settle();
    assert!(world.kernel_equals_database());
    // The peer goes, its profile (it may ask the DNS server), and its flows.
    assert_eq!(world.applied_steps - steps, 3);
    assert_eq!(world.observations, observations);
    world.pass_time(Duration::from_secs(1));
    let audit: Vec<_> = world.reports.iter().flat_map(|report| &report.audit).collect();
    assert!(audit.iter().any(|entry| entry.event == AuditEvent::PeerRevoked), "{audit:?}");
}

#[test]
fn a_storm_of_notifications_makes_one_pass_and_one_pending() {
    let mut world = quiet_world();
    let mut reads = 0;
    for _ in 0..10_000 {
        let actions = world.machine.handle(Event::Notified, world.now());
        reads += actions.iter().filter(|action| matches!(action, Action::Read(_))).count();
    }
    assert_eq!(reads, 1, "the first read is under way, one more is pending");
}

#[test]
fn an_emptied_table_waits_for_a_word_and_small_changes_do_not() {
    let mut world = quiet_world();
    let kept = world.kernel.state.peers.clone();
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(120));
    assert_eq!(world.kernel.state.peers, kept);
    let held = |note: &&Note| matches!(note, Note::HeldBack(_));
    assert_eq!(world.notes.iter().filter(held).count(), 1, "said once");
    world.reports.clear();
    world.pass_time(Duration::from_secs(60));
    assert!(world.reports.iter().all(|report| report.synced_as_of.is_none()), "no lie meanwhile");
    world.tell(Event::ConfirmRemovals);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel.state.peers.is_empty());
}

#[test]
fn a_lost_notification_is_found_by_the_safety_poll() {
    let mut world = quiet_world();
    let mut row = world.tables.peers.values().next().unwrap().clone();
    row.bars = gatepost::model::Bars::USER_DELETED;
    world.tables.peers.insert(row.id, row);
    assert!(!world.kernel_equals_database());
    world.pass_time(Duration::from_secs(11));
    assert!(world.kernel_equals_database());
}

#[test]
fn a_database_that_stays_away_changes_nothing_until_stale_says_so() {
    let mut world = quiet_world();
    let before: ObservedState = world.kernel.state.clone();
    world.database_up = false;
    world.tell(Event::Disconnected { error: "gone".into() });
    world.pass_time(Duration::from_secs(7_200));
    assert_eq!(world.kernel.state, before);
}

#[test]
fn rows_restored_after_they_went_stale_let_nobody_in() {
    let stale = StaleOptions { policy: StalePolicy::Down, after: Duration::from_secs(5) };
    let mut world =
        World::with(MachineOptions { stale, ..options() }, quiet_tables(), ModelKernel::default());
    world.database_up = false;
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(10));
    let rows = Box::new(world.tables.snapshot());
    world.tell(Event::Restored(rows, Vec::new()));
    world.pass_time(Duration::from_secs(10));
    assert!(world.kernel.state.peers.is_empty());
    world.database_up = true;
    world.pass_time(Duration::from_secs(60));
    assert!(world.kernel_equals_database());
}
