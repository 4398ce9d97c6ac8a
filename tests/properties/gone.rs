//! Held peers whose rows are gone: which words about them still act.

use std::time::Duration;

use gatepost::model::{
    AuditEvent, BarredBy, DeviceId, Effect, KeyText, PeerId, PeerRow, PolicyId, PolicyRow,
    SettingRow, TargetRow, TargetType,
};
use gatepost::reconcile::{Event, LastGood, Provenance};

use super::guard::{held_back, key, reaches, world_of};
use super::held::waiting;
use super::machine::Happening;
use super::rows::id;
use super::trouble::audited;
use super::world::World;

#[test]
fn held_peer_whose_key_was_replaced_goes_when_its_device_is_revoked() {
    let mut world = world_of(28, "172.16.0.0/24");
    let mut row = world.tables.peers[&PeerId(id(2, 3))].clone();
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.kernel.state.peers.len(), 28);
    row.public_key = KeyText::Key(key(99));
    row.bars = BarredBy::DEVICE_STATUS;
    world.tables.peers.insert(row.id, row);
    world.tell(Event::Notified);
    world.settle();
    assert!(!world.kernel.state.peers.contains_key(&key(3)));
    assert_eq!(waiting(&world), Some(27));
}

#[test]
fn held_peer_without_a_row_goes_when_its_device_is_revoked() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(10));
    assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(28)));
    let revoke = |world: &mut World, number| {
        world.revoked_devices.insert(DeviceId(id(3, number)));
        world.pass_time(Duration::from_secs(1));
    };
    revoke(&mut world, 3);
    assert!(!world.kernel.state.peers.contains_key(&key(3)));
    assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (27, Some(27)));
    let told = audited(&world, AuditEvent::PeerRevoked);
    assert_eq!(told.len(), 1, "{told:?}");
    // It is asked again after a database that is away, and by an agent that was restarted.
    world.happen(Happening::DatabaseGone(30));
    revoke(&mut world, 4);
    world.pass_time(Duration::from_secs(60));
    assert!(!world.kernel.state.peers.contains_key(&key(4)));
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(5));
    assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (26, Some(26)));
    revoke(&mut world, 5);
    assert!(!world.kernel.state.peers.contains_key(&key(5)));
    assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (25, Some(25)));
}

/// So many peers that are held without a row.
fn holding(peers: u8) -> World {
    let mut world = world_of(peers, "172.16.0.0/24");
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(10));
    let peers = usize::from(peers);
    assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (peers, Some(peers as u64)));
    world
}

/// The database bars the devices of these peers, and no others: how many peers are left.
fn bar(world: &mut World, numbers: impl IntoIterator<Item = u8>) -> usize {
    world.barred_devices = numbers.into_iter().map(|number| DeviceId(id(3, number))).collect();
    world.pass_time(Duration::from_secs(10));
    world.kernel.state.peers.len()
}

#[test]
fn few_devices_that_are_barred_take_out_held_peers_without_a_row_and_many_wait() {
    for (peers, barred, left) in [(28, 1, 27), (28, 10, 18), (28, 11, 28), (8, 4, 4), (8, 5, 8)] {
        let mut world = holding(peers);
        assert_eq!(bar(&mut world, 1..=barred), left, "{barred} of {peers}");
        let told = audited(&world, AuditEvent::PeerRevoked);
        assert_eq!(told.len(), usize::from(peers) - left, "{told:?}");
        // What was said already is no news, also not to the next agent, and another word is.
        world.happen(Happening::Kill);
        assert_eq!(bar(&mut world, 1..=barred), left, "{barred} of {peers}");
        let left = left - 1;
        assert_eq!(bar(&mut world, 1..=barred + 1), left, "{barred} of {peers}");
        // Who waits is revoked as before.
        world.revoked_devices.insert(DeviceId(id(3, 1)));
        let waited = usize::from(world.kernel.state.peers.contains_key(&key(1)));
        assert_eq!(bar(&mut world, 1..=barred + 1), left - waited, "{barred} of {peers}");
    }
}

#[test]
fn devices_that_were_barred_at_once_wait_when_they_are_told_one_after_the_other_again() {
    let mut world = holding(28);
    assert_eq!(bar(&mut world, 1..=14), 28);
    // What is known of the devices goes, and comes back in parts.
    let devices = std::mem::take(&mut world.devices);
    world.pass_time(Duration::from_secs(5));
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(5));
    for (id, user) in devices {
        world.devices.insert(id, user);
        world.pass_time(Duration::from_secs(2));
    }
    assert_eq!(world.kernel.state.peers.len(), 28);
    // Some are put right, and one of them is barred again.
    assert_eq!(bar(&mut world, 5..=14), 28);
    assert_eq!(bar(&mut world, 4..=14), 27);
    assert!(!world.kernel.state.peers.contains_key(&key(4)));
}

#[test]
fn peers_that_the_guard_held_as_barred_wait_on_when_their_rows_go_one_after_the_other() {
    for restarts in [0, 1, 15] {
        let mut world = world_of(28, "172.16.0.0/24");
        for number in 1..=15 {
            let row = world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
            row.bars = BarredBy::USER_INACTIVE;
        }
        world.tell(Event::Notified);
        assert_eq!((bar(&mut world, 1..=15), waiting(&world)), (28, Some(15)));
        for number in 1..=15 {
            world.tables.peers.remove(&PeerId(id(2, number)));
            world.tell(Event::Notified);
            world.pass_time(Duration::from_secs(2));
            if number <= restarts {
                world.happen(Happening::Kill);
                world.pass_time(Duration::from_secs(2));
            }
        }
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(15)));
        // Some come back barred, and go again.
        for number in 1..=3 {
            let row = world_of(28, "172.16.0.0/24").tables.peers[&PeerId(id(2, number))].clone();
            let row = PeerRow { bars: BarredBy::USER_INACTIVE, ..row };
            for is_there in [true, false] {
                match is_there {
                    true => drop(world.tables.peers.insert(row.id, row.clone())),
                    false => drop(world.tables.peers.remove(&row.id)),
                }
                world.tell(Event::Notified);
                world.pass_time(Duration::from_secs(2));
            }
        }
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(15)));
        // Who is put right and then barred is barred by a new word.
        assert_eq!(bar(&mut world, 2..=15), 28);
        assert_eq!(bar(&mut world, 1..=15), 27);
        world.revoked_devices.insert(DeviceId(id(3, 2)));
        assert_eq!(bar(&mut world, 1..=15), 26);
    }
}

/// A policy that denies this user a network before all others.
fn denying(world: &World, user: u8, network: &str) -> PolicyRow {
    let (target_type, target_id) = (TargetType::User, id(4, user));
    PolicyRow {
        id: PolicyId(id(6, 2)),
        effect: Effect::Deny,
        priority: 0,
        destinations: vec![network.parse().unwrap()],
        targets: vec![TargetRow { target_type, target_id, dangling: false }],
        ..world.tables.policies[&PolicyId(id(6, 1))].clone()
    }
}

#[test]
fn held_peer_without_a_row_reaches_no_more_than_policies_let_it() {
    let mut world = world_of(28, "172.16.0.0/24");
    let rows = std::mem::take(&mut world.tables.peers);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(10));
    assert_eq!(waiting(&world), Some(28));
    let granted = world.tables.policies.clone();
    let office = PolicyId(id(6, 1));
    // A policy that no peer of the gateway has any more is not read again, and says no less.
    world.tables.policies.get_mut(&office).unwrap().targets.retain(|it| it.target_id != id(4, 3));
    let deny = denying(&world, 5, "172.16.0.7/32");
    world.tables.policies.insert(deny.id, deny);
    world.pass_time(Duration::from_secs(1));
    assert!(!reaches(&world, 3, "172.16.0.1") && reaches(&world, 4, "172.16.0.7"));
    assert!(reaches(&world, 5, "172.16.0.1") && !reaches(&world, 5, "172.16.0.7"));
    world.tables.policies.clear();
    world.pass_time(Duration::from_secs(1));
    assert!((1..=28).all(|number| !reaches(&world, number, "172.16.0.1")));
    // It gains nothing before its row is back.
    world.tables.policies = granted;
    world.pass_time(Duration::from_secs(60));
    assert!((1..=28).all(|number| !reaches(&world, number, "172.16.0.1")));
    assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(28)));
    world.tables.peers = rows;
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    assert!((1..=28).all(|number| reaches(&world, number, "172.16.0.1")));
}

#[test]
fn a_restore_that_brings_back_one_table_after_the_other_narrows_no_held_peer() {
    for restarts in [false, true] {
        let mut world = world_of(28, "172.16.0.0/24");
        let all_reach = |world: &World| (1..=28).all(|it| reaches(world, it, "172.16.0.1"));
        let (tables, devices) = (world.tables.clone(), world.devices.clone());
        world.tables.peers.clear();
        world.tables.policies.clear();
        world.devices.clear();
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(60));
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(28)));
        assert!(all_reach(&world), "the devices are gone, too");
        world.devices = devices;
        if restarts {
            world.happen(Happening::Kill);
        }
        world.pass_time(Duration::from_secs(60));
        assert!(all_reach(&world), "there are no policies yet");
        // What was not there at the last answer is not lost, whatever else is.
        let office = PolicyId(id(6, 1));
        let mut wide = tables.policies[&office].clone();
        (wide.id, wide.destinations) = (PolicyId(id(6, 3)), vec!["10.0.0.0/8".parse().unwrap()]);
        world.tables.policies.insert(wide.id, wide.clone());
        world.pass_time(Duration::from_secs(5));
        world.tables.policies.remove(&wide.id);
        world.pass_time(Duration::from_secs(5));
        assert!(all_reach(&world), "another policy was taken");
        let mut half = tables.policies[&office].clone();
        half.targets.truncate(14);
        world.tables.policies.insert(office, half);
        world.pass_time(Duration::from_secs(60));
        assert!(all_reach(&world), "what there was not before is not missing");
        world.tables.policies = tables.policies;
        world.pass_time(Duration::from_secs(60));
        assert!(all_reach(&world));
        // From here on, less is less.
        world.tables.policies.clear();
        world.pass_time(Duration::from_secs(1));
        assert!((1..=28).all(|number| !reaches(&world, number, "172.16.0.1")));
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(28)));
    }
}

#[test]
fn what_policies_took_from_a_held_peer_is_not_taken_once_more_when_its_row_goes_again() {
    let mut world = world_of(28, "172.16.0.0/24");
    let all_reach = |world: &World| (1..=28).all(|it| reaches(world, it, "172.16.0.1"));
    let tables = world.tables.clone();
    let empty = |world: &mut World| {
        world.tables.peers.clear();
        world.tell(Event::Notified);
        world.settle();
        assert_eq!(waiting(world), Some(28));
    };
    empty(&mut world);
    world.pass_time(Duration::from_secs(10));
    world.tables.policies.clear();
    world.pass_time(Duration::from_secs(1));
    assert!(!all_reach(&world));
    world.tables = tables;
    world.tell(Event::Notified);
    world.settle();
    assert!(all_reach(&world));
    empty(&mut world);
    assert!(all_reach(&world));
    world.pass_time(Duration::from_secs(60));
    assert!(all_reach(&world));
}

#[test]
fn a_peer_that_was_narrowed_while_its_row_was_gone_reaches_nothing_by_last_good_rows() {
    for default in ["allow", "deny"] {
        let mut world = world_of(28, "172.16.0.0/24");
        world.tables.settings.push(SettingRow {
            category: "policy".into(),
            key: "default_effect".into(),
            value: format!("{default:?}"),
        });
        world.tell(Event::Resync);
        world.pass_time(Duration::from_secs(1));
        let (tables, provenance) = (world.tables.clone(), Provenance::Sealed);
        world.tables.peers.retain(|_, row| row.device_id == DeviceId(id(3, 7)));
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(10));
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(27)));
        let deny = denying(&world, 3, "172.16.0.7/32");
        world.tables.policies.insert(deny.id, deny);
        world.pass_time(Duration::from_secs(1));
        assert!(reaches(&world, 3, "172.16.0.1") && !reaches(&world, 3, "172.16.0.7"));
        assert!(world.remembered.without_row.narrowed.iter().eq([&key(3)]));
        let rows = tables.snapshot();
        world.last_good = Some(LastGood { rows, changes: Vec::new(), provenance });
        world.database_up = false;
        world.happen(Happening::Kill);
        world.pass_time(Duration::from_secs(10));
        assert_eq!(world.kernel.state.peers.len(), 28);
        let reaching = (1..=28).filter(|number| reaches(&world, *number, "172.16.0.1"));
        let others = (1..=28).filter(|number| *number != 3);
        assert!(reaching.eq(others), "default_effect {default}");
        world.tables.peers = tables.peers;
        world.database_up = true;
        world.pass_time(Duration::from_secs(60));
        assert!(world.kernel_equals_database() && world.remembered.without_row.narrowed.is_empty());
    }
}

#[test]
fn a_peer_that_was_revoked_while_its_row_was_gone_stays_out_by_last_good_rows() {
    for killed_first in [false, true] {
        let mut world = world_of(28, "172.16.0.0/24");
        let (rows, provenance) = (world.tables.snapshot(), Provenance::Sealed);
        world.tables.peers.clear();
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(5));
        if killed_first {
            world.happen(Happening::Kill);
            world.pass_time(Duration::from_secs(5));
            let deny = denying(&world, 4, "172.16.0.7/32");
            world.tables.policies.insert(deny.id, deny);
            world.tell(Event::Notified);
            world.pass_time(Duration::from_secs(5));
        }
        world.revoked_devices.insert(DeviceId(id(3, 3)));
        world.pass_time(Duration::from_secs(5));
        assert_eq!(world.kernel.state.peers.len(), 27);
        world.last_good = Some(LastGood { rows, changes: Vec::new(), provenance });
        world.database_up = false;
        world.happen(Happening::Kill);
        world.pass_time(Duration::from_secs(10));
        assert!(!world.kernel.state.peers.contains_key(&key(3)), "killed first: {killed_first}");
    }
}

#[test]
fn few_users_who_are_not_active_when_the_rows_of_held_peers_come_back_lose_their_peers() {
    for (inactive, left, waits) in [(1, 27, None), (14, 14, None), (15, 28, Some(15))] {
        let mut world = world_of(28, "172.16.0.0/24");
        let rows = std::mem::take(&mut world.tables.peers);
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(1));
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (28, Some(28)));
        world.tables.peers = rows;
        world.deactivate(1..=inactive);
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(1));
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (left, waits));
        // What the rows said already is no news.
        world.tell(Event::Resync);
        world.pass_time(Duration::from_secs(30));
        assert_eq!((world.kernel.state.peers.len(), waiting(&world)), (left, waits));
    }
}

#[test]
fn an_address_of_a_held_peer_passes_to_the_peer_that_the_rows_give_it_to() {
    let mut world = world_of(20, "172.16.0.0/24");
    let mut heir = world.tables.peers[&PeerId(id(2, 1))].clone();
    (heir.id, heir.public_key) = (PeerId(id(2, 99)), KeyText::Key(key(99)));
    world.tables.peers.clear();
    world.tables.peers.insert(heir.id, heir);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(held_back(&world), [19], "the first peer would keep nothing");
    let peers = &world.kernel.state.peers;
    assert!(peers.contains_key(&key(99)) && !peers.contains_key(&key(1)));
    assert_eq!(peers.len(), 20);
}
