//! Figures, not assertions: run by hand with `--ignored --nocapture`.

use std::time::Instant;

use gatepost::store::Read;

use crate::world::World;

async fn timed<T>(name: &str, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let result = work.await;
    println!("{name}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

/// 100,000 peers here, as many elsewhere; 20,000 users, 500 groups, 2,000 policies.
async fn large() -> World {
    let world = World::alone().await;
    world
        .run(&format!(
            "insert into roles (name) values ('staff');
             insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
                 select 'x' || n, 'e:1', 'k', 1, '10.9.0.0/16' from generate_series(1, 100) n;
             insert into users (role_id, username, display_name, password_hash)
                 select r.id, 'user' || n, 'u', 'x' from roles r, generate_series(1, 20000) n;
             insert into groups (name) select 'g' || n from generate_series(1, 500) n;
             create temp table u as select id, row_number() over () as n from users;
             create temp table g as select id, row_number() over () as n from groups;
             create temp table x as select id, row_number() over () as n from gateways where name <> 'g1';
             insert into group_memberships (group_id, user_id)
                 select g.id, u.id from u cross join generate_series(0, 2) k
                 join g on g.n = (u.n * 7 + k * 131 * u.n % 97) % 500 + 1;
             insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at)
                 select u.id, 'device ' || k, 'linux', u.n || '-' || k, 'k', now()
                 from u, generate_series(1, 10) k;
             create temp table d as select id, row_number() over () as n from devices;
             insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip, allowed_ips)
                 select case when d.n <= 100000 then '{0}' else x.id end, d.id,
                     encode(sha256(d.id::text::bytea), 'base64'), '10.0.0.0'::inet + d.n, '{{0.0.0.0/0,::/0}}'
                 from d join x on x.n = d.n % 100 + 1;
             insert into ip_allocations (gateway_id, device_id, address)
                 select gateway_id, device_id, assigned_ip from wireguard_peers;
             insert into policies (name, priority) select 'p' || n, n % 100 from generate_series(1, 2000) n;
             create temp table p as select id, row_number() over () as n from policies;
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'group', g.id from p join g on g.n = p.n % 500 + 1
                 union all select p.id, 'user', u.id from p join u on u.n = p.n * 9;
             insert into policy_destinations (policy_id, destination)
                 select p.id, set_masklen('10.0.0.0'::inet + (p.n * 5 + k) * 256, 24)::cidr from p, generate_series(1, 5) k;
             truncate gatepost.change",
            world.gateway
        ))
        .await;
    world.run("vacuum analyze").await;
    world
}

#[tokio::test]
#[ignore = "prints figures"]
async fn figures() {
    let world = large().await;
    for function in [
        "snapshot_peers",
        "snapshot_policies",
        "snapshot_memberships",
        "snapshot_settings",
        "hello",
    ] {
        for _ in 0..3 {
            let sql = format!("select count(*) from gatepost.{function}()");
            let agent = crate::world::connect(&world.url).await;
            timed(function, agent.query_one(&sql, &[])).await.unwrap();
        }
    }
    for _ in 0..3 {
        let (rows, _) = timed("snapshot", world.store.snapshot()).await.unwrap();
        assert_eq!(rows.peers.len(), 100_000);
        println!("{} users, {} policies", rows.memberships.len(), rows.policies.len());
    }
    let mut cursor = world.cursor().await;
    for (name, sql) in [
        ("nothing", "select"),
        (
            "1 device",
            "update devices set status = 's' where id in (select device_id from wireguard_peers limit 1)",
        ),
        (
            "100 devices",
            "update devices set status = 's' where id in (select device_id from wireguard_peers limit 100)",
        ),
        (
            "1,000 devices",
            "update devices set status = 't' where id in (select device_id from wireguard_peers limit 1000)",
        ),
        ("1 user", "update users set is_active = false where username = 'user5'"),
        (
            "1 membership",
            "delete from group_memberships where id in (select id from group_memberships limit 1)",
        ),
        ("1 policy", "update policies set priority = 7 where name = 'p7'"),
        ("1 group", "update groups set deleted_at = now() where name = 'g7'"),
        ("1 address", "update ip_allocations set status = 'released' where address = '10.0.0.77'"),
        (
            "1 peer gone",
            "update wireguard_peers set deleted_at = now() where assigned_ip = '10.0.0.78'",
        ),
        (
            "10,000 reports",
            "update devices set last_seen_at = now() where id in (select device_id from wireguard_peers limit 10000)",
        ),
    ] {
        for _ in 0..3 {
            timed(&format!("{name}: write"), world.run(sql)).await;
            let read = timed(&format!("{name}: read"), world.store.changes(&cursor)).await.unwrap();
            cursor = match read {
                Read::Nothing(next, _) => next,
                Read::Changed(rows, next) => {
                    println!(
                        "  {} devices, {} users, {} policies",
                        rows.peers.len(),
                        rows.memberships.len(),
                        rows.policies.len()
                    );
                    next
                }
                Read::Everything(why) => panic!("{why}"),
            };
        }
    }
    let start = Instant::now();
    for _ in 0..200 {
        world.store.changes(&cursor).await.unwrap();
    }
    println!("idle read: {:.2} ms", start.elapsed().as_secs_f64() * 1e3 / 200.0);
}
