//! Neither a writer nor a migration waits for a lock because of a hint, and a mark costs a writer no
//! transaction id.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use gatepost::model::DeviceId;
use gatepost::store::{
    ConnectOptions, Handshake, Merged, Read, migrate, publications_of_all_tables, unmigrate,
};

use crate::postgres::Cluster;
use crate::token::{Pool, token};
use crate::world::{World, client, connect, options};

/// A migration of the control plane holds a table that a hint would look into.
#[tokio::test]
async fn a_writer_does_not_wait_for_a_table_that_a_migration_holds() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run("insert into gatepost.attached select id, true, now() from gateways; insert into groups (name) values ('a'), ('b'), ('c')")
        .await;
    let migration = client("postgres", &world.database).await;
    for (held, write) in [
        ("wireguard_peers", "update devices set status = 'revoked', revoked_at = now()"),
        ("wireguard_peers", "update users set is_active = not is_active"),
        ("policy_targets", "delete from groups where id = (select id from groups limit 1)"),
        ("wireguard_peers", "delete from groups where id = (select id from groups limit 1)"),
        ("devices", "delete from groups where id = (select id from groups limit 1)"),
        ("gateways", "insert into settings (category, key, value) values ('gateway:g1', 'x', '1')"),
        ("gatepost.attached", "update devices set status = 'lost', revoked_at = now()"),
    ] {
        migration
            .batch_execute(&format!("begin; lock table {held} in access exclusive mode"))
            .await
            .unwrap();
        let before = world.count("select count(*) from gatepost.change").await;
        world
            .run(&format!("begin; set local statement_timeout = '20s'; set local lock_timeout = '15s'; {write}"))
            .await;
        let lock_timeout = world.admin.query_one("show lock_timeout", &[]).await.unwrap();
        assert_eq!(lock_timeout.get::<_, &str>(0), "15s", "{write}");
        world.run("commit").await;
        migration.batch_execute("rollback").await.unwrap();
        assert!(world.count("select count(*) from gatepost.change").await > before, "{write}");
    }
    let _ = ann;
}

/// What a hint read is free again for a migration, though the writer's transaction goes on.
#[tokio::test]
async fn a_migration_does_not_wait_for_a_table_that_a_hint_read() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world
        .run("insert into gatepost.attached select id, true, now() from gateways; insert into groups (name) values ('a'), ('b'), ('c')")
        .await;
    let migration = client("postgres", &world.database).await;
    for (read, write) in [
        ("wireguard_peers", "update devices set status = 'revoked'"),
        ("wireguard_peers", "update users set is_active = not is_active"),
        ("devices", "update users set is_active = not is_active"),
        ("policy_targets", "delete from groups where id = (select id from groups limit 1)"),
        ("wireguard_peers", "delete from groups where id = (select id from groups limit 1)"),
        ("devices", "delete from groups where id = (select id from groups limit 1)"),
        ("gateways", "insert into settings (category, key, value) values ('gateway:g1', 'x', '1')"),
    ] {
        // At once: so the statement begins when its transaction does.
        world.run(&format!("begin; {write}")).await;
        let lock = format!("begin; lock table {read} in access exclusive mode nowait; rollback");
        migration
            .batch_execute(&lock)
            .await
            .unwrap_or_else(|error| panic!("{write}; {read}: {error:?}"));
        world.run("rollback").await;
    }
}

/// Of two transactions that wait for each other, the server ends the one that began to wait last.
#[tokio::test]
async fn a_migration_of_several_tables_is_not_ended_because_of_a_read_or_a_report() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    world.run("update devices set status = 'revoked'").await;
    let read = migrates_meanwhile(&world, world.store.snapshot()).await;
    assert_eq!(read.unwrap().0.peers.len(), 1);
    let read = migrates_meanwhile(&world, world.store.changes(&cursor)).await.unwrap();
    assert!(matches!(read, Read::Changed(..)), "{read:?}");
    let (device_id, seen_at) = (DeviceId(ann.device), SystemTime::now());
    let handshake = Handshake { device_id, first_at: seen_at, seen_at, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    // What could not be merged waits.
    let merged = migrates_meanwhile(&world, world.store.merge()).await;
    assert_eq!(merged.unwrap(), Merged::default());
    let seen = "select count(*) from devices where last_seen_at is not null";
    assert_eq!(world.count(seen).await, 0);
    world.store.merge().await.unwrap();
    assert_eq!(world.count(seen).await, 1);
}

/// A report that read first and locked for writing later would wait for the migration, and the migration for it.
#[tokio::test]
async fn a_report_holds_no_table_that_a_migration_keeps_from_being_written() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let (device_id, seen_at) = (DeviceId(ann.device), SystemTime::now());
    let handshake = Handshake { device_id, first_at: seen_at, seen_at, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    let migration = client("postgres", &world.database).await;
    for table in ["devices", "gateways"] {
        for call in ["merge()", "try_reports()"] {
            let agent = client(&world.role, &world.database).await;
            let keeps = format!("begin; lock {table} in share row exclusive mode");
            migration.batch_execute(&keeps).await.unwrap();
            let reports = format!("begin; select * from gatepost.{call}");
            agent.batch_execute(&reports).await.unwrap();
            // gatepost.me() has read gateways, which keeps no writer waiting.
            let held = format!(
                "select string_agg(l.mode, ', ') from pg_locks l
                 join pg_database d on d.oid = l.database and d.datname = current_database()
                 join pg_stat_activity a on a.pid = l.pid and a.usename = '{}'
                 where l.relation = 'public.{table}'::regclass and l.mode <> 'AccessShareLock'",
                world.role
            );
            let held: Option<String> = migration.query_one(&held, &[]).await.unwrap().get(0);
            assert_eq!(held, None, "{call} locks {table}");
            migration.batch_execute("rollback").await.unwrap();
            agent.batch_execute("commit").await.unwrap();
        }
    }
    world.store.merge().await.unwrap();
    let seen = format!(
        "select count(*) from devices where id = '{}' and last_seen_at is not null",
        ann.device
    );
    assert_eq!(world.count(&seen).await, 1);
}

/// Does this while a migration holds a table, which raises its lock as soon as somebody waits for the table, and then
/// gives it back: whether somebody waited.
///
/// The server ends a transaction at once that raises its lock of a table for which another waits that has locked it.
async fn raises_its_lock_meanwhile(
    world: &World,
    table: &str,
    mode: &str,
    work: impl Future<Output = ()>,
) -> bool {
    let cluster = world.own.as_ref().unwrap_or_else(|| Cluster::shared());
    let migration = connect(&cluster.socket_url("postgres", &world.database)).await;
    let holds = format!("begin; lock {table} in {mode} mode");
    migration.batch_execute(&holds).await.unwrap();
    let ended = AtomicBool::new(false);
    let works = async {
        work.await;
        ended.store(true, Ordering::Relaxed);
    };
    let raises = async {
        let waits = format!(
            "select count(*) from pg_locks where relation = '{table}'::regclass and not granted"
        );
        let mut waited = false;
        while !waited && !ended.load(Ordering::Relaxed) {
            waited = world.count(&waits).await > 0;
        }
        let raises = format!("lock {table} in access exclusive mode");
        migration.batch_execute(&raises).await.unwrap();
        migration.batch_execute("rollback").await.unwrap();
        waited
    };
    tokio::join!(works, raises).1
}

#[tokio::test]
async fn a_migration_may_raise_its_lock_of_a_table_for_which_a_report_waits() {
    let (pool, _) = Pool::new().await;
    let world = &pool.world;
    let ann = world.peer(world.gateway, "ann").await;
    let (device_id, seen_at) = (DeviceId(ann.device), SystemTime::now());
    let handshake = Handshake { device_id, first_at: seen_at, seen_at, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    world.run("update gatepost.gateway_role set may_enroll = true").await;
    let of_token = |call: &str| format!("{call}('{}')", token(1).expose());
    let (merge, tries) = (of_token("merge"), of_token("try_reports"));
    let attach = format!("attach('{}', false)", token(1).expose());
    for (role, table, call) in [
        (&world.role, "gateways", "merge()"),
        (&world.role, "devices", "merge()"),
        (&world.role, "gateways", "attach(true)"),
        (&world.role, "gateways", "try_reports()"),
        (&world.role, "devices", "try_reports()"),
        (&world.role, "gateways", "enroll('g1', 'another', 'e:1', 1, '10.8.0.0/16', null, true)"),
        (&pool.role, "gateways", &merge),
        (&pool.role, "gateways", &attach),
        (&pool.role, "gateways", &tries),
        (&pool.role, "devices", &tries),
    ] {
        let agent = connect(&Cluster::shared().socket_url(role, &world.database)).await;
        let mut waited = false;
        // A report gives up after 100 ms.
        for _ in 0..10 {
            let calls = async {
                let call = format!("set lock_timeout = '500ms'; select gatepost.{call}");
                let _ = agent.batch_execute(&call).await;
            };
            waited = raises_its_lock_meanwhile(world, table, "share row exclusive", calls).await;
            if waited {
                break;
            }
        }
        assert!(waited, "{call} never waited for {table}");
    }
}

#[tokio::test]
async fn a_migration_may_raise_its_lock_of_a_table_for_which_gatepost_migrate_or_unmigrate_waits() {
    let world = World::alone().await;
    let url = world.cluster().socket_url("postgres", &world.database);
    let options = ConnectOptions::new(url);
    let drop_all = "do $$ declare it record; begin
        for it in select t.tgname from pg_trigger t where t.tgrelid = 'devices'::regclass
            and t.tgname like 'gatepost%'
        loop execute format('drop trigger %I on devices', it.tgname); end loop; end $$";
    world.run(drop_all).await;
    // What a writer holds.
    let held = "row exclusive";
    let migrates = async { drop(migrate(&options).await.unwrap()) };
    let waited = raises_its_lock_meanwhile(&world, "devices", held, migrates).await;
    assert!(waited, "gatepost migrate never waited");
    let unmigrates = async { drop(unmigrate(&options).await.unwrap()) };
    let waited = raises_its_lock_meanwhile(&world, "devices", held, unmigrates).await;
    assert!(waited, "gatepost unmigrate never waited");
}

/// Does this while a migration holds `devices`, which then wants a table that is read first.
async fn migrates_meanwhile<T>(world: &World, work: impl Future<Output = T>) -> T {
    let migration = client("postgres", &world.database).await;
    migration.batch_execute("begin; alter table devices add column note text").await.unwrap();
    let migrates = async {
        let waits = format!(
            "select count(*) from pg_stat_activity where usename = '{}' and wait_event_type = 'Lock'",
            world.role
        );
        let begins_to_wait = async {
            while world.count(&waits).await == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), begins_to_wait).await.expect("nothing waits");
        // A rewritten table takes longer than `deadlock_timeout`.
        migration.batch_execute("select pg_sleep(1.5)").await.unwrap();
        migration.batch_execute("alter table gateways add column note text").await.unwrap();
        migration.batch_execute("rollback").await.unwrap();
    };
    tokio::join!(work, migrates).0
}

#[tokio::test]
async fn a_mark_takes_no_transaction_id_of_its_own() {
    let world = World::alone().await;
    world.peer(world.gateway, "ann").await;
    world.run("insert into gatepost.attached select id, true, now() from gateways").await;
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    for alteration in ["select 1", "alter table devices rename approved_at to renamed"] {
        world.run(alteration).await;
        let before = world.count(next).await;
        world.run("begin").await;
        for number in 0..100 {
            world.run(&format!("update devices set status = 's{number}'")).await;
        }
        world.run("commit").await;
        assert_eq!(world.count(next).await - before, 1, "{alteration}");
        let before = world.count(next).await;
        for number in 0..100 {
            world.run(&format!("update devices set status = 't{number}'")).await;
        }
        assert_eq!(world.count(next).await - before, 100, "{alteration}");
    }
}

#[tokio::test]
async fn a_change_of_each_watched_table_takes_one_transaction_id() {
    let world = World::alone().await;
    let ann = world.peer(world.gateway, "ann").await;
    let (user, device, gateway) = (ann.user, ann.device, world.gateway);
    world
        .run(&format!(
            "insert into gatepost.attached select id, true, now() from gateways;
             insert into groups (id, name) values ('{user}', 'staff'), ('{device}', 'guests');
             insert into group_memberships (group_id, user_id) values ('{user}', '{user}');
             insert into policies (id, name) values ('{user}', 'intranet');
             insert into policy_targets (policy_id, target_type, target_id)
                 values ('{user}', 'device', '{device}');
             insert into policy_destinations (policy_id, destination) values ('{user}', '10.0.0.0/8');
             insert into settings (category, key, value) values ('policy', 'allow_dns', 'true')"
        ))
        .await;
    let next = "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    for (table, change) in [
        ("users", "set username = 'u%'"),
        ("devices", "set status = 's%'"),
        ("wireguard_peers", "set public_key = 'k%'"),
        ("gateways", "set listen_port = 5000%"),
        ("groups", "set deleted_at = case when deleted_at is null then now() end"),
        ("group_memberships", "set group_id = case when % % 2 = 0 then USER else DEVICE end"),
        ("policies", "set priority = 10%"),
        ("policy_targets", "set target_id = gen_random_uuid()"),
        ("policy_destinations", "set destination = '10.%.0.0/16'"),
        ("settings", "set value = '%'"),
    ] {
        let change = change
            .replace("USER", &format!("'{user}'::uuid"))
            .replace("DEVICE", &format!("'{device}'::uuid"))
            .replace("% % 2", "#");
        let (marks, before) = (world.count(MARKS).await, world.count(next).await);
        for number in 1..=4 {
            let change =
                change.replace('%', &number.to_string()).replace('#', &(number % 2).to_string());
            world.run(&format!("update {table} {change}")).await;
        }
        assert_eq!(world.count(next).await - before, 4, "{table}");
        assert!(world.count(MARKS).await > marks, "{table}");
    }
    let before = world.count(next).await;
    let address = "insert into ip_allocations (gateway_id, address, status)";
    world.run(&format!("{address} values ('{gateway}', '10.8.9.9', 'reserved')")).await;
    assert_eq!(world.count(next).await - before, 1, "ip_allocations");
}

const MARKS: &str = "select count(*) from gatepost.change";

/// A serializable writer must not depend on what a hint reads.
#[tokio::test]
async fn a_serializable_writer_reads_no_table_for_a_hint() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world.run("insert into gatepost.attached select id, true, now() from gateways").await;
    let other = client("postgres", &world.database).await;
    world.run("begin isolation level serializable").await;
    other
        .batch_execute("begin isolation level serializable; select count(*) from devices")
        .await
        .unwrap();
    world.run("update devices set status = 'revoked'").await;
    let moved = format!(
        "update wireguard_peers set assigned_ip = '10.8.7.7' where device_id = '{}'",
        ann.device
    );
    other.batch_execute(&moved).await.unwrap();
    other.batch_execute("commit").await.unwrap();
    world.run("commit").await;
}

/// The server ends a migration that waits for a writer while the writer waits for it.
#[tokio::test]
async fn a_writer_that_waited_for_a_migration_looks_nothing_up_again() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world.run("insert into gatepost.attached select id, true, now() from gateways").await;
    let migration = client("postgres", &world.database).await;
    for (held, write) in [
        ("wireguard_peers", "update devices set status = status || '!'"),
        ("wireguard_peers", "update users set is_active = not is_active"),
        ("gateways", "update settings set value = to_jsonb(random())"),
    ] {
        world.run("delete from settings; insert into settings (category, key, value) values ('gateway:g1', 'x', '1')").await;
        let lock = format!("begin; lock table {held} in access exclusive mode");
        migration.batch_execute(&lock).await.unwrap();
        world.run(&format!("begin; {write}")).await;
        let mut waited = Duration::ZERO;
        for _ in 0..50 {
            let begun = std::time::Instant::now();
            world.run(write).await;
            waited += begun.elapsed();
        }
        // Each look-up would wait for 50 ms.
        assert!(waited < Duration::from_secs(1), "{write} waited {waited:?}");
        world.run("commit").await;
        let busy = "select count(*) where current_setting('gatepost.busy', true) = 'on'";
        assert_eq!(world.count(busy).await, 0, "the next transaction looks up again");
        migration.batch_execute("rollback").await.unwrap();
    }
}

/// As some tools for replicas make it. A table without a key has no other identity.
#[tokio::test]
async fn marks_are_pruned_although_a_publication_publishes_all_tables() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let options = options("postgres", &world.database);
    let published = async || publications_of_all_tables(&options).await.unwrap();
    assert!(published().await.is_empty());
    world.run("create publication everything for all tables").await;
    assert_eq!(published().await, ["everything"], "`gatepost migrate` warns of it");
    assert!(world.count(MARKS).await > 0);
    world.run("set role gatepost_owner; delete from gatepost.change; reset role").await;
    assert_eq!(world.count(MARKS).await, 0);
}

/// A serializable gateway could make serializable writers fail.
#[tokio::test]
async fn a_gateway_cannot_read_in_a_serializable_transaction() {
    let world = World::new().await;
    let gateway = client(&world.role, &world.database).await;
    for (begin, refused) in [
        ("begin isolation level serializable", Some("0A000")),
        ("begin isolation level repeatable read", None),
    ] {
        gateway.batch_execute(begin).await.unwrap();
        let read = gateway.batch_execute("select count(*) from gatepost.snapshot_peers()").await;
        let code = read.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
        assert_eq!(code.as_deref(), refused, "{begin}");
        gateway.batch_execute("rollback").await.unwrap();
    }
}
