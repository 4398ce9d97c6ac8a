//! `[stale]` is carried out whatever else fails, and takes nobody who is connected by mistake.

use std::time::Duration;

use gatepost::model::{LinkOwner, Mark, PublicKey, Traffic};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::status::State;
use gatepost::reconcile::{
    Event, Keep, LastGood, Machine, MachineOptions, Note, Provenance, StaleOptions, StalePolicy,
};

use super::machine::Happening;
use super::world::{Trouble, World, away, options, quiet_tables, restored};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

fn with_policy(policy: StalePolicy, after: Duration, kernel: ModelKernel) -> World {
    let options = MachineOptions { stale: StaleOptions { policy, after }, ..options() };
    World::with(options, quiet_tables(20), kernel)
}

fn stale_world(policy: StalePolicy, after: Duration) -> World {
    let mut world = with_policy(policy, after, ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(SECOND);
    assert!(world.kernel_equals_database());
    world
}

fn said(world: &World, note: fn(&Note) -> bool) -> usize {
    world.notes.iter().filter(|it| note(it)).count()
}

fn present(world: &World) -> Vec<PublicKey> {
    world.kernel.state.peers.keys().copied().collect()
}

fn lose_database(world: &mut World) {
    world.database_up = false;
    world.tell(Event::Disconnected { error: away() });
}

/// A peer has just shaken hands.
fn shake_hands(world: &mut World, number: u8) {
    let last_handshake = Some(world.now().wall);
    world.traffic.insert(key(number), Traffic { last_handshake, ..Traffic::default() });
}

#[test]
fn a_database_that_connects_and_cannot_be_read_grows_stale() {
    let mut world = stale_world(StalePolicy::Down, MINUTE);
    world.troubles.insert(Trouble::Reads);
    world.pass_time(MINUTE / 2);
    assert_eq!(world.kernel.state.peers.len(), 20);
    world.pass_time(MINUTE);
    assert!(world.kernel.state.peers.is_empty());
    world.pass_time(HOUR);
    assert!(world.kernel.state.peers.is_empty(), "a connect alone lets nobody in");
    let stale = |note: &Note| matches!(note, Note::Stale { .. });
    assert_eq!(said(&world, stale), 1);
    world.troubles.clear();
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
}

#[test]
fn a_quiet_database_that_is_read_never_grows_stale() {
    let mut world = stale_world(StalePolicy::Down, 3 * SECOND);
    world.pass_time(HOUR);
    assert_eq!(world.kernel.state.peers.len(), 20);
}

#[test]
fn deny_new_keeps_out_peers_whose_session_ended() {
    let mut world = stale_world(StalePolicy::DenyNew, HOUR);
    shake_hands(&mut world, 1);
    shake_hands(&mut world, 2);
    lose_database(&mut world);
    for _ in 0..61 {
        world.pass_time(MINUTE);
        shake_hands(&mut world, 1);
        shake_hands(&mut world, 2);
    }
    assert_eq!(present(&world), [key(1), key(2)]);
    for _ in 0..5 {
        world.pass_time(MINUTE);
        shake_hands(&mut world, 1);
    }
    assert_eq!(present(&world), [key(1)]);
}

#[test]
fn rows_restored_after_they_went_stale_admit_no_peer() {
    let mut world = with_policy(StalePolicy::Down, 5 * SECOND, ModelKernel::default());
    world.database_up = false;
    world.tell(Event::Tick);
    world.pass_time(10 * SECOND);
    let rows = world.tables.snapshot();
    let provenance = Provenance::Sealed;
    world.tell(restored(LastGood { rows, changes: Vec::new(), provenance }));
    world.pass_time(10 * SECOND);
    assert!(world.kernel.state.peers.is_empty());
    world.database_up = true;
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
}

#[test]
fn deny_new_admits_no_peer_when_the_kernel_is_first_read_after_the_rows_went_stale() {
    let full = stale_world(StalePolicy::Keep, HOUR).kernel;
    for (kernel, connected) in [(ModelKernel::default(), vec![]), (full, vec![key(1)])] {
        let mut world = with_policy(StalePolicy::DenyNew, MINUTE, kernel);
        shake_hands(&mut world, 1);
        world.database_up = false;
        world.troubles.insert(Trouble::Observations);
        world.tell(Event::Tick);
        world.pass_time(SECOND);
        let (rows, provenance) = (world.tables.snapshot(), Provenance::Sealed);
        world.tell(restored(LastGood { rows, changes: Vec::new(), provenance }));
        world.pass_time(2 * MINUTE);
        shake_hands(&mut world, 1);
        world.troubles.clear();
        world.pass_time(MINUTE);
        assert_eq!(present(&world), connected);
        world.database_up = true;
        world.pass_time(MINUTE);
        assert!(world.kernel_equals_database());
    }
}

#[test]
fn rows_without_a_checksum_withdraw_and_grant_nothing() {
    let kernel = stale_world(StalePolicy::Keep, HOUR).kernel;
    let mut world = with_policy(StalePolicy::Keep, HOUR, kernel);
    world.kernel.state.peers.remove(&key(1));
    world.database_up = false;
    world.revoke([2]);
    world.tell(Event::Tick);
    world.pass_time(SECOND);
    let rows = world.tables.snapshot();
    let provenance = Provenance::Unsealed;
    world.tell(restored(LastGood { rows, changes: Vec::new(), provenance }));
    world.pass_time(MINUTE);
    let wanted: Vec<_> = (3..=20).map(key).collect();
    assert_eq!(present(&world), wanted);
    let State::NotReady { why } = world.machine.view().status().state else { panic!("ready") };
    assert!(why.contains("no checksum"), "{why}");
    world.database_up = true;
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
    assert_eq!(world.machine.view().status().state, State::Ready);
}

#[test]
fn rows_that_cannot_be_built_grow_stale_like_those_that_cannot_be_read() {
    for (policy, stay) in [(StalePolicy::Down, &[][..]), (StalePolicy::DenyNew, &[key(1)])] {
        let mut world = stale_world(policy, MINUTE);
        world.troubles.insert(Trouble::GatewayRow);
        world.tell(Event::Resync);
        world.pass_time(MINUTE / 2);
        assert_eq!(present(&world).len(), 20);
        shake_hands(&mut world, 1);
        world.kept.clear();
        world.pass_time(MINUTE);
        assert_eq!(present(&world), stay);
        assert_eq!(world.kept, [], "rows that cannot be built are not the last good ones");
        world.reports.clear();
        world.happen(Happening::FlushFirewall);
        world.pass_time(MINUTE);
        assert!(world.kernel.state.firewall.is_some(), "the guard of those who stay is put back");
        assert!(world.reports.iter().all(|report| report.synced_as_of.is_none()));
        world.troubles.clear();
        world.pass_time(MINUTE);
        assert!(world.kernel_equals_database());
    }
}

#[test]
fn an_agent_without_rows_follows_the_stale_policy() {
    for trouble in [None, Some(Trouble::GatewayRow)] {
        for (policy, stay) in
            [(StalePolicy::Keep, 20), (StalePolicy::DenyNew, 2), (StalePolicy::Down, 0)]
        {
            let before = stale_world(StalePolicy::Keep, HOUR);
            let kernel = before.kernel.clone();
            let mut world = with_policy(policy, MINUTE, kernel);
            world.troubles.extend(trouble);
            world.database_up = trouble.is_some();
            shake_hands(&mut world, 1);
            world.tell(Event::Tick);
            world.pass_time(59 * SECOND);
            assert_eq!(world.kernel, before.kernel);
            // Nobody has looked at the kernel since.
            shake_hands(&mut world, 2);
            world.pass_time(SECOND);
            assert_eq!(present(&world).len(), stay, "{policy:?}");
            let link = world.kernel.state.interface.as_ref().unwrap();
            assert!(link.up && link.public_key.is_some(), "nothing but peers is taken");
            shake_hands(&mut world, 1);
            world.pass_time(MINUTE);
            assert_eq!(present(&world).len(), stay, "{policy:?}");
            let withdrawn = said(&world, |note| matches!(note, Note::Withdrawn { .. }));
            assert_eq!(withdrawn, usize::from(policy != StalePolicy::Keep));
            world.database_up = true;
            world.troubles.clear();
            world.pass_time(MINUTE);
            assert!(world.kernel_equals_database());
        }
    }
}

#[test]
fn without_a_reading_no_peer_counts_as_disconnected() {
    let kernel = stale_world(StalePolicy::Keep, HOUR).kernel;
    let mut world = with_policy(StalePolicy::DenyNew, HOUR, kernel.clone());
    world.database_up = false;
    shake_hands(&mut world, 1);
    world.tell(Event::Tick);
    world.pass_time(MINUTE);
    // From here on it can be written to, and not read. All who were seen alive go on.
    world.troubles.insert(Trouble::Observations);
    world.pass_time(2 * HOUR);
    assert_eq!(world.kernel, kernel, "nobody knows who is connected");
    shake_hands(&mut world, 2);
    world.troubles.clear();
    world.pass_time(2 * MINUTE);
    assert_eq!(present(&world), [key(2)]);
}

#[test]
fn a_link_that_is_not_evidently_ours_keeps_its_peers_when_no_row_was_ever_read() {
    let mut kernel = stale_world(StalePolicy::Keep, HOUR).kernel;
    kernel.state.interface.as_mut().unwrap().public_key = Some(key(99));
    let mut world = with_policy(StalePolicy::Down, MINUTE, kernel.clone());
    world.database_up = false;
    world.tell(Event::Tick);
    world.pass_time(HOUR);
    assert_eq!(world.kernel, kernel);
}

#[test]
fn deny_new_keeps_peers_that_connected_since_the_last_reading() {
    let mut world = stale_world(StalePolicy::DenyNew, 65 * SECOND);
    lose_database(&mut world);
    world.pass_time(63 * SECOND);
    let observations = world.observations;
    shake_hands(&mut world, 1);
    world.pass_time(2 * SECOND);
    assert_eq!(present(&world), [key(1)]);
    assert!(world.observations > observations, "the kernel was read for it");
}

#[test]
fn rows_that_wait_for_a_word_are_not_kept_because_they_grow_stale() {
    let mut world = stale_world(StalePolicy::Down, MINUTE);
    world.kept.clear();
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    assert_eq!(world.kept, [Keep::Later]);
    lose_database(&mut world);
    world.pass_time(2 * MINUTE);
    assert_eq!(present(&world), []);
    assert_eq!(world.kept, [Keep::Later]);
    world.tables.peers = quiet_tables(20).peers;
    world.database_up = true;
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
    assert_eq!(world.kept.last(), Some(&Keep::All));
}

#[test]
fn no_step_of_the_wall_clock_ends_a_session_or_begins_one() {
    for set_secs in [7_200, -7_200, -900_000] {
        let mut world = stale_world(StalePolicy::DenyNew, 10 * MINUTE);
        world.pass_time(MINUTE);
        shake_hands(&mut world, 1);
        world.pass_time(MINUTE);
        world.reports.clear();
        world.clock_set_secs = set_secs;
        world.pass_time(MINUTE);
        shake_hands(&mut world, 1);
        world.pass_time(MINUTE);
        let told: Vec<_> = world.reports.iter().flat_map(|report| &report.audit).collect();
        assert!(told.is_empty(), "set by {set_secs} s: {told:?}");
        let now = world.database_now();
        for handshake in world.reports.iter().flat_map(|report| report.handshakes.values()) {
            let age = now.duration_since(handshake.seen_at).unwrap();
            assert!(age <= 2 * MINUTE, "set by {set_secs} s: seen {age:?} ago");
        }
        lose_database(&mut world);
        for minute in 0..12 {
            world.clock_set_secs = if minute % 2 == 0 { 0 } else { set_secs };
            world.pass_time(MINUTE);
            shake_hands(&mut world, 1);
        }
        assert_eq!(present(&world), [key(1)], "set by {set_secs} s");
        world.clock_set_secs = -set_secs;
        world.pass_time(5 * MINUTE);
        assert!(present(&world).is_empty(), "set by {set_secs} s: the session has ended");
    }
}

#[test]
fn without_any_rows_a_table_denies_everything_and_ready_says_why() {
    let linked = stale_world(StalePolicy::Keep, HOUR).kernel;
    let mut flushed = linked.clone();
    flushed.state.firewall = None;
    for (kernel, names) in [(ModelKernel::default(), 0), (flushed, 20), (linked, 20)] {
        let had = kernel.state.firewall.clone();
        let mut world = with_policy(StalePolicy::Keep, HOUR, kernel);
        world.database_up = false;
        world.tell(Event::Tick);
        world.pass_time(SECOND);
        let table = world.kernel.state.firewall.clone().expect("a table is there");
        assert!(table.guards("gatepost0"));
        match had {
            None => assert!(table.assignments().is_empty() && table.profiles().is_empty()),
            Some(had) => assert_eq!(table, had, "what judges packets stays"),
        }
        assert_eq!(world.kernel.state.peers.len(), names, "no peer is touched");
        let State::NotReady { why } = world.machine.view().status().state else {
            panic!("it does not say why")
        };
        assert!(why.contains("no last good rows"), "{why}");
        world.database_up = true;
        world.pass_time(MINUTE);
        assert!(world.kernel_equals_database());
        assert_eq!(world.machine.view().status().state, State::Ready);
    }
    // A link of another program has the name: its packets are not ours to judge.
    let mut world = with_policy(StalePolicy::Keep, HOUR, ModelKernel::default());
    let state = stale_world(StalePolicy::Keep, HOUR).kernel.state;
    let mut link = state.interface.unwrap();
    link.owner = LinkOwner::Foreign("bridge".into());
    world.kernel.state.interface = Some(link);
    world.database_up = false;
    world.tell(Event::Tick);
    world.pass_time(SECOND);
    assert_eq!(world.kernel.state.firewall, None);
}

#[test]
fn no_peer_comes_back_from_last_good_rows_that_lack_its_withdrawal() {
    let mut world = stale_world(StalePolicy::Keep, HOUR);
    let rows = world.tables.snapshot();
    // The gateway's row cannot be used, so what is read with it is not kept.
    world.troubles.insert(Trouble::GatewayRow);
    world.tell(Event::Resync);
    world.pass_time(SECOND);
    world.revoke([1]);
    let ids = Some(vec![super::rows::id(3, 1)]);
    let mark = Mark { xid: 1, kind: "device".into(), ids };
    world.marks.push((mark, world.database_now()));
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    assert!(!present(&world).contains(&key(1)));
    // As after a reboot, without the database.
    world.database_up = false;
    let withdrawals = world.remembered.clone();
    let stale = StaleOptions { policy: StalePolicy::Keep, after: HOUR };
    let options = MachineOptions { withdrawals, stale, ..options() };
    world.machine = Machine::new(options, world.now());
    (world.kernel, world.read, world.announced) = (ModelKernel::default(), None, false);
    world.queue.clear();
    let provenance = Provenance::Sealed;
    world.last_good = Some(LastGood { rows, changes: Vec::new(), provenance });
    world.tell(Event::Tick);
    world.pass_time(MINUTE);
    let others: Vec<_> = (2..=20).map(key).collect();
    assert_eq!(present(&world), others);
    // The database decides, once it can be read.
    world.troubles.clear();
    world.restore_all();
    world.database_up = true;
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
}
