//! One gateway's open transaction holds up no other gateway.

use std::collections::BTreeSet;

use gatepost::store::{CreateRole, Token, grant};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::token::{Pool, token};
use crate::world::{World, client, insert_gateway, insert_peer, options};

/// What an agent may call, about a device with a peer at both gateways. Without `enroll`, which
/// agents do not call.
fn calls(device: Uuid) -> Vec<String> {
    calls_at(
        "(select s.cursor from gatepost.snapshot_gateway() s), \
              (select s.epoch from gatepost.snapshot_gateway() s)",
        device,
    )
}

/// The same by the functions that take a token, as far as there are any.
async fn calls_with(token: &Token, device: Uuid, world: &World) -> Vec<String> {
    let token = format!("'{}'", token.expose());
    let position = ["cursor", "epoch"]
        .map(|it| format!("(select s.{it} from gatepost.snapshot_gateway({token}) s)"));
    let row = world.admin.query_one(WITH_TOKEN, &[]).await.unwrap();
    let functions: BTreeSet<String> = row.get::<_, Vec<String>>(0).into_iter().collect();
    let mut calls = calls_at(&position.join(", "), device);
    calls.push("snapshot_gateway()".into());
    calls.retain(|call| functions.contains(call.split('(').next().unwrap()));
    assert_eq!(names(&calls), functions, "calls everything");
    calls
        .iter()
        .map(|call| call.replacen('(', &format!("({token}, "), 1).replace(", )", ")"))
        .collect()
}

const WITH_TOKEN: &str = "select array_agg(distinct proname::text) from pg_proc
    where pronamespace = 'gatepost'::regnamespace and proargnames[1] = 'token'
    and has_function_privilege('gatepost_gateway', oid, 'execute')";

fn names(calls: &[String]) -> BTreeSet<String> {
    calls.iter().map(|call| call.split('(').next().unwrap().to_owned()).collect()
}

/// `position`: a cursor and its epoch.
fn calls_at(position: &str, device: Uuid) -> Vec<String> {
    let audit = format!(
        r#"[{{"event_type": "peer.connected", "entity_type": "peer", "device_id": "{device}",
              "status": "success", "message": "connected"}},
            {{"event_type": "peer.quarantined", "entity_type": "peer", "entity_id": "{device}",
              "status": "warning", "message": "x"}}]"#
    );
    vec![
        "hello()".into(),
        "attach(true)".into(),
        "follow(true)".into(),
        "snapshot_settings()".into(),
        "snapshot_peers()".into(),
        "snapshot_memberships()".into(),
        "snapshot_policies()".into(),
        format!("news({position})"),
        format!("poll({position})"),
        format!("changes({position})"),
        format!("changes_among({position}, array['{device}'::uuid])"),
        format!("read_changes({position}, array['{device}'::uuid])"),
        "proven(now(), null, 'machine', 'boot', 'host')".into(),
        "heartbeat(now(), null, 'machine', 'boot', 'host', true)".into(),
        "prove(now(), null, 'machine', 'boot', 'host')".into(),
        "hosts()".into(),
        "forget_host('machine', 'boot')".into(),
        format!("marks({position})"),
        format!("peers_by_device(array['{device}'::uuid])"),
        format!("memberships_by_user(array['{device}'::uuid])"),
        format!("policies_by_id(array['{device}'::uuid])"),
        "lost_marks('{9}', '{device}', '{null}', '{null}', '{null}', array[now()])".into(),
        format!("report(array['{device}'::uuid], array[now()], array[now()])"),
        "synced(now())".into(),
        format!("audit('{audit}')"),
        "prune('1 day')".into(),
        "unwatched()".into(),
        "rewritten()".into(),
        "misfits()".into(),
        "try_reports()".into(),
        "merge()".into(),
        format!("words('{{}}', array['{device}'::uuid])"),
        format!("devices_by_id(array['{device}'::uuid])"),
        format!("policies_by_device(array['{device}'::uuid])"),
    ]
}

async fn call_all(client: &Client, calls: &[String]) {
    for call in calls {
        let called = client.batch_execute(&format!("select * from gatepost.{call}")).await;
        called.unwrap_or_else(|error| panic!("{call}: {error:?}"));
    }
}

#[tokio::test]
async fn open_transaction_of_one_gateway_holds_up_no_other() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let g2 = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    insert_peer(&world.admin, g2, ann.device, "another key").await;
    let role = format!("{}_g2", world.database);
    let create = CreateRole::IfAbsent(None);
    grant(&options("postgres", &world.database), "g2", &role, &create).await.unwrap();
    let calls = calls(ann.device);
    let callable =
        "select array_agg(proname::text) from pg_proc where pronamespace = 'gatepost'::regnamespace
        and has_function_privilege('gatepost_gateway', oid, 'execute')
        and proname not in ('enroll', 'snapshot_gateway')";
    let row = world.admin.query_one(callable, &[]).await.unwrap();
    let callable = row.get::<_, Vec<String>>(0).into_iter().collect();
    assert_eq!(names(&calls), callable, "calls everything");
    // Both agents were away for two days. Old marks are to be pruned, and new ones to be addressed.
    world
        .run(
            "insert into gatepost.attached
                 select id, true, now() - interval '2 days' from gateways;
             update devices set status = 'blocked';
             update gatepost.change set at = now() - interval '3 days'",
        )
        .await;
    let stolen = client(&role, &world.database).await;
    stolen.batch_execute("begin").await.unwrap();
    call_all(&stolen, &calls).await;
    let mine = client(&world.role, &world.database).await;
    mine.batch_execute("set lock_timeout = '200ms'").await.unwrap();
    call_all(&mine, &calls).await;
    // And what it did not commit is done later.
    stolen.batch_execute("rollback").await.unwrap();
    call_all(&mine, &calls).await;
}

/// The session of a stolen login holds a transaction open after each function that it may call.
#[tokio::test]
async fn open_transaction_of_a_gateway_holds_up_no_revocation() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let stolen = client(&world.role, &world.database).await;
    let portal = portal(&world).await;
    let mut enroll = vec!["enroll('g1', 'another key', 'e:1', 1, '10.8.0.0/16', null)".to_owned()];
    enroll.extend(calls(ann.device));
    // A report that waits must not be merged by what all agents call, either.
    let report = calls(ann.device).into_iter().find(|call| call.starts_with("report(")).unwrap();
    stolen.batch_execute(&format!("select gatepost.{report}")).await.unwrap();
    world.run("update gatepost.gateway_role set may_enroll = true").await;
    for call in &enroll {
        stolen.batch_execute(&format!("begin; select * from gatepost.{call}")).await.unwrap();
        // This one writes rows of the control plane: ARCHITECTURE.md tells how to end such a session.
        if call != "merge()" {
            let revoked = portal.batch_execute(REVOKE).await;
            assert!(revoked.is_ok(), "after {call}: {revoked:?}");
        }
        if call != "merge()" && !call.starts_with("enroll(") {
            let updated = portal.batch_execute("update gateways set endpoint = endpoint").await;
            assert!(updated.is_ok(), "after {call}: {updated:?}");
        }
        stolen.batch_execute("rollback").await.unwrap();
    }
}

/// Gateways behind a pool: each call is held open by itself, and all of them together.
#[tokio::test]
async fn open_transaction_of_one_token_holds_up_no_other_and_no_revocation() {
    let (pool, g2) = Pool::new().await;
    let world = &pool.world;
    let ann = world.peer(world.gateway, "ann").await;
    insert_peer(&world.admin, g2, ann.device, "another key").await;
    let (theirs, own) = (
        calls_with(&token(1), ann.device, world).await,
        calls_with(&token(2), ann.device, world).await,
    );
    let (stolen, mine) = (pool.stolen().await, pool.stolen().await);
    mine.batch_execute("set lock_timeout = '200ms'").await.unwrap();
    world.run("update devices set status = 'blocked'").await;
    stolen.batch_execute("begin").await.unwrap();
    call_all(&stolen, &theirs).await;
    call_all(&mine, &own).await;
    stolen.batch_execute("rollback").await.unwrap();
    for call in &theirs {
        stolen.batch_execute(&format!("begin; select * from gatepost.{call}")).await.unwrap();
        if !call.starts_with("merge(") {
            let revoked = portal(world).await.batch_execute(REVOKE).await;
            assert!(revoked.is_ok(), "after {call}: {revoked:?}");
        }
        call_all(&mine, &own).await;
        stolen.batch_execute("rollback").await.unwrap();
    }
}

const REVOKE: &str = "begin; update devices set status = 'revoked', revoked_at = now(), user_id = user_id; \
                      update wireguard_peers set deleted_at = now(), gateway_id = gateway_id; \
                      update users set is_active = false; rollback";

async fn portal(world: &World) -> Client {
    let portal = client("postgres", &world.database).await;
    portal.batch_execute("set lock_timeout = '200ms'").await.unwrap();
    portal
}

/// What `merge()` writes is locked until the end of its transaction: docs/security.md says how to end it.
#[tokio::test]
async fn open_merge_holds_up_writes_to_what_it_reported_alone_until_its_session_is_ended() {
    let world = World::new().await;
    let (ann, bob) =
        (world.peer(world.gateway, "ann").await, world.peer(world.gateway, "bob").await);
    let g2 = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    insert_peer(&world.admin, g2, ann.device, "another key").await;
    let role = format!("{}_g2", world.database);
    let admin = options("postgres", &world.database);
    grant(&admin, "g2", &role, &CreateRole::IfAbsent(None)).await.unwrap();
    let stolen = client(&world.role, &world.database).await;
    let report = format!(
        "set idle_in_transaction_session_timeout = 0; begin;
         select gatepost.report(array['{}'::uuid], array[now()], array[now()]);
         select gatepost.merge()",
        ann.device
    );
    stolen.batch_execute(&report).await.unwrap();

    let mine = client(&role, &world.database).await;
    mine.batch_execute("set lock_timeout = '200ms'").await.unwrap();
    call_all(&mine, &calls(ann.device)).await;
    let portal = portal(&world).await;
    let revoke = |device| format!("update devices set status = 'revoked' where id = '{device}'");
    for free in [
        revoke(bob.device),
        format!("update wireguard_peers set deleted_at = now() where device_id = '{}'", ann.device),
        "update users set is_active = false".into(),
        "update policies set is_active = false".into(),
    ] {
        portal.batch_execute(&free).await.unwrap_or_else(|error| panic!("{free}: {error:?}"));
    }
    let waits = portal.batch_execute(&revoke(ann.device)).await.unwrap_err();
    assert_eq!(waits.code().unwrap().code(), "55P03");
    let end = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{}'",
        world.role
    );
    portal.batch_execute(&format!("{end}; set lock_timeout = '10s'")).await.unwrap();
    portal.batch_execute(&revoke(ann.device)).await.unwrap();
}
