//! Taking Gatepost out of a database again.

use gatepost::store::{
    ConnectOptions, CreateRole, Store, StoreError, grant, migrate, unmigrate, unmigration,
};

use crate::migrate::brown_field_on;
use crate::postgres::{Cluster, Setup};
use crate::restore::dump;
use crate::world::{World, client, options};

/// What `pg_dump` prints, without the words that differ each time.
fn dumped(cluster: &Cluster, database: &str) -> String {
    let text = std::fs::read_to_string(dump(cluster, database, &[]).path()).unwrap();
    let lines = text.lines().filter(|line| !line.contains("restrict "));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn unmigrate_leaves_the_database_as_it_was_before_migrate() {
    let cluster = Cluster::start(&Setup::default());
    let (database, admin) = brown_field_on(&cluster).await;
    admin
        .batch_execute(
            "create role reader;
             alter table audit_logs add column seq bigserial not null;
             grant select on devices to reader;
             create function note() returns trigger language plpgsql as 'begin return null; end';
             create trigger note after update on devices for each statement execute function note();
             create index on devices (user_id);
             create view active as select id from devices where status = 'active'",
        )
        .await
        .unwrap();
    let before = dumped(&cluster, &database);
    assert!(before.contains("CREATE TABLE public.wireguard_peers"), "{before}");
    let options = ConnectOptions::new(cluster.socket_url("postgres", &database));
    assert_eq!(unmigration(&options).await.unwrap().statements, [""; 0]);
    migrate(&options).await.unwrap();
    grant(&options, "g1", "fra_1", &CreateRole::IfAbsent(None)).await.unwrap();
    let agent = ConnectOptions::new(cluster.socket_url("fra_1", &database));
    let store = Store::connect(&agent).unwrap();
    store.attach(true).await.unwrap();
    let with = dumped(&cluster, &database);
    assert!(with.contains("CREATE TRIGGER gatepost_update") && with.contains("TO gatepost_owner"));

    let found = unmigration(&options).await.unwrap();
    assert_eq!((found.gateways.len(), &*found.login_roles), (1, &["fra_1".to_owned()][..]));
    assert_eq!(dumped(&cluster, &database), with, "a description changes nothing");
    let (done, kept) = unmigrate(&options).await.unwrap();
    assert_eq!((done, kept.len()), (found, 0));
    assert_eq!(dumped(&cluster, &database), before);
    let roles =
        "select string_agg(rolname, ' ' order by rolname) from pg_roles where rolname !~ '^pg_'";
    assert_eq!(cluster.psql(&database, roles), "fra_1 postgres reader");
    assert!(matches!(store.hello().await.unwrap_err(), StoreError::Unmigrated { .. }));

    // And back again.
    migrate(&options).await.unwrap();
    grant(&options, "g1", "fra_1", &CreateRole::No).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().0.peers.len(), 1);
}

#[tokio::test]
async fn roles_that_another_database_uses_are_kept() {
    let world = World::alone().await;
    let cluster = world.cluster();
    let other = cluster.database(None);
    let theirs = ConnectOptions::new(cluster.socket_url("postgres", &other));
    migrate(&theirs).await.unwrap();
    let (done, _) = unmigrate(&theirs).await.unwrap();
    assert!(!done.statements.iter().any(|it| it.starts_with("drop role")), "{done:?}");
    world.store.snapshot().await.unwrap();
    assert!(world.store.wrong_rights().await.unwrap().is_empty());
}

#[tokio::test]
async fn unmigrate_drops_nothing_that_is_not_gateposts() {
    let world = World::new().await;
    let admin = options("postgres", &world.database);
    let theirs = [
        (
            "view public.latest",
            "view public.latest as select max(version) from gatepost.schema_history",
        ),
        ("table gatepost.notes", "table gatepost.notes (id bigserial primary key, note text)"),
        ("view gatepost.recent", "view gatepost.recent as select * from gatepost.notes"),
        (
            "function gatepost.twice(integer)",
            "function gatepost.twice(integer) returns integer
             language sql as 'select 2 * $1'",
        ),
        (
            "trigger audit on table public.users",
            "trigger audit after update on users for each row
             execute function gatepost.\"TRIGGER\"()",
        ),
    ];
    let trigger_function = "select min(proname)::text from pg_proc
        where pronamespace = 'gatepost'::regnamespace and prorettype = 'trigger'::regtype";
    let row = world.admin.query_one(trigger_function, &[]).await.unwrap();
    for (_, definition) in theirs {
        world.run(&format!("create {}", definition.replace("TRIGGER", row.get(0)))).await;
    }
    let error = unmigrate(&admin).await.unwrap_err().to_string();
    let mut listed: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
    let mut expected = theirs.map(|(object, _)| object);
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected, "{error}");
    assert_eq!(unmigration(&admin).await.unwrap_err().to_string(), error);
    // Nothing was changed.
    world.store.snapshot().await.unwrap();
    assert!(world.store.attach(true).await.unwrap().unwatched.is_empty());

    // A transaction that has written keeps its tables; the command waits for it.
    world
        .run(
            "drop view latest, gatepost.recent; drop table gatepost.notes;
             drop function gatepost.twice; drop trigger audit on users",
        )
        .await;
    let busy = client("postgres", &world.database).await;
    busy.batch_execute("begin; update devices set name = 'x'").await.unwrap();
    let removing = tokio::spawn(async move { unmigrate(&admin).await });
    let waiting = format!(
        "select count(*) from pg_stat_activity where datname = '{}' and wait_event_type = 'Lock'",
        world.database
    );
    while world.count(&waiting).await == 0 {
        assert!(!removing.is_finished(), "it did not wait");
        tokio::task::yield_now().await;
    }
    busy.batch_execute("commit").await.unwrap();
    removing.await.unwrap().unwrap();
    world.run("update devices set name = 'y'; delete from wireguard_peers").await;
}

/// As on managed servers, where no login is a superuser.
#[tokio::test]
async fn an_owner_without_superuser_rights_unmigrates() {
    let world = World::alone().await;
    let cluster = world.cluster();
    world.run("create role boss login createrole").await;
    world.run("create database theirs owner boss").await;
    unmigrate(&ConnectOptions::new(cluster.socket_url("postgres", &world.database))).await.unwrap();
    let boss = ConnectOptions::new(cluster.socket_url("boss", "theirs"));
    migrate(&boss).await.unwrap();
    let (_, kept) = unmigrate(&boss).await.unwrap();
    assert_eq!(kept, [""; 0]);
    let ours = "select count(*) from pg_roles where rolname like 'gatepost%'";
    assert_eq!(cluster.psql("theirs", ours), "0");
}
