//! One mistake that makes the rows of many peers unusable.

use std::time::Duration;

use gatepost::model::{Allocation, BarredBy, KeyText, PeerId, SettingRow};
use gatepost::reconcile::Event;

use super::guard::{held_back, key, reaches, world_of};
use super::rows::id;
use super::world::World;

/// Makes a mistake (`false`), or corrects it (`true`).
type Mistake = fn(&mut World, bool);

/// Of the gateway's network, or of the rows of all peers.
fn mistakes() -> [(&'static str, Mistake); 3] {
    [
        ("the pool", |world, right| {
            let pool = if right { "10.64.0.0/27" } else { "10.46.0.0/27" };
            world.pool = Some(pool.parse().unwrap());
            world.tell(Event::Resync);
        }),
        ("allocations", |world, right| {
            let value = "true".to_owned();
            let (category, key) = ("gateway".into(), "strict_ip_allocations".into());
            world.tables.settings = vec![SettingRow { category, key, value }];
            let allocation = if right { Allocation::Held } else { Allocation::Missing };
            world.tables.peers.values_mut().for_each(|row| row.allocation = allocation);
            world.tell(Event::Notified);
        }),
        ("sealing keys", |world, right| {
            let sealed = (!right).then(|| Box::from("gp1.nokey.AAAA"));
            for row in world.tables.peers.values_mut() {
                row.preshared_key.clone_from(&sealed);
            }
            world.tell(Event::Notified);
        }),
    ]
}

#[test]
fn a_mistyped_network_cuts_off_no_peer_and_what_the_rows_say_narrows() {
    for peers in [2, 8, 28] {
        for (what, mistake) in mistakes() {
            let mut world = world_of(peers, "172.16.0.0/23");
            mistake(&mut world, false);
            world.pass_time(Duration::from_secs(1));
            let shown = (world.kernel.state.peers.len(), held_back(&world));
            assert_eq!(shown, (peers.into(), vec![peers.into()]), "{what}");
            assert!(reaches(&world, 2, "172.16.1.1"), "{what}");
            let status = world.machine.view().status();
            assert!(!status.state.is_ready() && status.held[0].name().contains("user-"), "{what}");
            assert_eq!(status.peers.quarantined, u64::from(peers), "{what}");
            // What the rows say of a held peer on purpose acts.
            world.tables.policies.values_mut().next().unwrap().destinations =
                vec!["172.16.0.0/24".parse().unwrap()];
            world.revoke([1]);
            world.tell(Event::Notified);
            world.pass_time(Duration::from_secs(1));
            assert!(!world.kernel.state.peers.contains_key(&key(1)), "{what}: revoked");
            assert!(
                !reaches(&world, 2, "172.16.1.1") && reaches(&world, 2, "172.16.0.1"),
                "{what}"
            );
            mistake(&mut world, true);
            world.pass_time(Duration::from_secs(10));
            assert!(world.kernel_equals_database(), "{what}");
            assert!(world.machine.view().held_back().is_none(), "{what}");
        }
    }
}

#[test]
fn a_user_who_was_active_again_beside_a_mistake_goes_by_the_next_word() {
    fn bar(world: &mut World, users: std::ops::RangeInclusive<u8>, bars: BarredBy) -> usize {
        for number in users {
            world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap().bars = bars;
        }
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(1));
        world.kernel.state.peers.len()
    }
    for (what, mistake) in mistakes() {
        let mut world = world_of(28, "172.16.0.0/23");
        mistake(&mut world, false);
        world.pass_time(Duration::from_secs(1));
        assert_eq!(bar(&mut world, 1..=15, BarredBy::USER_INACTIVE), 28, "{what}: many wait");
        assert_eq!(bar(&mut world, 1..=15, BarredBy::default()), 28, "{what}");
        assert_eq!(bar(&mut world, 3..=3, BarredBy::USER_INACTIVE), 27, "{what}");
        assert!(!world.kernel.state.peers.contains_key(&key(3)), "{what}");
    }
}

#[test]
fn emptied_allocations_wait_for_a_confirmation() {
    let mut world = world_of(28, "172.16.0.0/24");
    let (_, mistake) = mistakes()[1];
    mistake(&mut world, false);
    world.pass_time(Duration::from_secs(1));
    // The address of a held peer is given to another device.
    let mut heir = world.tables.peers[&PeerId(id(2, 1))].clone();
    (heir.id, heir.public_key) = (PeerId(id(2, 99)), KeyText::Key(key(99)));
    heir.allocation = Allocation::Held;
    world.tables.peers.insert(heir.id, heir);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    let peers = &world.kernel.state.peers;
    assert!(peers.contains_key(&key(99)) && !peers.contains_key(&key(1)) && peers.len() == 28);
    world.confirm();
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database() && world.kernel.state.peers.len() == 1);
    // A few are quarantined at once.
    let mut world = world_of(28, "172.16.0.0/24");
    for number in 1..=10 {
        let row = world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
        row.assigned_ip = "10.99.0.1/32".parse().unwrap();
    }
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!((world.kernel.state.peers.len(), held_back(&world)), (18, vec![]));
}
