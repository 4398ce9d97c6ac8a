use std::time::Duration;

use gatepost::model::{BarredBy, Mark};
use gatepost::store::{Listener, Read};

use crate::delta::replaced;
use crate::world::{World, client, insert_gateway};

/// Everything that was announced up to now. A notification of our own comes after all before it,
/// so there is nothing to wait for.
pub async fn heard(listener: &mut Listener) -> usize {
    assert!(listener.probe().await.unwrap());
    tokio::time::timeout(Duration::ZERO, listener.next()).await.map_or(0, |count| count.unwrap())
}

/// What decides whether a write notifies, for the message of a test that heard nothing.
async fn what_a_hint_saw(world: &World) -> String {
    let sql = "select format('%s marks, %s listeners, queue %s full, locks not granted: %s',
        (select count(*) from gatepost.change), (select count(*) from gatepost.listener),
        pg_notification_queue_usage(), (select array_agg(l::text) from pg_locks l where not granted))";
    world.admin.query_one(sql, &[]).await.unwrap().get(0)
}

async fn setting() -> (World, crate::world::Peer, Listener) {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let peer = ann.peer;
    world
        .run(&format!(
            "insert into groups (id, name) values ('{peer}', 'staff');
             insert into policies (id, name) values ('{peer}', 'intranet');
             insert into policy_targets (id, policy_id, target_type, target_id)
                 values ('{peer}', '{peer}', 'group', '{peer}');
             insert into policy_destinations (id, policy_id, destination)
                 values ('{peer}', '{peer}', '10.0.0.0/8');
             insert into ip_allocations (id, gateway_id, device_id, address)
                 select '{peer}', gateway_id, device_id, assigned_ip from wireguard_peers;
             insert into group_memberships (id, group_id, user_id)
                 values ('{peer}', '{peer}', '{}')",
            ann.user
        ))
        .await;
    let hello = world.store.hello().await.unwrap();
    let listener = world.store.listen(&hello).await.unwrap();
    (world, ann, listener)
}

#[tokio::test]
async fn columns_that_no_gateway_reads_leave_no_mark_and_no_notification() {
    let (world, ann, mut listener) = setting().await;
    let cursor = world.cursor().await;
    let marks = world.count("select count(*) from gatepost.change").await;
    for sql in [
        "update devices set last_seen_at = now(), last_connected_at = now(), updated_at = now()",
        "update devices set os_version = '2', app_version = '3', public_key = 'other'",
        "update devices set approved_at = approved_at + interval '1 s'",
        "update devices set name = name, status = status, user_id = user_id",
        "update users set last_login_at = now(), password_hash = 'x', display_name = 'y'",
        "update gateways set last_sync_at = now(), updated_at = now(), endpoint = 'e:1'",
        "update wireguard_peers set profile_revision = 2, last_profile_issued_at = now()",
        "update wireguard_peers set assigned_ip = assigned_ip, updated_at = now()",
        "update policies set description = 'x', updated_at = now()",
        "update policy_destinations set description = 'x'",
        "update groups set name = 'crew', description = 'x'",
        "update ip_allocations set allocated_at = now(), released_at = now()",
        "update group_memberships set created_at = now()",
        "insert into settings (category, key, value) values ('branding', 'logo', '1')",
        "update settings set value = '2'",
        "update wireguard_peers set assigned_ip = '10.8.9.9' where false",
        "insert into audit_logs (event_type, entity_type, status, message) values ('a', 'b', 'c', 'd')",
    ] {
        world.run(sql).await;
        assert_eq!(world.count("select count(*) from gatepost.change").await, marks, "{sql}");
        assert_eq!(heard(&mut listener).await, 0, "{sql}");
    }
    assert!(matches!(world.read(&cursor).await, Read::Nothing(..)));
    // The listener does hear what matters: the zeros above are no deafness.
    world.run(&format!("update devices set name = 'x' where id = '{}'", ann.device)).await;
    assert_eq!(heard(&mut listener).await, 1);
}

/// Each statement, and how the change must be read.
#[tokio::test]
async fn every_column_that_a_gateway_reads_leaves_a_mark_and_a_notification() {
    let (world, ann, mut listener) = setting().await;
    let (user, device, peer) = (ann.user, ann.device, ann.peer);
    let mut cursor = world.cursor().await;
    for (sql, everything) in [
        ("update wireguard_peers set assigned_ip = '10.8.77.1'".to_owned(), false),
        ("update wireguard_peers set public_key = 'k2'".into(), false),
        ("update wireguard_peers set preshared_key_ciphertext = 'gp1'".into(), false),
        ("update wireguard_peers set allowed_ips = '{0.0.0.0/0}'".into(), false),
        ("update wireguard_peers set dns_servers = '{10.8.0.1}'".into(), false),
        ("update wireguard_peers set deleted_at = now()".into(), false),
        ("update wireguard_peers set deleted_at = null".into(), false),
        ("update devices set name = 'tablet'".into(), false),
        ("update devices set status = 'blocked'".into(), false),
        ("update devices set revoked_at = now() + interval '1 h'".into(), false),
        ("update devices set revoked_at = now() + interval '2 h'".into(), false),
        ("update devices set approved_at = null".into(), false),
        ("update devices set deleted_at = now()".into(), false),
        ("update users set is_active = false".into(), false),
        ("update users set username = 'Ann'".into(), false),
        ("update users set deleted_at = now()".into(), false),
        (format!("delete from group_memberships where id = '{peer}'"), false),
        (format!("insert into group_memberships (id, group_id, user_id) values ('{peer}', '{peer}', '{user}')"), false),
        ("update groups set deleted_at = now()".into(), false),
        ("update groups set deleted_at = null".into(), false),
        ("update policies set name = 'extranet'".into(), false),
        ("update policies set priority = 5".into(), false),
        ("update policies set effect = 'deny'".into(), false),
        ("update policies set full_tunnel = true".into(), false),
        ("update policies set is_active = false".into(), false),
        ("update policies set is_active = true".into(), false),
        ("update policies set deleted_at = now()".into(), false),
        ("update policies set deleted_at = null".into(), false),
        ("update policy_destinations set destination = '10.1.0.0/16'".into(), false),
        ("delete from policy_destinations".into(), false),
        (format!("insert into policy_destinations (policy_id, destination) values ('{peer}', '::/0')"), false),
        (format!("update policy_targets set target_type = 'user', target_id = '{user}'"), false),
        ("delete from policy_targets".into(), false),
        (format!("insert into policy_targets (policy_id, target_type, target_id) values ('{peer}', 'device', '{device}')"), false),
        ("update ip_allocations set status = 'released', address = '10.8.77.1'".into(), false),
        ("delete from ip_allocations".into(), false),
        (format!("insert into ip_allocations (gateway_id, address, device_id) select gateway_id, assigned_ip, '{device}' from wireguard_peers"), false),
        ("insert into ip_allocations (gateway_id, address, status) select id, '10.8.0.9', 'gateway' from gateways".into(), true),
        ("update gateways set listen_port = 51821".into(), true),
        ("update gateways set public_key = 'new'".into(), true),
        ("update gateways set vpn_cidr = '10.0.0.0/8'".into(), true),
        ("update gateways set dns_servers = '{10.8.0.1}'".into(), true),
        ("update gateways set is_active = false".into(), true),
        ("update gateways set deleted_at = now()".into(), true),
        ("update gateways set name = 'renamed'".into(), true),
        ("insert into settings (category, key, value) values ('gateway', 'require_approval', 'true')".into(), true),
        ("update settings set value = 'false'".into(), true),
        ("insert into settings (category, key, value) values ('gateway:renamed', 'site_prefixes', '[]')".into(), true),
        ("delete from settings".into(), true),
        ("delete from wireguard_peers".into(), false),
        ("truncate policy_destinations".into(), true),
    ] {
        world.run(&sql).await;
        assert_eq!(heard(&mut listener).await, 1, "{sql}; {}", what_a_hint_saw(&world).await);
        cursor = match (world.read(&cursor).await, everything) {
            (Read::Changed(rows, next), false) => {
                let keys = rows.peers.len() + rows.memberships.len() + rows.policies.len();
                assert!((1..=3).contains(&keys), "{sql}: {rows:?}");
                next
            }
            (Read::Everything(_), true) => world.cursor().await,
            (read, _) => panic!("{sql}: {read:?}"),
        };
        assert!(matches!(world.read(&cursor).await, Read::Nothing(..)), "{sql}");
    }
}

#[tokio::test]
async fn changes_to_another_gateways_peers_are_not_announced_here() {
    let (world, _, mut listener) = setting().await;
    let cursor = world.cursor().await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let bob = world.peer(other, "bob").await;
    world
        .run(&format!(
            "update devices set status = 'blocked' where id = '{}';
             update users set is_active = false where id = '{}';
             insert into settings (category, key, value) values ('gateway:g2', 'a', '1');
             insert into group_memberships (group_id, user_id) select id, '{}' from groups",
            bob.device, bob.user, bob.user
        ))
        .await;
    assert_eq!(heard(&mut listener).await, 0);
    assert!(matches!(world.read(&cursor).await, Read::Nothing(..)));
}

#[tokio::test]
async fn sessions_in_replica_role_leave_marks() {
    let (world, _, mut listener) = setting().await;
    let sql = "set session_replication_role = replica; update devices set status = 'x'; \
               set session_replication_role = origin";
    world.run(sql).await;
    assert_eq!(heard(&mut listener).await, 1);
}

/// A policy may name a row before it is inserted. Without a peer, that has no effect.
#[tokio::test]
async fn an_inserted_target_leaves_a_mark_and_notifies_only_where_foreign_keys_are_skipped() {
    let (world, _, mut listener) = setting().await;
    let insert = |kind: &str, id: u8| {
        let id = uuid::Uuid::from_u128(id.into());
        let insert = match kind {
            "group" => format!("insert into groups (id, name) values ('{id}', '{id}')"),
            "user" => format!(
                "insert into users (id, role_id, username, display_name, password_hash)
                    select '{id}', role_id, '{id}', 'u', 'x' from users limit 1"
            ),
            _ => format!(
                "insert into devices (id, user_id, name, platform, device_fingerprint, public_key)
                    select '{id}', user_id, 'd', 'linux', '{id}', 'k' from devices limit 1"
            ),
        };
        let target = format!(
            "insert into policy_targets (policy_id, target_type, target_id) select id, '{kind}', '{id}' from policies"
        );
        (target, insert)
    };
    let mut cursor = world.cursor().await;
    for (id, (role, heard_of)) in (1..).step_by(3).zip([("origin", 0), ("replica", 1)]) {
        for (id, kind) in (id..).zip(["group", "user", "device"]) {
            let (target, insert) = insert(kind, id);
            world.run(&format!("set session_replication_role = {role}; {target}")).await;
            assert_eq!(heard(&mut listener).await, 1, "{target}");
            let Read::Changed(_, next) = world.read(&cursor).await else { panic!("{target}") };
            world.run(&insert).await;
            assert_eq!(heard(&mut listener).await, heard_of, "{role}: {insert}");
            let Read::Changed(rows, after) = world.read(&next).await else { panic!("{insert}") };
            assert_eq!(rows.policies.len(), 1, "{insert}: {rows:?}");
            cursor = after;
        }
    }
}

/// Foreign keys allow this. A portal may do it to write a row whole.
#[tokio::test]
async fn a_user_or_device_that_is_deleted_and_inserted_in_one_statement_is_read_again() {
    let (world, _, mut listener) = setting().await;
    let mut cursor = world.cursor().await;
    for (table, change, is_barred) in [
        ("users", r#"{"is_active": false}"#, true),
        ("users", r#"{"is_active": true}"#, false),
        ("devices", r#"{"status": "revoked"}"#, true),
        ("devices", r#"{"status": "active"}"#, false),
    ] {
        let replace =
            replaced(table, &format!("(select id from {table})"), &format!("'{change}'::jsonb"));
        world.run(&replace).await;
        assert_eq!(heard(&mut listener).await, 1, "{replace}");
        let Read::Changed(rows, next) = world.read(&cursor).await else { panic!("{replace}") };
        let peers = rows.peers.values().flatten().collect::<Vec<_>>();
        assert!(
            matches!(*peers, [peer] if is_barred == (peer.bars != BarredBy::default())),
            "{replace}: {rows:?}"
        );
        cursor = next;
    }
}

#[tokio::test]
async fn a_policy_for_a_large_group_leaves_one_mark() {
    let (world, ann, _) = setting().await;
    world
        .run(
            "insert into users (role_id, username, display_name, password_hash)
                 select r.id, 'u' || n, 'u', 'x' from roles r, generate_series(1, 20000) n",
        )
        .await;
    let cursor = world.cursor().await;
    // More than a thousand rows in one statement: one mark that lists nothing.
    world
        .run("insert into group_memberships (group_id, user_id) select g.id, u.id from groups g, users u")
        .await;
    let Read::Everything(why) = world.read(&cursor).await else { panic!("listed 20,000 users") };
    assert!(why.contains("more than 1000 rows"), "{why}");
    let before = world.count("select count(*) from gatepost.change").await;
    let cursor = world.cursor().await;
    world
        .run(&format!(
            "insert into policy_targets (policy_id, target_type, target_id) values ('{p}', 'group', '{p}')",
            p = ann.peer
        ))
        .await;
    assert_eq!(world.count("select count(*) from gatepost.change").await, before + 1);
    assert!(matches!(world.read(&cursor).await, Read::Changed(..)));
}

#[tokio::test]
async fn no_marks_name_rows_of_other_gateways_alone() {
    let world = World::new().await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let [ann, bob] = [world.peer(world.gateway, "ann").await, world.peer(other, "bob").await];
    let gone = world.peer(world.gateway, "eve").await;
    let cursor = world.cursor().await;
    let everybody = "update devices set status = 'revoked';
        update users set is_active = false;
        update devices set user_id = user_id";
    world.run(everybody).await;
    world.run(&format!("delete from wireguard_peers where id = '{}'", gone.peer)).await;
    let (.., marks) = world.store.snapshot_with_marks(None).await.unwrap();
    let Read::Changed(changed, _) = world.read(&cursor).await else { panic!() };
    for marks in [marks, changed.marks] {
        let named = |id: uuid::Uuid| {
            marks.iter().any(|mark| mark.listed().is_some_and(|ids| ids.contains(&id)))
        };
        assert!(named(ann.device) && named(ann.user), "{marks:?}");
        assert!(named(gone.device), "its withdrawal must be known: {marks:?}");
        assert!(!named(bob.device) && !named(bob.user), "{marks:?}");
    }
}

#[tokio::test]
async fn a_read_of_changes_tells_the_marks_that_the_function_for_marks_tells() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    for statement in [
        format!("update devices set status = 'revoked' where id = '{}'", ann.device),
        format!("update users set is_active = false where id = '{}'", ann.user),
        "insert into gatepost.change (gateway_id, kind, ids) \
         values (gatepost.everyone(), 'device', '{}')"
            .to_owned(),
    ] {
        world.run(&statement).await;
    }
    let Read::Changed(changed, _) = world.read(&cursor).await else { panic!() };
    let agent = client(&world.role, &world.database).await;
    let rows = agent
        .query(
            "select xid, kind, ids from gatepost.marks($1, $2)",
            &[&cursor.snapshot, &cursor.epoch],
        )
        .await
        .unwrap();
    let told = rows.iter().map(|row| Mark {
        xid: row.get::<_, String>(0).parse().unwrap(),
        kind: row.get::<_, String>(1).into(),
        ids: row.get(2),
    });
    let told = Vec::from_iter(told);
    assert_eq!(changed.marks, told);
    assert_eq!(told.len(), 3, "{told:?}");
}
