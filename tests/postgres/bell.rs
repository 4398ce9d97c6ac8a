//! What a bell asks the database: whom to ring, and the reports of all gateways.

use std::time::{Duration, SystemTime};

use tokio_postgres::Client;
use uuid::Uuid;

use gatepost::model::{DeviceId, GatewayId};
use gatepost::store::{
    ConnectOptions, CreateRole, Cursor, Handshake, MERGED_AT_MOST, Read, Store, grant,
};

use crate::world::{World, client, insert_gateway, options};

/// A login of a bell, with the answer of each call.
struct Bell {
    client: Client,
    name: &'static str,
}

/// What a bell is to publish.
#[derive(Debug, PartialEq, Eq)]
enum Ring {
    /// Another bell rings.
    NotHeld,
    Everyone,
    Gateways(Vec<Uuid>),
}

impl Bell {
    async fn new(world: &World, name: &'static str) -> Self {
        let role = format!("{}_{name}", world.database);
        world.run(&format!("create role {role} login in role gatepost_bell")).await;
        Self { client: client(&role, &world.database).await, name }
    }

    async fn hold(&self) -> bool {
        let query = "select is_held from gatepost.hold_bell($1)";
        self.client.query_one(query, &[&self.name]).await.unwrap().get(0)
    }

    async fn ring(&self) -> Ring {
        let query = "select is_held, everyone, gateways from gatepost.ring($1)";
        let row = self.client.query_one(query, &[&self.name]).await.unwrap();
        match (row.get(0), row.get(1)) {
            (false, _) => Ring::NotHeld,
            (true, true) => Ring::Everyone,
            (true, false) => Ring::Gateways(row.get(2)),
        }
    }
}

/// A bell that holds, and has rung for what was there before it.
async fn ringing(world: &World) -> Bell {
    let bell = Bell::new(world, "a").await;
    assert!(bell.hold().await);
    assert_eq!(bell.ring().await, Ring::Everyone, "what the one before did is unknown");
    assert_eq!(bell.ring().await, Ring::Gateways(vec![]));
    bell
}

#[tokio::test]
async fn a_bell_rings_the_gateways_that_a_change_concerns() {
    let world = World::new().await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let bell = ringing(&world).await;
    let ann = world.peer(world.gateway, "ann").await;
    assert_eq!(bell.ring().await, Ring::Gateways(vec![world.gateway]));
    assert_eq!(bell.ring().await, Ring::Gateways(vec![]), "once");
    // The marks of devices and users name no gateway.
    for sql in ["update devices set status = 'blocked'", "update users set username = 'anna'"] {
        world.run(sql).await;
        assert_eq!(bell.ring().await, Ring::Gateways(vec![world.gateway]), "{sql}");
        assert_eq!(bell.ring().await, Ring::Gateways(vec![]), "{sql}");
    }
    world.run("update gateways set is_active = false where name = 'g2'").await;
    assert_eq!(bell.ring().await, Ring::Gateways(vec![other]));
    world.run("insert into policies (name) values ('all')").await;
    assert_eq!(bell.ring().await, Ring::Everyone);
    // A device that no policy names and that has no peer concerns no gateway.
    let user = ann.user;
    let device = format!(
        "insert into devices (user_id, name, platform, device_fingerprint, public_key)
         values ('{user}', 'spare', 'linux', 'spare', 'key')"
    );
    world.run(&device).await;
    assert_eq!(bell.ring().await, Ring::Gateways(vec![]));
}

#[tokio::test]
async fn a_bell_rings_everyone_when_more_than_half_are_concerned() {
    let world = World::new().await;
    world.run("insert into gatepost.attached select gen_random_uuid(), false, now() from generate_series(1, 5)").await;
    let bell = ringing(&world).await;
    let touch = |gateways: i32| {
        format!(
            "insert into gatepost.change (gateway_id, kind, ids)
             select gen_random_uuid(), 'gateway', '{{}}' from generate_series(1, {gateways})"
        )
    };
    world.run(&touch(2)).await;
    let Ring::Gateways(two) = bell.ring().await else { panic!("rang all for two of five") };
    assert_eq!(two.len(), 2);
    world.run(&touch(3)).await;
    assert_eq!(bell.ring().await, Ring::Everyone);
}

/// A change that commits after one that began later is rung for after its own commit.
#[tokio::test]
async fn a_bell_rings_only_for_what_its_snapshot_sees() {
    let world = World::new().await;
    let other = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    world.peer(world.gateway, "ann").await;
    world.peer(other, "bob").await;
    let bell = ringing(&world).await;
    let slow = client("postgres", &world.database).await;
    slow.batch_execute("begin; update devices set status = 'blocked' where name = 'ann'")
        .await
        .unwrap();
    world.run("update devices set status = 'blocked' where name = 'bob'").await;
    let cursor = world.cursor().await;
    assert_eq!(bell.ring().await, Ring::Gateways(vec![other]));
    assert_eq!(bell.ring().await, Ring::Gateways(vec![]));
    slow.batch_execute("commit").await.unwrap();
    assert_eq!(bell.ring().await, Ring::Gateways(vec![world.gateway]));
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("rung for nothing") };
    assert_eq!(rows.peers.len(), 1);
}

#[tokio::test]
async fn another_bell_takes_over_and_rings_everyone() {
    let world = World::new().await;
    let first = ringing(&world).await;
    let second = Bell::new(&world, "b").await;
    assert!(!second.hold().await, "the first one rings");
    assert_eq!(second.ring().await, Ring::NotHeld);
    // Killed between its commit and its message.
    world.peer(world.gateway, "ann").await;
    first.ring().await;
    world.run("update gatepost.bell set heard_at = heard_at - interval '4 seconds'").await;
    assert!(second.hold().await);
    assert_eq!(second.ring().await, Ring::Everyone);
    assert!(!first.hold().await);
    assert_eq!(first.ring().await, Ring::NotHeld, "it was only slow");
    // An orderly end waits for nothing.
    second.client.execute("select gatepost.leave_bell('b')", &[]).await.unwrap();
    assert!(first.hold().await);
    // A clock that was set back keeps no one out.
    world.run("update gatepost.bell set heard_at = now() + interval '1 hour'").await;
    assert!(second.hold().await);
}

/// A session of the last release that holds the row of the marks that were addressed.
#[tokio::test]
async fn a_row_that_another_session_holds_costs_no_ring() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let bell = ringing(&world).await;
    let stuck = client("postgres", &world.database).await;
    stuck.batch_execute("begin; select from gatepost.addressed for update").await.unwrap();
    world.run("update devices set status = 'blocked'").await;
    assert_eq!(bell.ring().await, Ring::Everyone, "gateways look for themselves");
    assert_eq!(bell.ring().await, Ring::Gateways(vec![]), "once");
    stuck.batch_execute("rollback").await.unwrap();
    assert_eq!(bell.ring().await, Ring::Gateways(vec![world.gateway]));
}

#[tokio::test]
async fn a_bell_can_ring_and_merge_and_nothing_else() {
    let world = World::new().await;
    let bell = Bell::new(&world, "a").await;
    let allowed = "select array(select p.proname::text from pg_proc p
        where p.pronamespace = 'gatepost'::regnamespace
            and has_function_privilege(p.oid, 'execute') order by 1)";
    let allowed: Vec<String> = bell.client.query_one(allowed, &[]).await.unwrap().get(0);
    let functions = [
        "bells",
        "hold_bell",
        "leave_bell",
        "look_for_unwatched",
        "merge_events",
        "merge_gateway",
        "merge_gateway",
        "merge_proofs",
        "ring",
        "unmerged",
    ];
    assert_eq!(allowed, functions);
    let reference = include_str!("../../docs/reference.md");
    for name in allowed {
        assert!(reference.contains(&format!("`{name}(")), "{name} is not in the reference");
    }
    let tables = "select array(select c.oid::regclass::text from pg_class c
        where c.relnamespace in ('public'::regnamespace, 'gatepost'::regnamespace)
            and c.relkind in ('r', 'v'))";
    let tables: Vec<String> = world.admin.query_one(tables, &[]).await.unwrap().get(0);
    assert!(tables.len() > 18, "{tables:?}");
    for table in tables {
        for statement in [format!("select from {table}"), format!("delete from {table}")] {
            let error = bell.client.execute(&statement, &[]).await.unwrap_err();
            let code = error.code().unwrap().code().to_owned();
            assert!(["42501", "55000"].contains(&&*code), "{statement}: {error}");
        }
    }
    // And no gateway may ring.
    let stolen = client(&world.role, &world.database).await;
    for call in ["hold_bell('x')", "leave_bell('a')", "ring('a')", "unmerged()"] {
        let error = stolen.execute(&format!("select gatepost.{call}"), &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42501", "{call}");
    }
}

/// A gateway that never ends its transaction holds no row of the control plane.
#[tokio::test]
async fn a_bell_merges_the_reports_of_gateways() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let bell = ringing(&world).await;
    world.cursor().await;
    let now = SystemTime::now() - Duration::from_secs(1);
    let device_id: DeviceId = ann.device.into();
    let handshake = Handshake { device_id, first_at: now, seen_at: now, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    world.store.synced(now).await.unwrap();
    // A bell that merges asks whose reports wait.
    bell.client.query("select gatepost.unmerged()", &[]).await.unwrap();
    world.store.merge().await.unwrap();
    let synced = "select count(*) from gateways where last_sync_at is not null";
    let seen = "select count(*) from devices where last_seen_at is not null";
    assert_eq!((world.count(synced).await, world.count(seen).await), (0, 0), "the bell merges");

    let stolen = client(&world.role, &world.database).await;
    let open = format!(
        "begin; select gatepost.report(array['{}'::uuid], array[now()], array[now()]);
         select gatepost.proven(now(), null, 'm', 'b', 'h'); select gatepost.merge()",
        ann.device
    );
    stolen.batch_execute(&open).await.unwrap();
    world.run("set lock_timeout = '1s'; update devices set name = 'a'; update gateways set name = 'g1'").await;

    let waiting = "select array(select gatepost.unmerged())";
    let waiting: Vec<Uuid> = bell.client.query_one(waiting, &[]).await.unwrap().get(0);
    assert_eq!(waiting, [world.gateway]);
    let merge = "select * from gatepost.merge_gateway($1)";
    assert!(bell.client.query(merge, &[&world.gateway]).await.unwrap().is_empty());
    assert_eq!(world.count(synced).await, 1);
    // It holds its own report alone.
    assert_eq!(world.count(seen).await, 0);
    stolen.batch_execute("rollback").await.unwrap();
    bell.client.query(merge, &[&world.gateway]).await.unwrap();
    assert_eq!(world.count(seen).await, 1);
    let left =
        bell.client.query_one("select count(*) from gatepost.unmerged()", &[]).await.unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);

    // Without a bell, the agent merges again.
    bell.client.execute("select gatepost.leave_bell('a')", &[]).await.unwrap();
    world.run("update devices set last_seen_at = null").await;
    world.store.report(&[Handshake { seen_at: SystemTime::now(), ..handshake }]).await.unwrap();
    world.store.merge().await.unwrap();
    assert_eq!(world.count(seen).await, 1);
}

/// A trigger of the control plane that takes a tenth of a second for each row.
#[tokio::test]
async fn reports_that_a_slow_trigger_holds_up_are_merged_in_smaller_pages() {
    let world = World::new().await;
    let bell = ringing(&world).await;
    let url = world.url.replace(&world.role, &format!("{}_{}", world.database, bell.name));
    let limits =
        ConnectOptions { statement_timeout: Duration::from_secs(1), ..ConnectOptions::new(url) };
    let merger = Store::connect(&limits).unwrap();
    let mut reports = Vec::new();
    for number in 0..20 {
        let peer = world.peer(world.gateway, &format!("user {number}")).await;
        let seen_at = SystemTime::now() - Duration::from_secs(1);
        let device_id: DeviceId = peer.device.into();
        reports.push(Handshake { device_id, first_at: seen_at, seen_at, connected_at: None });
    }
    world
        .run(
            "create function slow() returns trigger language plpgsql as
                 $$ begin perform pg_sleep(0.1); return new; end $$;
             create trigger slow before update on devices for each row execute function slow()",
        )
        .await;
    world.store.report(&reports).await.unwrap();
    let gateway = GatewayId(world.gateway);
    let error = merger.merge_gateway(gateway, MERGED_AT_MOST).await.unwrap_err();
    assert!(error.took_too_long() && !error.concerns_every_statement(), "{error}");
    let seen = "select count(*) from devices where last_seen_at is not null";
    assert_eq!(world.count(seen).await, 0);
    for merged in [2, 4] {
        merger.merge_gateway(gateway, 2).await.unwrap();
        assert_eq!(world.count(seen).await, merged);
    }
    world.run("drop trigger slow on devices").await;
    merger.merge_gateway(gateway, MERGED_AT_MOST).await.unwrap();
    assert_eq!(world.count(seen).await, 20);
}

/// Whether there is something to read for this gateway since.
async fn has_news(gateway: &Client, function: &str, since: &Cursor) -> bool {
    let query = format!("select news from gatepost.{function}($1, $2)");
    gateway.query_one(&query, &[&since.snapshot, &since.epoch]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_gateway_that_looks_by_itself_misses_nothing_beside_a_bell() {
    let world = World::new().await;
    insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let role = format!("{}_g2", world.database);
    let create = CreateRole::IfAbsent(None);
    grant(&options("postgres", &world.database), "g2", &role, &create).await.unwrap();
    let store =
        Store::connect(&ConnectOptions::new(world.url.replace(&world.role, &role))).unwrap();
    world.peer(world.gateway, "ann").await;
    let bell = ringing(&world).await;
    let mine = client(&world.role, &world.database).await;
    let other = client(&role, &world.database).await;
    let mut cursor = world.cursor().await;
    let mut others = store.snapshot().await.unwrap().1;
    for round in 0..4 {
        world.run(&format!("update devices set name = 'laptop {round}'")).await;
        // Before the bell has addressed the mark, it may concern any gateway.
        assert!(has_news(&mine, "news", &cursor).await, "{round}");
        assert!(has_news(&other, "news", &others).await, "{round}");
        let Read::Nothing(next, _) = store.changes(&others).await.unwrap() else {
            panic!("not its own")
        };
        others = next;
        assert_eq!(bell.ring().await, Ring::Gateways(vec![world.gateway]));
        assert!(has_news(&mine, "news", &cursor).await, "{round}");
        assert!(has_news(&mine, "poll", &cursor).await, "an agent of the last release: {round}");
        assert!(!has_news(&other, "news", &others).await, "{round}");
        let Read::Changed(_, next) = world.read(&cursor).await else { panic!("missed {round}") };
        cursor = next;
        assert!(!has_news(&mine, "news", &cursor).await, "{round}");
    }
}
