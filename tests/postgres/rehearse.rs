//! Statements that are rehearsed: read as if they were committed, and never committed.

use std::time::{Duration, Instant};

use gatepost::store::{
    Ineffective, LockMode, REHEARSAL_WITHIN, Rehearsal, StoreError, ineffective_rows, rehearse,
    split,
};

use crate::postgres::Cluster;
use crate::postgres::pooler::Pooler;
use crate::world::{World, client, options};

async fn run(world: &World, sql: &str) -> Result<Rehearsal, StoreError> {
    within(world, sql, REHEARSAL_WITHIN).await
}

async fn within(world: &World, sql: &str, limit: Duration) -> Result<Rehearsal, StoreError> {
    rehearse(&options("postgres", &world.database), "g1", &split(sql).unwrap(), limit).await
}

fn devices(rehearsal: &Rehearsal) -> (usize, usize) {
    (rehearsal.before.as_ref().unwrap().peers.len(), rehearsal.after.peers.len())
}

/// Whether a session of the database still has a transaction of a rehearsal.
async fn open_transactions(world: &World) -> i64 {
    let sql = "select count(*) from pg_stat_activity where datname = current_database()
               and pid <> pg_backend_pid() and xact_start is not null";
    world.count(sql).await
}

#[tokio::test]
async fn statements_that_change_no_row_are_told() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let sql = "update devices set name = 'renamed';
               update devices set name = 'nobody' where false;
               select from devices where false;
               insert into users select * from users where false;
               with gone as (select 1) delete from wireguard_peers where public_key = 'anne' returning id;
               create table of_a_migration (a int);
               do $$ begin delete from devices where false; end $$";
    let rehearsal = run(&world, sql).await.unwrap();
    let told: Vec<_> = rehearsal.unchanged.iter().map(|it| (it.number, it.line)).collect();
    assert_eq!(told, [(2, 2), (4, 4), (5, 5)], "{:?}", rehearsal.unchanged);
}

#[tokio::test]
async fn rehearsed_statements_are_read_and_never_committed() {
    let world = World::new().await;
    for name in ["ann", "ben"] {
        world.peer(world.gateway, name).await;
    }
    let bindings = "select count(*) from gatepost.gateway_role";
    let marks = "select count(*) from gatepost.change";
    let before = (world.count(bindings).await, world.count(marks).await);
    let sql = "delete from wireguard_peers where public_key = 'ann';
               create table of_a_migration (a int);
               insert into of_a_migration select 1;
               alter table users add column shoe_size int;
               do $$ begin update devices set name = 'renamed'; end $$;
               set local lock_timeout = 0;
               set role pg_monitor";
    let rehearsal = run(&world, sql).await.unwrap();
    assert_eq!(devices(&rehearsal), (2, 1));
    assert_eq!(&*rehearsal.after.peers[0].device_name, "renamed");
    let mode =
        |table: &str| rehearsal.locks.iter().find(|lock| lock.table == table).map(|lock| lock.mode);
    assert_eq!(mode("users"), Some(LockMode::All), "{:?}", rehearsal.locks);
    assert_eq!(mode("wireguard_peers"), Some(LockMode::Rows), "{:?}", rehearsal.locks);
    assert_eq!(mode("policies"), None, "{:?}", rehearsal.locks);

    assert_eq!(world.count("select count(*) from wireguard_peers").await, 2);
    assert_eq!(world.count("select count(*) from devices where name = 'renamed'").await, 0);
    assert_eq!(
        world.count("select count(*) from pg_class where relname = 'of_a_migration'").await,
        0
    );
    assert_eq!((world.count(bindings).await, world.count(marks).await), before);
    assert_eq!(open_transactions(&world).await, 0);
}

#[tokio::test]
async fn rows_without_effect_are_told() {
    let world = World::new().await;
    for name in ["ann", "bob"] {
        world.peer(world.gateway, name).await;
    }
    world.run("update devices set public_key = username from users where users.id = user_id").await;
    let told = || async { ineffective_rows(&options("postgres", &world.database)).await.unwrap() };
    assert_eq!(told().await, []);
    let sql = "insert into policies (name) values ('office'), ('with a target'), ('empty');
               insert into policy_destinations (policy_id, destination)
                   select id, '10.0.0.0/8' from policies where name <> 'empty';
               insert into policy_targets (policy_id, target_type, target_id)
                   select id, 'user', gen_random_uuid() from policies where name like 'with%';
               update devices set public_key = 'another' where user_id in
                   (select id from users where username = 'ann')";
    let expected = [
        Ineffective::Policy { name: "office".into() },
        Ineffective::DeviceKey { user: "ann".into(), device: "ann".into() },
    ];
    assert_eq!(run(&world, sql).await.unwrap().ineffective, expected);
    assert_eq!(told().await, []);
    world.run(sql).await;
    assert_eq!(told().await, expected);
    // A column that no other query needs may go.
    world.run("alter table devices drop column public_key").await;
    assert_eq!(told().await, expected[..1]);
}

#[tokio::test]
async fn device_keys_that_take_long_to_compare_are_left_out_and_hold_up_no_session() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let sql = "insert into policies (name) values ('office');
               insert into policy_destinations (policy_id, destination)
                   select id, '10.0.0.0/8' from policies;
               create type slow as enum ('slow');
               create function shown_slowly(slow) returns json language plpgsql as
                   $$ begin perform pg_sleep(8); return '1'; end $$;
               create cast (slow as json) with function shown_slowly(slow);
               alter table devices add column slow slow not null default 'slow'";
    let rehearsal = run(&world, sql).await.unwrap();
    assert_eq!(devices(&rehearsal), (1, 1));
    assert_eq!(rehearsal.ineffective, [Ineffective::Policy { name: "office".into() }]);
    // Held for as long as the comparison takes, this would have ended the rehearsal.
    let locked = rehearsal.locks.iter().find(|lock| lock.table == "devices");
    assert_eq!(locked.map(|lock| lock.mode), Some(LockMode::All));
    assert_eq!(open_transactions(&world).await, 0);
    // The comparison is as slow as it was made.
    world.run(sql).await;
    let database = options("postgres", &world.database);
    let told = ineffective_rows(&database);
    assert!(tokio::time::timeout(Duration::from_secs(2), told).await.is_err());
}

#[tokio::test]
async fn refused_statement_is_named_with_its_line_and_ends_the_rehearsal() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let refusals = [
        ("delete from wireguard_peers;\n\nselect * from nowhere", "line 3: relation \"nowhere\""),
        ("do $$ begin commit; end $$", "line 1: invalid transaction termination"),
        ("delete from wireguard_peers;\nvacuum", "line 2: VACUUM cannot run inside"),
        (
            "alter table ip_allocations add constraint c unique (status) deferrable initially deferred;
             insert into ip_allocations (gateway_id, address) select id, '10.8.0.1' from gateways;
             insert into ip_allocations (gateway_id, address) select id, '10.8.0.2' from gateways",
            "duplicate key value",
        ),
        ("delete from gateways where false; update gateways set name = 'g9'", "no gateway g1"),
    ];
    for (sql, expected) in refusals {
        let error = run(&world, sql).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{sql}: {error}");
        assert_eq!(world.count("select count(*) from wireguard_peers").await, 1, "{sql}");
    }
    assert_eq!(world.count("select count(*) from gateways where name = 'g1'").await, 1);
}

#[tokio::test]
async fn rehearsal_waits_a_second_for_a_lock_and_keeps_none() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let holder = client("postgres", &world.database).await;
    let asked = Instant::now();
    // A table that is read, too, and one that a statement alone wants.
    for table in ["users", "sessions"] {
        let lock = format!("rollback; begin; lock table {table} in access exclusive mode");
        holder.batch_execute(&lock).await.unwrap();
        let sql = "set lock_timeout = 0; alter table sessions add column shoe_size int";
        let error = run(&world, sql).await.unwrap_err().to_string();
        assert!(error.contains("a rehearsal waits for 1 s"), "{table}: {error}");
    }
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    holder.batch_execute("rollback").await.unwrap();
    // Nothing of the rehearsal is left that would hold this up.
    let now = client("postgres", &world.database).await;
    now.batch_execute("set lock_timeout = '5s'; alter table sessions add column shoe_size int")
        .await
        .unwrap();
}

#[tokio::test]
async fn rehearsal_ends_in_time_whatever_a_statement_sets() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let asked = Instant::now();
    let never = "do $$ begin perform set_config('statement_timeout', '0', true); \
                 lock table users; perform pg_sleep(600); end $$";
    let sleeps = "lock table users; select pg_sleep(2); select pg_sleep(2)";
    for (sql, expected) in [(never, "3 s"), (sleeps, "the end of the time for all")] {
        let limit = Duration::from_secs(3);
        let error = within(&world, sql, limit).await.unwrap_err().to_string();
        assert!(error.contains(expected) || error.contains("longer than 3 s"), "{error}");
    }
    assert!((5..60).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    let now = client("postgres", &world.database).await;
    now.batch_execute("begin; set local lock_timeout = '5s'; lock table users; rollback")
        .await
        .unwrap();
}

#[tokio::test]
async fn table_that_others_wait_for_is_locked_for_five_seconds_at_most() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let asked = Instant::now();
    // One statement that locks and goes on, and a lock that outlasts its statement.
    for sql in [
        "do $$ begin lock table users; perform pg_sleep(25); end $$",
        "alter table users add column shoe_size int; select pg_sleep(25)",
    ] {
        let error = run(&world, sql).await.unwrap_err().to_string();
        assert!(error.contains("table users was locked for 5 s"), "{error}");
    }
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    // Locks on rows keep only those who write the same rows waiting.
    run(&world, "delete from users where false; select pg_sleep(6)").await.unwrap();
}

#[tokio::test]
async fn advisory_locks_of_statements_do_not_stay_in_a_pooled_session() {
    let world = World::new().await;
    let pooler = Pooler::start(([127, 0, 0, 1], Cluster::shared().port).into(), "postgres", "");
    let mut pooled = options("postgres", &world.database);
    let dir = pooler.dir.to_str().unwrap().replace('/', "%2F");
    pooled.url = format!("postgres://postgres@{dir}:{}/{}", pooler.port, world.database);
    let held = "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711";
    for (sql, succeeds) in [
        ("select pg_advisory_lock(4711)", true),
        ("select pg_advisory_lock(4711); select * from nowhere", false),
    ] {
        let statements = split(sql).unwrap();
        let done = rehearse(&pooled, "g1", &statements, REHEARSAL_WITHIN).await;
        assert_eq!(done.is_ok(), succeeds, "{done:?}");
        assert_eq!(world.count(held).await, 0, "{sql}");
    }
}
