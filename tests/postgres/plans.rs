//! What is read after a change is found by index, however large the tables are.

use std::collections::{BTreeMap, BTreeSet};

use gatepost::store::{CreateRole, Cursor, Store, grant};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, NoTls};
use uuid::Uuid;

use crate::world::{World, options};

const LARGE: [&str; 8] = [
    "change",
    "devices",
    "group_memberships",
    "ip_allocations",
    "policy_destinations",
    "policy_targets",
    "users",
    "wireguard_peers",
];

/// That one scan touches: what changed, and what hangs on it.
const MOST_ROWS: u64 = 2_000;

/// 20,000 peers, half of them here, and as many that are deleted; 4,000 users in 200 groups; 2,000 policies; 10,000 marks.
const ROWS: &str = "
    insert into roles (name) values ('staff');
    insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
        values ('g2', 'e:1', 'k', 1, '10.9.0.0/16');
    insert into users (role_id, username, display_name, password_hash)
        select id, 'user' || n, 'u', 'x' from roles, generate_series(1, 4000) n;
    insert into groups (name) select 'g' || n from generate_series(1, 200) n;
    insert into group_memberships (group_id, user_id)
        select g.id, u.id from users u, groups g
        where (substr(username, 5)::int + substr(g.name, 2)::int) % 50 = 0;
    insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at)
        select u.id, 'd' || k, 'linux', username || k, 'k', now() from users u, generate_series(1, 5) k;
    create temp table d as
        select id, substr(name, 2)::int as k, row_number() over (order by device_fingerprint) as n
        from devices;
    insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip)
        select g.id, d.id, 'k' || d.n, '10.8.0.0'::inet + d.n
        from d join gateways g on g.name = 'g' || d.k % 2 + 1;
    insert into ip_allocations (gateway_id, device_id, address)
        select gateway_id, device_id, assigned_ip from wireguard_peers;
    insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip, deleted_at)
        select gateway_id, device_id, public_key || ' before', assigned_ip, now() from wireguard_peers;
    insert into policies (name) select 'p' || n from generate_series(1, 2000) n;
    insert into policy_targets (policy_id, target_type, target_id)
        select p.id, 'group', g.id from policies p join groups g
        on substr(p.name, 2)::int % 200 = substr(g.name, 2)::int;
    insert into policy_destinations (policy_id, destination)
        select id, '10.0.0.0/8' from policies, generate_series(1, 5);
    truncate gatepost.change;
    insert into gatepost.change (gateway_id, kind, ids)
        select case when n % 2 = 0 then gatepost.nobody() else gen_random_uuid() end, 'device',
            array[gen_random_uuid()] from generate_series(1, 10000) n";

const CHANGES: &str = "
    update devices set status = 'blocked' where device_fingerprint like 'user77_';
    update users set username = 'ann' where username = 'user99';
    delete from group_memberships where user_id = (select id from users where username = 'user100');
    update groups set deleted_at = now() where name = 'g7';
    update policies set priority = 3 where name = 'p7';
    update ip_allocations set status = 'released' where address = '10.8.0.2';
    delete from wireguard_peers where assigned_ip = '10.8.0.4'";

/// A session that is told the plan of every statement it makes, also of those within functions.
async fn explained(world: &World) -> (Client, mpsc::UnboundedReceiver<Value>) {
    let url = crate::postgres::Cluster::shared().socket_url("postgres", &world.database);
    let (client, mut connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let (told, plans) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let AsyncMessage::Notice(notice) = message
                && let Some((_, plan)) = notice.message().split_once("plan:\n")
            {
                told.send(serde_json::from_str(plan).unwrap()).unwrap();
            }
        }
    });
    let explain = "load 'auto_explain'; set auto_explain.log_min_duration = 0; \
                   set auto_explain.log_nested_statements = on; \
                   set auto_explain.log_analyze = on; \
                   set auto_explain.log_format = json; set auto_explain.log_level = notice";
    client.batch_execute(explain).await.unwrap();
    (client, plans)
}

/// How a relation was read: by which kinds of scans, and how many rows one of them touched at most,
/// those that a filter then threw away among them, for which statement.
#[derive(Debug, Default)]
struct Reading {
    scans: BTreeSet<String>,
    most_rows: (u64, String),
}

/// Adds the scans of a plan to the readings of their relations.
fn scans(query: &str, plan: &Value, found: &mut BTreeMap<String, Reading>) {
    let node = plan["Node Type"].as_str().unwrap();
    if let Some(relation) = plan["Relation Name"].as_str()
        && node.ends_with("Scan")
    {
        let count = |field: &str| plan[field].as_f64().unwrap_or_default();
        let kept = count("Actual Rows") + count("Rows Removed by Filter");
        let each = kept + count("Rows Removed by Index Recheck");
        let rows = (each * count("Actual Loops")).ceil() as u64;
        let reading = found.entry(relation.into()).or_default();
        reading.scans.insert(node.into());
        if rows > reading.most_rows.0 {
            reading.most_rows = (rows, query.into());
        }
    }
    for child in plan["Plans"].as_array().into_iter().flatten() {
        scans(query, child, found);
    }
}

#[tokio::test]
async fn changes_are_found_by_index() {
    changes_are_bounded("analyze").await;
}

/// As after a restore or a bulk load, until autovacuum comes by.
#[tokio::test]
async fn changes_are_found_by_index_in_a_database_without_statistics() {
    changes_are_bounded("").await;
}

async fn changes_are_bounded(prepare: &str) {
    let world = World::new().await;
    // A transaction that goes on: to look from the oldest one on would be to look at all marks.
    let holder = crate::world::client("postgres", &world.database).await;
    holder.batch_execute("begin; select pg_current_xact_id()").await.unwrap();
    world.run(ROWS).await;
    world.run(prepare).await;
    let admin = options("postgres", &world.database);
    grant(&admin, "g1", "postgres", &CreateRole::No).await.unwrap();
    let cursor: Cursor = Store::connect(&admin).unwrap().snapshot().await.unwrap().1;
    world.run(CHANGES).await;

    let (client, mut plans) = explained(&world).await;
    let since: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&cursor.snapshot, &cursor.epoch];
    let polled = client.query_one("select news from gatepost.news($1, $2)", &since).await.unwrap();
    assert!(polled.get::<_, bool>(0));
    let known = "select array_agg(id) from policies";
    let known: Vec<Uuid> = world.admin.query_one(known, &[]).await.unwrap().get(0);
    let changes =
        "select everything, devices, users, policies from gatepost.changes_among($1, $2, $3)";
    let since: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&cursor.snapshot, &cursor.epoch, &known];
    let row = client.query_one(changes, &since).await.unwrap();
    assert_eq!(row.get::<_, Option<&str>>(0), None);
    let ids = |column: usize| row.get::<_, Vec<Uuid>>(column);
    for (function, ids) in
        [("peers_by_device", ids(1)), ("memberships_by_user", ids(2)), ("policies_by_id", ids(3))]
    {
        assert!(!ids.is_empty(), "nothing to ask {function} for");
        let query = format!("select * from gatepost.{function}($1)");
        assert!(!client.query(&query, &[&ids]).await.unwrap().is_empty(), "{function}");
    }

    let devices =
        "select array_agg(device_id) from (select device_id from wireguard_peers limit 10) p";
    let devices: Vec<Uuid> = world.admin.query_one(devices, &[]).await.unwrap().get(0);
    for function in ["devices_by_id", "policies_by_device"] {
        let query = format!("select * from gatepost.{function}($1)");
        assert!(!client.query(&query, &[&devices]).await.unwrap().is_empty(), "{function}");
    }

    let (statements, found) = readings(&mut plans);
    assert!(statements > 20, "only {statements} plans were told");
    for table in LARGE {
        assert_bounded(table, &found);
    }
}

#[tokio::test]
async fn reported_rows_are_found_by_index() {
    reported_rows_are_bounded("analyze").await;
}

#[tokio::test]
async fn reported_rows_are_found_by_index_in_a_database_without_statistics() {
    reported_rows_are_bounded("").await;
}

async fn reported_rows_are_bounded(prepare: &str) {
    let world = World::new().await;
    world.run(ROWS).await;
    world.run(prepare).await;
    grant(&options("postgres", &world.database), "g1", "postgres", &CreateRole::No).await.unwrap();
    let here = "select array_agg(device_id) from (
                    select device_id from wireguard_peers p join gateways g on g.id = p.gateway_id
                    where g.name = 'g1' limit 20) d";
    let devices: Vec<Uuid> = world.admin.query_one(here, &[]).await.unwrap().get(0);

    let (client, mut plans) = explained(&world).await;
    let report =
        "select gatepost.report($1, array_fill(now(), array[20]), array_fill(now(), array[20]))";
    client.query(report, &[&devices]).await.unwrap();
    let entries: Vec<Value> = devices.iter().map(|device| serde_json::json!({
        "event_type": "peer.revoked", "entity_type": "peer", "entity_id": device, "device_id": device,
        "status": "ok", "message": "revoked", "metadata": {},
    })).collect();
    let audit = "select gatepost.audit($1)";
    client.query(audit, &[&serde_json::Value::from(entries)]).await.unwrap();
    let merged = client.query("select * from gatepost.merge()", &[]).await.unwrap();
    assert!(merged.is_empty(), "{merged:?}");
    let told = "select count(*) from audit_logs where actor_device_id is not null";
    assert_eq!(world.count(told).await, 20);

    let (statements, found) = readings(&mut plans);
    assert!(statements > 3, "only {statements} plans were told");
    for table in ["devices", "wireguard_peers"] {
        assert_bounded(table, &found);
    }
}

/// How each relation was read by the statements that ran and whose plans were told, and how many those are. All
/// notices of a statement come before its answer; none is under way any more.
fn readings(plans: &mut mpsc::UnboundedReceiver<Value>) -> (usize, BTreeMap<String, Reading>) {
    let (mut statements, mut found) = (0, BTreeMap::new());
    while let Ok(plan) = plans.try_recv() {
        // `gatepost.may_write` asks for a plan, takes its locks and never runs it.
        if plan["Plan"].get("Actual Loops").is_none() {
            continue;
        }
        statements += 1;
        let query = plan["Query Text"].as_str().unwrap();
        scans(query, &plan["Plan"], &mut found);
    }
    (statements, found)
}

fn assert_bounded(table: &str, found: &BTreeMap<String, Reading>) {
    let reading = found.get(table).unwrap_or_else(|| panic!("no plan reads {table}"));
    assert!(!reading.scans.contains("Seq Scan"), "{table} is read row by row: {reading:?}");
    assert!((1..=MOST_ROWS).contains(&reading.most_rows.0), "{table}: {reading:?}");
}
