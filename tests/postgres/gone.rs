//! The rows of peers are gone, and their devices are not.

use std::collections::BTreeSet;

use crate::agent::{Memory, agent, good_peer};
use crate::running::Running;
use crate::token::{Pool, token};
use crate::world::World;

#[tokio::test]
async fn held_peer_goes_when_its_device_is_revoked_without_a_row() {
    let world = World::new().await;
    for number in 1..=14 {
        good_peer(&world, number).await;
    }
    let host = Memory::default();
    let mut agent = Running::start(agent(&world, host.clone()).await);
    agent.waits_for("ready", |status| status.state.is_ready()).await;
    world.run("delete from wireguard_peers").await;
    agent.waits_for("holds", |status| status.peers.held == 14).await;
    for (revocation, left) in [
        ("set status = 'revoked' where name = 'user-3'", 13),
        ("set revoked_at = now() where name = 'user-4'", 12),
        ("set deleted_at = now(), status = 'blocked' where name = 'user-5'", 11),
    ] {
        world.run(&format!("update devices {revocation}")).await;
        agent.waits_for("removed it", |status| status.peers.in_kernel == left).await;
        assert_eq!(host.state().peers.len() as u64, left);
    }
    let told = "select count(*) from audit_logs where event_type = 'peer.revoked' \
                and entity_type = 'peer'";
    agent.stop().await;
    assert_eq!(world.count(told).await, 3, "an agent that stops reports first");
}

#[tokio::test]
async fn revoked_devices_are_told_by_status_and_time_alone() {
    let (pool, _other) = Pool::new().await;
    let world = &pool.world;
    let mut devices = BTreeSet::new();
    for number in 1..=6 {
        let peer = world.peer(world.gateway, &format!("user-{number}")).await;
        devices.insert(peer.device.into());
    }
    world
        .run(
            "update devices set status = 'blocked' where name = 'user-1';
             update devices set revoked_at = now() where name = 'user-2';
             update devices set revoked_at = now() + interval '1 hour' where name = 'user-3';
             update devices set approved_at = null where name = 'user-4';
             update devices set deleted_at = now() where name = 'user-5'",
        )
        .await;
    let revoked = "select array_agg(id) from devices where name in ('user-1', 'user-2')";
    let revoked: Vec<uuid::Uuid> = world.admin.query_one(revoked, &[]).await.unwrap().get(0);
    let revoked: BTreeSet<_> = revoked.into_iter().map(Into::into).collect();
    for store in [pool.store(token(1)), world.store.clone()] {
        store.hello().await.unwrap();
        assert_eq!(store.revoked_devices(&devices).await.unwrap(), revoked);
    }
}
