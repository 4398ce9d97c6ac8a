//! Whom the host blocks stays out, whatever the database says and whatever fails.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::model::{
    Block, BlockList, DesiredState, DeviceId, GatewayId, LinkOwner, PeerId, PublicKey, UserId, Whom,
};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::status::{PeerState, State};
use gatepost::reconcile::{Action, Event, Machine, MachineOptions, Obstacle};
use gatepost::store::AuditEvent;
use proptest::prelude::*;

use super::incremental::{assert_same, change, make};
use super::rows::{id, local, tables};
use super::world::{Trouble, World, away, options, quiet_tables, quiet_world};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

fn list(whom: impl IntoIterator<Item = Whom>) -> BlockList {
    let block = Block { name: "".into(), since: SystemTime::UNIX_EPOCH };
    whom.into_iter().map(|whom| (whom, block.clone())).collect()
}

/// From now on the host blocks these and no others.
pub fn block(world: &mut World, whom: impl IntoIterator<Item = Whom>) {
    world.block_list = Arc::new(list(whom));
    world.tell(Event::Blocks(world.block_list.clone()));
    world.settle();
}

fn address(number: u8) -> Whom {
    Whom::Address(format!("10.64.0.{}", number + 1).parse().unwrap())
}

fn is_present(world: &World, number: u8) -> bool {
    world.kernel.state.peers.contains_key(&key(number))
}

/// What each kind of block says of the peer of this number.
fn each_kind(number: u8) -> [Whom; 4] {
    let (user, device) = (UserId(id(4, number)), DeviceId(id(3, number)));
    [Whom::User(user), Whom::Device(device), Whom::Key(key(number)), address(number)]
}

#[test]
fn blocked_peer_goes_at_once_while_the_database_is_away_and_comes_back_when_unblocked() {
    for whom in each_kind(1) {
        let mut world = quiet_world();
        world.database_up = false;
        world.tell(Event::Disconnected { error: away() });
        world.pass_time(SECOND);
        world.block_list = Arc::new(list([whom]));
        world.tell(Event::Blocks(world.block_list.clone()));
        let applies = |action: &Action| matches!(action, Action::Apply(..));
        assert!(world.queue.iter().any(applies), "no reading is waited for");
        world.settle();
        assert!(!is_present(&world, 1), "{whom}");
        assert_eq!(world.kernel.state.peers.len(), 19);
        let peer = &world.machine.view().peers()[0];
        assert!(matches!(peer.state, PeerState::Blocked { .. }), "{:?}", peer.state);
        assert!(matches!(world.machine.view().status().state, State::Degraded { .. }));
        block(&mut world, []);
        assert!(is_present(&world, 1), "{whom}");
        world.database_up = true;
        world.pass_time(MINUTE);
        assert!(world.kernel_equals_database());
        let audited = |event| {
            let entries = world.reports.iter().flat_map(|report| &report.audit);
            entries.filter(|entry| entry.event == event).count()
        };
        assert_eq!(audited(AuditEvent::PeerBlocked), 1);
        assert_eq!(audited(AuditEvent::PeerRevoked), 1);
        assert_eq!(audited(AuditEvent::PeerUnblocked), 1);
    }
}

#[test]
fn block_is_not_in_force_while_its_peer_is_being_added() {
    for whom in each_kind(1) {
        let mut world = quiet_world();
        world.revoke([1]);
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        assert!(!is_present(&world, 1));
        world.restore_all();
        world.tell(Event::Notified);
        while !matches!(world.queue.front(), Some(Action::Apply(..))) {
            let action = world.queue.pop_front().unwrap();
            world.carry_out(action);
        }
        world.block_list = Arc::new(list([whom]));
        world.tell(Event::Blocks(world.block_list.clone()));
        assert_eq!(world.machine.view().blocks_are_in_force(), Some(false), "{whom}");
        let adds = world.queue.pop_front().unwrap();
        world.carry_out(adds);
        assert!(is_present(&world, 1), "the plan adds it");
        assert_eq!(world.machine.view().blocks_are_in_force(), Some(false), "{whom}");
        world.settle();
        assert!(!is_present(&world, 1));
        assert_eq!(world.machine.view().blocks_are_in_force(), Some(true), "{whom}");
    }
}

#[test]
fn no_row_lifts_a_block() {
    for whom in each_kind(1) {
        let mut world = quiet_world();
        block(&mut world, [whom]);
        world.tables.peers.get_mut(&PeerId(id(2, 1))).unwrap().device_name = "other".into();
        world.tell(Event::Notified);
        world.tell(Event::Resync);
        world.pass_time(MINUTE);
        assert!(!is_present(&world, 1), "{whom}");
        // Put back by hand, and its row is gone: that is no reason to keep it.
        world.kernel.state = quiet_world().kernel.state;
        world.tell(Event::KernelChanged { why: "wg set".into() });
        world.pass_time(SECOND);
        assert!(!is_present(&world, 1), "{whom}");
    }
}

#[test]
fn blocked_peer_is_not_held_back() {
    let mut tables = quiet_tables(20);
    tables.peers.values_mut().for_each(|row| row.user_id = UserId(id(4, 1)));
    let mut world = World::new(tables, ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(SECOND);
    assert_eq!(world.kernel.state.peers.len(), 20);
    block(&mut world, [Whom::User(UserId(id(4, 1)))]);
    assert!(world.kernel.state.peers.is_empty());
    assert!(world.machine.view().held_back().is_none());
}

#[test]
fn held_peer_without_a_row_goes_when_its_key_or_address_is_blocked() {
    for whom in [Whom::Key(key(1)), address(1)] {
        let mut world = quiet_world();
        world.tables.peers.clear();
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        assert_eq!(world.machine.view().held_back().unwrap().removals, 20);
        block(&mut world, [whom]);
        assert!(!is_present(&world, 1), "{whom}");
        assert_eq!(world.kernel.state.peers.len(), 19);
    }
}

#[test]
fn held_peer_without_a_row_goes_when_its_user_or_device_is_blocked_by_name() {
    for who in ["user-1", "user-1/laptop"] {
        let mut world = quiet_world();
        let former = world.tables.clone();
        world.tables.peers.retain(|_, row| row.user_id == UserId(id(4, 20)));
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        assert_eq!(world.machine.view().held_back().unwrap().removals, 19);
        let found = world.machine.view().block_list_with(who, SystemTime::UNIX_EPOCH);
        let (whom, list) = found.unwrap();
        let block = list.get(&whom).unwrap().clone();
        assert_eq!(world.machine.view().concerned_by(&whom, &block), ["user-1/laptop"]);
        world.block_list = Arc::new(list);
        world.tell(Event::Blocks(world.block_list.clone()));
        world.settle();
        assert!(!is_present(&world, 1), "{who}");
        assert_eq!(world.kernel.state.peers.len(), 19);
        world.tables = former;
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        assert!(!is_present(&world, 1), "{who}: its row came back");
        let (lifted, list) = world.machine.view().block_list_without(who).unwrap();
        assert_eq!((lifted, list.iter().count()), (whom, 0), "the key was blocked with it");
    }
}

#[test]
fn block_acts_although_the_gateways_row_or_the_link_is_wrong() {
    for whom in each_kind(1) {
        let mut world = quiet_world();
        world.troubles.insert(Trouble::GatewayRow);
        world.tell(Event::Resync);
        world.pass_time(SECOND);
        block(&mut world, [whom]);
        assert!(!is_present(&world, 1), "{whom}");
        assert_eq!(world.kernel.state.peers.len(), 19);

        let mut world = quiet_world();
        let link = world.kernel.state.interface.as_mut().unwrap();
        link.owner = LinkOwner::Ours(GatewayId(id(9, 9)));
        world.tell(Event::KernelChanged { why: "its alias was changed".into() });
        world.pass_time(SECOND);
        assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Plan(_))));
        block(&mut world, [whom]);
        world.pass_time(SECOND);
        assert!(!is_present(&world, 1), "{whom}");
    }
}

#[test]
fn agent_without_rows_withdraws_a_blocked_key_or_address() {
    for whom in [Whom::Key(key(1)), address(1)] {
        let kernel = quiet_world().kernel;
        let mut world = World::new(quiet_tables(20), kernel);
        world.database_up = false;
        world.tell(Event::Tick);
        world.pass_time(SECOND);
        block(&mut world, [whom]);
        world.pass_time(SECOND);
        assert!(!is_present(&world, 1), "{whom}");
        assert_eq!(world.kernel.state.peers.len(), 19);
    }
}

#[test]
fn agent_that_starts_with_a_block_list_never_admits_a_blocked_peer() {
    for whom in each_kind(1) {
        let options = MachineOptions { block_list: list([whom]), ..options() };
        let mut world = World::with(options, quiet_tables(20), ModelKernel::default());
        world.tell(Event::Tick);
        while let Some(action) = world.queue.pop_front() {
            world.carry_out(action);
            assert!(!is_present(&world, 1), "{whom}");
        }
        world.pass_time(SECOND);
        assert_eq!(world.kernel.state.peers.len(), 19);
        assert_eq!(world.machine.view().status().state, State::Ready);
    }
}

#[test]
fn unreadable_block_list_grants_nothing_and_withdraws_what_the_rows_withdraw() {
    let mut world = quiet_world();
    world.tables.peers.remove(&PeerId(id(2, 20)));
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    let block_list = BlockList::unreadable("the block list /x cannot be read".into());
    let unreadable = MachineOptions { block_list, ..options() };
    world.machine = Machine::new(unreadable, world.now());
    world.tables = quiet_tables(20);
    world.revoke([1]);
    world.queue.clear();
    world.read = None;
    world.tell(Event::Tick);
    world.pass_time(MINUTE);
    assert!(!is_present(&world, 20), "nothing is granted");
    assert!(!is_present(&world, 1), "a revocation acts");
    assert_eq!(world.kernel.state.peers.len(), 18);
    let State::NotReady { why } = world.machine.view().status().state else { panic!("ready") };
    assert!(why.contains("/x"), "{why}");
    let mut emergency = BlockList::unreadable("the block list /x cannot be read".into());
    let made = Block { name: "".into(), since: SystemTime::UNIX_EPOCH };
    emergency.add(Whom::Key(key(2)), made);
    world.tell(Event::Blocks(Arc::new(emergency)));
    world.settle();
    assert!(!is_present(&world, 2), "a block acts");
    block(&mut world, [Whom::Key(key(3))]);
    world.pass_time(MINUTE);
    assert!(is_present(&world, 20) && is_present(&world, 2) && !is_present(&world, 3));
    assert_eq!(world.machine.view().status().state, State::Ready);
}

fn whom() -> impl Strategy<Value = Whom> {
    prop_oneof![
        (0u8..5).prop_map(|number| Whom::User(UserId(id(4, number)))),
        (0u8..8).prop_map(|number| Whom::Device(DeviceId(id(3, number)))),
        (1u8..12).prop_map(|number| Whom::Key(key(number))),
        (0u8..32).prop_map(|number| Whom::Address(format!("10.64.0.{number}").parse().unwrap())),
        (0u8..4).prop_map(|n| Whom::Address(format!("192.168.{n}.9").parse().unwrap())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn blocks_between_deltas_equal_one_full_build(
        mut tables in tables(),
        rounds in prop::collection::vec(
            (prop::collection::vec(whom(), 0..3), prop::collection::vec(change(), 1..4)), 1..5,
        ),
    ) {
        let mut state = tables.build();
        for (blocked, changes) in rounds {
            let blocked = Arc::new(list(blocked));
            state.block(Arc::clone(&blocked));
            state.apply(make(&mut tables, &changes));
            let fresh = DesiredState::build_without(blocked.clone(), local(), tables.snapshot());
            let fresh = fresh.unwrap();
            assert_same(&state, &fresh);
            prop_assert!(state.blocked().eq(fresh.blocked()));
            for (key, peer) in state.peers() {
                prop_assert!(!blocked.bars_peer(key, &peer.allowed_ips));
            }
        }
    }
}

#[test]
fn peers_are_found_by_name_id_key_or_address_and_candidates_are_named() {
    let world = quiet_world();
    let whom = |who: &str| world.machine.view().whom(who).map(|(whom, _)| whom);
    let [user, device, by_key, by_address] = each_kind(1);
    assert_eq!(whom("User-1"), Ok(user));
    assert_eq!(whom(&id(4, 1).to_string()), Ok(user));
    assert_eq!(whom("user-1/laptop"), Ok(device));
    assert_eq!(whom(&id(2, 1).to_string()), Ok(device), "the id of its peer");
    assert_eq!(whom(&key(1).to_string()), Ok(by_key));
    assert_eq!(whom("10.64.0.2"), Ok(by_address));
    let several = whom("laptop").unwrap_err().to_string();
    assert!(several.contains("user-2/laptop") && several.contains("12 more"), "{several}");
    let unknown = whom("usr-12").unwrap_err().to_string();
    assert!(unknown.contains("user-12"), "{unknown}");
    let without_rows = World::new(quiet_tables(1), ModelKernel::default());
    let view = without_rows.machine.view();
    assert_eq!(view.whom("10.64.0.2").map(|(whom, _)| whom), Ok(by_address));
    assert!(view.whom("user-1").unwrap_err().to_string().contains("no row was read"));
    assert!(view.block_list_without("user-1").unwrap_err().to_string().contains("is not blocked"));
}
