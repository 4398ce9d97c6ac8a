//! The rows of peers are gone, and their devices are not.

use std::collections::BTreeSet;

use crate::agent::{Memory, agent, good_peer};
use crate::running::Running;
use crate::token::{Pool, token};
use crate::world::World;

#[tokio::test]
async fn held_peer_without_a_row_goes_when_its_device_or_user_is_taken_out() {
    let world = World::new().await;
    for number in 1..=14 {
        good_peer(&world, number).await;
    }
    let host = Memory::default();
    let mut agent = Running::start(agent(&world, host.clone()).await);
    agent.waits_for("ready", |status| status.state.is_ready()).await;
    world
        .run(
            "insert into ip_allocations (gateway_id, device_id, address)
                 select p.gateway_id, p.device_id, p.assigned_ip
                 from wireguard_peers p join devices d on d.id = p.device_id where d.name in ('user-6', 'user-7', 'user-8');
             delete from wireguard_peers",
        )
        .await;
    agent.waits_for("holds", |status| status.peers.held == 14).await;
    for (revocation, left) in [
        ("set status = 'revoked' where name = 'user-3'", 13),
        ("set revoked_at = now() where name = 'user-4'", 12),
        ("set deleted_at = now(), status = 'blocked' where name = 'user-5'", 11),
        ("set deleted_at = now() where name = 'user-6'", 10),
    ] {
        world.run(&format!("update devices {revocation}")).await;
        agent.waits_for("removed it", |status| status.peers.in_kernel == left).await;
        assert_eq!(host.state().peers.len() as u64, left);
    }
    for (user, word, left) in [(7, "is_active = false", 9), (8, "deleted_at = now()", 8)] {
        world.run(&format!("update users set {word} where username = 'user-{user}'")).await;
        agent.waits_for("removed it", |status| status.peers.in_kernel == left).await;
    }
    let told = "select count(*) from audit_logs where event_type = 'peer.revoked' \
                and entity_type = 'peer'";
    agent.stop().await;
    assert_eq!(world.count(told).await, 6, "an agent that stops reports first");
}

/// The addresses of held peers that may reach this one, as the kernel's table judges them.
fn reaching(host: &Memory, destination: &str) -> usize {
    let state = host.state();
    let table = state.firewall.as_ref().unwrap();
    let destination = destination.parse().unwrap();
    let prefixes = state.peers.values().flat_map(|peer| peer.allowed_ips.iter());
    prefixes.filter(|it| table.profile_of(it).is_some_and(|it| it.allows(destination))).count()
}

#[tokio::test]
async fn held_peer_without_a_row_reaches_no_more_than_policies_let_it() {
    let world = World::new().await;
    for number in 1..=14 {
        good_peer(&world, number).await;
    }
    world
        .run(
            "insert into ip_allocations (gateway_id, device_id, address)
                 select gateway_id, device_id, assigned_ip from wireguard_peers;
             insert into groups (name) values ('staff');
             insert into group_memberships (group_id, user_id) select g.id, u.id from groups g, users u;
             insert into policies (name, priority) values ('office', 10), ('desk', 10);
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'group', g.id from policies p, groups g where p.name = 'office';
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'device', d.id from policies p, devices d where p.name = 'desk';
             insert into policy_destinations (policy_id, destination)
                 select id, case name when 'desk' then '10.9.0.0/24'::cidr else '10.8.0.0/24' end
                 from policies",
        )
        .await;
    let host = Memory::default();
    let mut agent = Running::start(agent(&world, host.clone()).await);
    agent.waits_for("ready", |status| status.state.is_ready()).await;
    world.run("delete from wireguard_peers").await;
    agent.waits_for("holds", |status| status.peers.held == 14).await;
    for (word, office, desk) in [
        ("update users set display_name = 'Ann'", 14, 14),
        (
            "delete from group_memberships
                 where user_id = (select id from users where username = 'user-3')",
            13,
            14,
        ),
        (
            "with deny as (
                 insert into policies (name, priority, effect) values ('no', 1, 'deny') returning id
             ), aimed as (
                 insert into policy_targets (policy_id, target_type, target_id)
                     select deny.id, 'user', u.id from deny, users u
                     where username in ('user-4', 'user-5')
             )
             insert into policy_destinations (policy_id, destination)
                 select id, '10.9.0.0/16' from deny",
            13,
            12,
        ),
        ("update policies set is_active = false where name = 'desk'", 13, 0),
        ("delete from policy_targets; delete from policy_destinations; delete from policies", 0, 0),
    ] {
        world.run(word).await;
        let reach = || (reaching(&host, "10.8.0.1"), reaching(&host, "10.9.0.1"));
        agent.waits_for(word, |_| reach() == (office, desk)).await;
    }
    assert_eq!(host.state().peers.len(), 14);
    agent.stop().await;
}

#[tokio::test]
async fn devices_without_a_peer_are_told_with_what_still_says_something_about_them() {
    let (pool, other) = Pool::new().await;
    let world = &pool.world;
    let mut devices = BTreeSet::new();
    for number in 1..=8 {
        let gateway = if number <= 6 { world.gateway } else { other };
        let peer = world.peer(gateway, &format!("user-{number}")).await;
        devices.insert(peer.device.into());
    }
    world
        .run(
            "update devices set status = 'blocked' where name in ('user-1', 'user-8');
             update devices set revoked_at = now() where name = 'user-2';
             update devices set revoked_at = now() + interval '1 hour' where name = 'user-3';
             update devices set approved_at = null where name = 'user-4';
             update devices set deleted_at = now() where name = 'user-5';
             update users set is_active = false where username in ('user-2', 'user-3', 'user-7', 'user-8');
             update users set deleted_at = now() where username = 'user-4';
             insert into groups (name) values ('staff'), ('past');
             insert into group_memberships (group_id, user_id)
                 select g.id, u.id from groups g, users u where u.username in ('user-3', 'user-4', 'user-7', 'user-8');
             update groups set deleted_at = now() where name = 'past';
             insert into policies (name, is_active) values ('a', true), ('b', false), ('c', true), ('d', true);
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'group', g.id from policies p, groups g where p.name in ('a', 'b')
                 union all select p.id, 'user', u.id from policies p, users u where p.name = 'c'
                 union all select p.id, 'device', gen_random_uuid() from policies p;
             insert into ip_allocations (gateway_id, device_id, address)
                 select gateway_id, device_id, assigned_ip from wireguard_peers;
             delete from wireguard_peers;
             delete from ip_allocations where device_id = (select id from devices where name = 'user-6');
             delete from devices where name = 'user-6'",
        )
        .await;
    let ids = |sql: &str| {
        let sql = format!("select coalesce(array_agg(id), '{{}}') from {sql}");
        async move {
            let ids: Vec<uuid::Uuid> = world.admin.query_one(&sql, &[]).await.unwrap().get(0);
            BTreeSet::from_iter(ids)
        }
    };
    for store in [pool.store(token(1)), world.store.clone()] {
        store.hello().await.unwrap();
        let rows = store.devices_without_peer(&devices).await.unwrap();
        let [rows] = &rows[..] else { panic!("one question") };
        let told = rows.devices.keys().map(|id| id.0).collect::<BTreeSet<_>>();
        // Of another gateway's devices, nothing else is told than that one is revoked.
        assert_eq!(told, ids("devices where name <> 'user-7'").await);
        let revoked = rows.devices.iter().filter(|(_, row)| row.revoked).map(|(id, _)| id.0);
        let expected = ids("devices where name in ('user-1', 'user-2', 'user-8')").await;
        assert_eq!(revoked.collect::<BTreeSet<_>>(), expected);
        let barred = rows.devices.iter().filter(|(_, row)| row.barred).map(|(id, _)| id.0);
        let expected = ids("devices where name in ('user-2', 'user-3', 'user-4', 'user-5')").await;
        assert_eq!(barred.collect::<BTreeSet<_>>(), expected);
        let staff = ids("groups where name = 'staff'").await;
        let users = ids("users where username in ('user-3', 'user-4')").await;
        for row in rows.devices.values() {
            let groups = row.group_ids.iter().map(|id| id.0).collect::<BTreeSet<_>>();
            assert_eq!(groups == staff, users.contains(&row.user_id.0));
            assert!(groups.is_empty() || groups == staff);
        }
        let targets = |name: &str| {
            let policy = rows.policies.iter().find(|policy| policy.name == name)?;
            let meant = policy.targets.iter().filter(|target| !target.dangling);
            Some(meant.map(|target| target.target_id).collect::<BTreeSet<_>>())
        };
        assert_eq!((targets("a"), targets("b"), targets("d")), (Some(staff), None, None));
        assert_eq!(targets("c"), Some(ids("users where username < 'user-6'").await));
    }
}
