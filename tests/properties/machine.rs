//! Whole lives of an agent, simulated: commits, lost notifications, a lost database, a meddling
//! neighbour, kills, and whatever may fail. The kernel must end equal to the database, and no report
//! may claim it early.

use std::time::Duration;

use gatepost::model::{BlockList, ObservedState, PeerId, PeerRow};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::{Action, Event, Machine, MachineOptions};
use gatepost::store::AuditEvent;
use proptest::prelude::*;

use super::rows::{id, peer_row, tables};
use super::world::{Trouble, World, away, options, quiet_world};

#[derive(Debug, Clone)]
pub enum Happening {
    Commit(Box<PeerRow>, bool),
    Delete(u8),
    LoseLink,
    FlushFirewall,
    ForgetPeers,
    DatabaseGone(u64),
    Trouble(Trouble, u64),
    Kill,
    /// So many actions are carried out, and the rest waits.
    Act(u8),
    Pause(u64),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop::sample::select(vec![
        Trouble::Reads,
        Trouble::Observations,
        Trouble::GatewayRow,
        Trouble::Steps,
    ])
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        5 => (peer_row(), any::<bool>()).prop_map(|(row, notify)| Happening::Commit(Box::new(row), notify)),
        2 => (0u8..12).prop_map(Happening::Delete),
        1 => Just(Happening::LoseLink),
        1 => Just(Happening::FlushFirewall),
        1 => Just(Happening::ForgetPeers),
        1 => (1u64..100).prop_map(Happening::DatabaseGone),
        2 => (trouble(), 1u64..100_000).prop_map(|(what, millis)| Happening::Trouble(what, millis)),
        1 => Just(Happening::Kill),
        4 => (1u8..4).prop_map(Happening::Act),
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
                self.tables.peers.remove(&PeerId(id(2, number)));
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
                self.tell(Event::Disconnected { error: away() });
                self.pass_time(Duration::from_secs(secs));
                self.database_up = true;
            }
            // Until it is over by itself, or something else happens and time goes by.
            Happening::Trouble(trouble, millis) => {
                self.troubles.insert(trouble);
                self.pass_time(Duration::from_millis(millis % 7_000));
                if millis > 20_000 {
                    self.troubles.clear();
                }
            }
            Happening::Kill => {
                let now = self.now();
                self.queue.clear();
                self.read = None;
                self.announced = false;
                let (withdrawals, stale) = (self.remembered.clone(), self.stale);
                let block_list = BlockList::clone(&self.block_list);
                let options = MachineOptions { withdrawals, stale, block_list, ..options() };
                self.machine = Machine::new(options, now);
                self.tell(Event::Tick);
            }
            Happening::Act(actions) => {
                for _ in 0..actions {
                    if let Some(action) = self.queue.pop_front() {
                        self.carry_out(action);
                    }
                }
            }
            Happening::Pause(millis) => self.pass_time(Duration::from_millis(millis)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn whatever_happens_the_kernel_ends_equal_and_no_report_was_false(
        first in tables(), happenings in prop::collection::vec(happening(), 0..12),
    ) {
        let mut world = World::new(first, ModelKernel::default());
        world.tell(Event::Tick);
        for happening in happenings {
            world.happen(happening);
        }
        world.troubles.clear();
        world.pass_time(Duration::from_secs(60));
        prop_assert!(world.kernel_equals_database(), "obstacle: {:?}", world.machine.view().obstacle());
    }
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
    world.revoke([1]);
    world.tell(Event::Notified);
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
fn a_lost_notification_is_found_by_the_safety_poll() {
    let mut world = quiet_world();
    world.revoke([1]);
    assert!(!world.kernel_equals_database());
    world.pass_time(Duration::from_secs(11));
    assert!(world.kernel_equals_database());
}

#[test]
fn a_database_that_stays_away_changes_nothing_until_stale_says_so() {
    let mut world = quiet_world();
    let before: ObservedState = world.kernel.state.clone();
    world.database_up = false;
    world.tell(Event::Disconnected { error: away() });
    world.pass_time(Duration::from_secs(7_200));
    assert_eq!(world.kernel.state, before);
}
