//! What one change costs beside many peers: as much as beside few, also while removals are held back,
//! rows cannot be used, or the kernel refuses a profile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost::dataplane::{Outcome, Reading};
use gatepost::model::{
    BarredBy, DeviceId, KeyText, ObservedState, PeerId, PeerRow, PolicyRow, PublicKey,
    SnapshotRows, Unloadable, UserId,
};
use gatepost::plan::Step;
use gatepost::reconcile::{
    Action, DeviceStandings, Event, Machine, MachineOptions, Mode, Now, ReadAnswer, ReadKind, Sent,
};
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use super::rows::{NOW_SECS, allowing, at, gateway, support};
use super::world::options;

const FEW: u32 = 400;
const MANY: u32 = 40 * FEW;
/// A look at every peer would cost forty times as much.
const MOST_TIMES: f64 = 4.0;
/// Other processes take the processor's caches away for a while, which can only make a change dearer: the
/// least of several times counts.
const LEAST_ROUNDS: usize = 2;
const MOST_ROUNDS: usize = 8;
const CHANGES: u32 = 15;
/// Peers that stay as they are; the first of them are changed.
const SOUND: u32 = 50;

/// What is wrong with all other peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// Their users are not active any more.
    Held,
    /// Their addresses are outside the gateway's network.
    Unusable,
    /// The kernel refuses their profile.
    Refused,
}

/// An agent, its rows, and a kernel.
struct Agent {
    machine: Machine,
    rows: SnapshotRows,
    changed: Vec<PeerRow>,
    changed_policies: Vec<PolicyRow>,
    kernel: ObservedState,
    /// The next change of the firewall is refused for its profiles.
    refuses: bool,
    now: Now,
    /// The processor time of what the agent decided.
    spent: Duration,
}

impl Agent {
    fn new(peers: u32, wrong: Wrong) -> Self {
        let now = Now { instant: Instant::now(), wall: at(NOW_SECS) };
        let all = || 1..=peers;
        let mut rows = support::snapshot(all().map(row).collect());
        rows.gateway = gateway();
        rows.gateway.vpn_cidr = "10.64.0.0/12".parse().unwrap();
        rows.taken_at = now.wall;
        let mut policy = allowing(1, "172.16.0.0/24", []);
        policy.targets =
            all().map(|it| support::target(gatepost::model::TargetType::User, id(it))).collect();
        rows.policies = vec![policy];
        let machine = Machine::new(MachineOptions { ..options() }, now);
        let (kernel, spent) = (ObservedState::default(), Duration::ZERO);
        let mut agent = Self {
            machine,
            rows,
            changed: Vec::new(),
            changed_policies: Vec::new(),
            kernel,
            refuses: false,
            now,
            spent,
        };
        if wrong == Wrong::Unusable {
            agent.spoil(|row| row.assigned_ip = "172.20.0.0/32".parse().unwrap());
        }
        agent.tell(Event::Tick);
        match wrong {
            Wrong::Nothing | Wrong::Unusable => {}
            Wrong::Held => {
                agent.spoil(|row| row.bars = BarredBy::USER_INACTIVE);
                agent.changed = agent.rows.peers[SOUND as usize..].to_vec();
                agent.notify();
                let held = agent.machine.view().held().peers().len();
                assert_eq!(held, (peers - SOUND) as usize);
            }
            Wrong::Refused => {
                let mut policy = allowing(2, "172.16.1.0/24", []);
                policy.targets = (SOUND + 1..=peers)
                    .map(|it| support::target(gatepost::model::TargetType::User, id(it)))
                    .collect();
                agent.changed_policies.push(policy);
                agent.refuses = true;
                agent.notify();
                assert!(!agent.refuses, "nothing was refused");
                assert_eq!(agent.machine.view().status().quarantined_policies.len(), 2);
            }
        }
        agent
    }

    fn spoil(&mut self, spoil: impl Fn(&mut PeerRow)) {
        self.rows.peers.iter_mut().skip(SOUND as usize).for_each(spoil);
    }

    /// Rows changed, a second after the last ones.
    fn notify(&mut self) {
        self.now.instant += Duration::from_secs(1);
        self.now.wall += Duration::from_secs(1);
        self.tell(Event::Notified);
    }

    /// Tells it something and carries out what follows.
    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            let actions = self.machine.handle(event, self.now);
            let after = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
            self.spent += Duration::from(after) - Duration::from(before);
            events.extend(actions.into_iter().filter_map(|action| self.carry_out(action)));
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Connect => Event::Connected { mode: Mode::Listen },
            Action::Restore => Event::NothingRestored,
            Action::Read(kind) => Event::Read(Ok(self.read(kind))),
            Action::AskMarks { epoch, .. } => {
                Event::MarksAnswered { epoch, lost: Ok(Default::default()) }
            }
            Action::AskDevices(_) => Event::DevicesAnswered(Ok(DeviceStandings::default())),
            Action::Observe => {
                let state = self.kernel.clone();
                Event::Observed(Ok(Box::new(Reading { state, ..Reading::default() })))
            }
            Action::Glance => return None,
            Action::Apply(plan, observed) => {
                let mut outcome = Outcome::default();
                for step in plan.steps() {
                    if let Step::Firewall { change, .. } = step
                        && std::mem::take(&mut self.refuses)
                    {
                        let refused = change.put_profiles.values().map(|(_, profile)| Unloadable {
                            profile: Arc::clone(profile),
                            why: "too large".into(),
                            remedy: "",
                        });
                        outcome.unloadable.extend(refused);
                        continue;
                    }
                    observed.apply(step);
                    outcome.applied += 1;
                }
                self.kernel = observed.read().clone();
                Event::Applied(outcome)
            }
            Action::Report(_) => Event::Reported(Sent::default()),
            Action::Keep(..) | Action::Remember(_) | Action::Say(_) => return None,
        })
    }

    fn read(&mut self, kind: ReadKind) -> ReadAnswer {
        let taken_at = self.now.wall;
        if kind == ReadKind::Everything {
            return ReadAnswer::Everything(Box::new(SnapshotRows {
                taken_at,
                ..self.rows.clone()
            }));
        }
        let peers = self.changed.drain(..).map(|row| (row.device_id, vec![row]));
        let mut rows = support::no_changes(taken_at);
        rows.peers = peers.collect();
        let policies = self.changed_policies.drain(..).map(|policy| (policy.id, Some(policy)));
        rows.policies = policies.collect();
        ReadAnswer::Changed(rows)
    }

    /// The least processor time that a change took: a sound device is revoked or let in again.
    fn least(mut self) -> Duration {
        let changes = (0..CHANGES).map(|number| {
            let mut changed = row(1 + number / 2);
            let revokes = number % 2 == 0;
            changed.bars = if revokes { BarredBy::DEVICE_STATUS } else { BarredBy::default() };
            let KeyText::Key(key) = changed.public_key else { panic!("a key") };
            self.changed.push(changed);
            self.spent = Duration::ZERO;
            self.notify();
            assert_eq!(self.kernel.peers.contains_key(&key), !revokes, "change {number}");
            self.spent
        });
        changes.min().unwrap()
    }
}

fn id(number: u32) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

fn row(number: u32) -> PeerRow {
    let mut key = [0xB7; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    PeerRow {
        id: PeerId(id(number)),
        device_id: DeviceId(id(number)),
        user_id: UserId(id(number)),
        public_key: KeyText::Key(PublicKey::from_bytes(key).unwrap()),
        assigned_ip: std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a40_0001 + number)).into(),
        created_at: at(1),
        ..support::peer_row(1)
    }
}

#[test]
fn a_change_costs_the_same_beside_many_peers_whatever_is_wrong_with_them() {
    let mut wrong = Vec::new();
    for what in [Wrong::Nothing, Wrong::Held, Wrong::Unusable, Wrong::Refused] {
        let mut least = [Duration::MAX; 2];
        let close = (1..=MOST_ROUNDS).any(|round| {
            for (least, peers) in least.iter_mut().zip([FEW, MANY]) {
                *least = Agent::new(peers, what).least().min(*least);
            }
            let [few, many] = least;
            let times = many.as_secs_f64() / few.as_secs_f64();
            println!("{what:?}: {few:?} beside {FEW}, {many:?} beside {MANY}: {times:.1} times");
            round >= LEAST_ROUNDS && times <= MOST_TIMES
        });
        if !close {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
