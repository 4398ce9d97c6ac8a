//! The control plane's own triggers on the tables that reports are merged into.

use std::time::{Duration, SystemTime};

use gatepost::model::DeviceId;
use gatepost::reconcile::status::{State, Status};
use gatepost::store::{Handshake, Merged, Store, try_reports};

use crate::agent::{Memory, agent, good_peer};
use crate::fault::row;
use crate::postgres::Cluster;
use crate::running::Running;
use crate::world::{World, client, options};

/// A report of each kind.
async fn report(world: &World, device: uuid::Uuid) -> Merged {
    let seen_at = SystemTime::now() - Duration::from_secs(5);
    let handshake =
        Handshake { device_id: DeviceId(device), first_at: seen_at, seen_at, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    assert!(world.store.synced(SystemTime::now()).await.unwrap());
    let started = r#"select gatepost.audit('[{"event_type": "gateway.started",
        "entity_type": "gateway", "status": "success", "message": "started"}]')"#;
    client(&world.role, &world.database).await.batch_execute(started).await.unwrap();
    world.store.merge().await.unwrap()
}

/// How many reports are in the control plane's tables: handshakes, proofs, audit entries.
async fn written(world: &World) -> i64 {
    world
        .count(
            "select (select count(*) from devices where last_seen_at is not null)
                + (select count(*) from gateways where last_sync_at is not null)
                + (select count(*) from audit_logs)",
        )
        .await
}

/// As in many applications: each keeps the former rows in a table beside it.
const HISTORY: &str = "
    create table history (relation text, row jsonb, changed_by text, at timestamptz default now());
    create sequence history_number;
    create function keep_history() returns trigger language plpgsql as $$ begin
        insert into history (relation, row, changed_by)
            values (tg_table_name, to_jsonb(new), current_user || nextval('history_number'));
        return new;
    end $$;
    create trigger row_history before insert or update on gateways
        for each row execute function keep_history();
    create trigger row_history before insert or update on devices
        for each row execute function keep_history();
    create trigger row_history before insert on audit_logs
        for each row execute function keep_history()";

#[tokio::test]
async fn refused_report_waits_and_names_the_trigger_and_the_grant_that_mends_it() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world.run(HISTORY).await;
    for right in ["insert on public.history", "usage on sequence public.history_number"] {
        let refused = report(&world, ann.device).await.refusals;
        let tables = ["audit_logs", "devices", "gateways"];
        assert_eq!(refused.len(), tables.len(), "{refused:?}");
        for (refusal, table) in refused.iter().zip(tables) {
            assert!(refusal.why.starts_with(&format!("trigger row_history on {table}: ")));
            let grant = format!("run `grant {right} to gatepost_owner`");
            assert!(refusal.why.ends_with(&grant), "{}", refusal.why);
        }
        let tried = world.store.try_reports().await.unwrap();
        assert_eq!(tried.len(), 3, "{tried:?}");
        assert_eq!(try_reports(&options("postgres", &world.database)).await.unwrap(), tried);
        assert_eq!(written(&world).await, 0);
        world.run(&format!("grant {right} to gatepost_owner")).await;
    }
    assert_eq!(try_reports(&options("postgres", &world.database)).await.unwrap(), [""; 0]);
    assert_eq!(
        world.count("select count(*) from history").await,
        0,
        "what was tried is taken back"
    );
    // What waited is written, the audit entries of both reports, too.
    assert_eq!(world.store.merge().await.unwrap(), Merged::default());
    assert_eq!(written(&world).await, 1 + 1 + 2);
    assert_eq!(world.count("select count(*) from gatepost.refused").await, 0);
}

/// Triggers that applications have, each as it is usually written: without a schema before its names.
#[tokio::test]
async fn triggers_of_the_control_plane_run_with_the_search_path_of_the_database() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run(
            "create schema app;
             create extension moddatetime schema app;
             create table app.devices_history (like public.devices, sys_period tstzrange);
             create table app.audit_trail (id bigserial, what text);
             create function app.versioning() returns trigger language plpgsql as $$ begin
                 insert into devices_history select old.*, tstzrange(old.updated_at, now());
                 return new;
             end $$;
             create function app.pgaudit() returns trigger language plpgsql as $$ begin
                 insert into audit_trail (what) values (describe(tg_table_name, tg_op));
                 return null;
             end $$;
             create function app.describe(t text, op text) returns text language sql
                 as 'select op || '' of '' || t || '' by '' || current_user';
             create trigger touched before update on devices
                 for each row execute function app.moddatetime(updated_at);
             create trigger versioning before update on devices
                 for each row execute function app.versioning();
             create constraint trigger late after update on gateways deferrable initially deferred
                 for each row execute function app.pgaudit();
             create trigger audited after insert or update on gateways
                 for each statement execute function app.pgaudit();
             create trigger audited after insert on audit_logs
                 for each row execute function app.pgaudit();
             grant usage on schema app to gatepost_owner;
             grant insert on app.devices_history, app.audit_trail to gatepost_owner;
             grant usage on sequence app.audit_trail_id_seq to gatepost_owner",
        )
        .await;
    let why = report(&world, ann.device).await.refusals.remove(0).why;
    let lost = "trigger audited on audit_logs: relation \"audit_trail\" does not exist";
    assert!(why.starts_with(lost) && why.contains("search_path"), "{why}");
    let path =
        format!("alter database {} set search_path = app, \"$user\", public", world.database);
    world.run(&path).await;
    // The session's own path, and tables of its own, count for nothing.
    let stolen = client(&world.role, &world.database).await;
    let session = "create temp table audit_trail (what text); set search_path = pg_temp";
    stolen.batch_execute(session).await.unwrap();
    assert!(stolen.query("select * from gatepost.merge()", &[]).await.unwrap().is_empty());
    assert_eq!(written(&world).await, 3);
    assert_eq!(world.count("select count(*) from app.devices_history").await, 1);
    let trail = "select count(*) from app.audit_trail where what like '% by gatepost_owner'";
    assert_eq!(world.count(trail).await, 3);
    assert_eq!(world.store.try_reports().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn agent_is_degraded_while_reports_are_refused() {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let mut options = agent(&world, Memory::default()).await;
    options.machine.timing.heartbeat = Duration::from_millis(200);
    let mut agent = Running::start(options);
    agent.waits_for("ready", |status| status.state == State::Ready).await;
    world.run(HISTORY).await;
    let refused = |status: &Status| {
        let named = |why: &str| why.contains("trigger row_history on ");
        matches!(&status.state, State::Degraded { why } if named(why))
            && status.reports.refused_since.is_some()
            && status.reports.refused_by.iter().any(|why| named(why))
            && status.warnings.iter().any(|warning| named(warning))
    };
    agent.waits_for("degraded", refused).await;
    world.run("grant insert on history to gatepost_owner").await;
    world.run("grant usage on sequence history_number to gatepost_owner").await;
    let taken = |status: &Status| {
        status.state == State::Ready
            && status.reports.refused_since.is_none()
            && !status.warnings.iter().any(|warning| warning.contains("refused"))
    };
    agent.waits_for("ready again", taken).await;
    agent.stop().await;
    row(
        "reports refused by a trigger of the control plane",
        "degraded, with the trigger and the remedy; reports wait",
        None,
    );
}

/// The functions of the version before serve its agents: what these report is merged for them.
#[tokio::test]
async fn reports_of_an_agent_that_does_not_merge_are_merged_when_it_registers() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world.run(HISTORY).await;
    report(&world, ann.device).await;
    world.run("drop function keep_history() cascade").await;
    world
        .run(
            "update gatepost.seen set since = since - interval '31 seconds';
             update gatepost.event set at = at - interval '31 seconds'",
        )
        .await;
    world.store.attach(true).await.unwrap();
    assert_eq!(written(&world).await, 3);
}

/// An agent follows a database of the version before, and says that it is to be migrated.
#[tokio::test]
async fn agent_follows_a_schema_of_the_version_before() {
    let cluster = Cluster::shared();
    let database = cluster.database(None);
    let admin = client("postgres", &database).await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    let file = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('V'))
        .collect();
    names.sort_by_key(|name| name[1..].split('_').next().unwrap().parse::<u32>().unwrap());
    admin.batch_execute(&format!("begin; {}; commit", file("prepare.sql"))).await.unwrap();
    admin
        .batch_execute("create table gatepost.schema_history (version integer, checksum text)")
        .await
        .unwrap();
    for name in &names[..10] {
        let sql = format!("begin; set local search_path = public; {}; commit", file(name));
        admin.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    admin
        .batch_execute(
            "insert into gatepost.schema_history select generate_series(1, 10);
             reset search_path;
             grant select, insert, update on all tables in schema public to gatepost_owner;
             grant usage on schema gatepost to gatepost_gateway",
        )
        .await
        .unwrap();
    admin.batch_execute(&format!("begin; {}; commit", file("triggers.sql"))).await.unwrap();
    let gateway = crate::world::insert_gateway(&admin, "g1", "10.8.0.0/16").await;
    let role = format!("{database}_g1");
    admin
        .batch_execute(&format!(
            "create role {role} login; grant gatepost_gateway to {role};
             insert into gatepost.gateway_role values ('{role}', 'g1', '{gateway}')"
        ))
        .await
        .unwrap();
    let store = Store::connect(&options(&role, &database)).unwrap();
    let url = cluster.socket_url(&role, &database);
    let world = World { database, admin, gateway, role, store, url, own: None };
    good_peer(&world, 1).await;
    let host = Memory::default();
    let mut agent = Running::start(agent(&world, host.clone()).await);
    let says_so = |status: &Status| {
        let why = status.state.why().unwrap_or_default();
        status.state.is_ready() && why.ends_with("run this version's `gatepost migrate`")
    };
    agent.waits_for("degraded", says_so).await;
    assert_eq!(host.state().peers.len(), 1);
    world.run("update devices set status = 'revoked', revoked_at = now()").await;
    agent.waits_for("revoked", |status| status.peers.in_kernel == 0).await;
    let synced = "select count(*) from gateways where last_sync_at is not null";
    assert_eq!(world.count(synced).await, 1, "written at once, as that version does");
    agent.stop().await;
    row("schema older than the agent", "served as before; the agent says to migrate", None);
}
