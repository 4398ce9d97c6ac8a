use std::time::{Duration, SystemTime};

use gatepost::model::{DeviceId, GatewayId};
use gatepost::store::{AuditEntry, AuditEvent, AuditStatus, Entity, Handshake, Merged, Read};

use crate::world::{World, client};

async fn merge(world: &World) {
    assert_eq!(world.store.merge().await.unwrap(), Merged::default());
}

fn handshake(device_id: uuid::Uuid, seen_at: SystemTime) -> Handshake {
    Handshake { device_id: DeviceId(device_id), first_at: seen_at, seen_at, connected_at: None }
}

#[tokio::test]
async fn reported_times_only_advance_and_wake_no_agent() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let hello = world.store.hello().await.unwrap();
    let mut listener = world.store.listen(&hello).await.unwrap();
    let (rows, cursor) = world.store.snapshot().await.unwrap();
    let now = rows.taken_at;
    let earlier = now - Duration::from_secs(60);

    let both = Handshake { connected_at: Some(earlier), ..handshake(ann.device, now) };
    assert_eq!(world.store.report(&[both]).await.unwrap().skipped, []);
    world.store.report(&[handshake(ann.device, earlier)]).await.unwrap();
    let later = now + Duration::from_secs(3600);
    assert!(world.store.synced(now).await.unwrap());
    assert!(world.store.synced(earlier).await.unwrap());
    merge(&world).await;
    let read = "select last_seen_at, last_connected_at, last_sync_at from devices, gateways";
    let row = world.admin.query_one(read, &[]).await.unwrap();
    assert_eq!(row.get::<_, SystemTime>(0), now);
    assert_eq!(row.get::<_, SystemTime>(1), earlier);
    assert_eq!(row.get::<_, SystemTime>(2), now);

    // A clock that runs ahead is capped by the database's.
    world.store.report(&[handshake(ann.device, later)]).await.unwrap();
    world.store.synced(later).await.unwrap();
    merge(&world).await;
    let row = world.admin.query_one(read, &[]).await.unwrap();
    assert!(row.get::<_, SystemTime>(0) < later && row.get::<_, SystemTime>(0) > now);
    assert!(row.get::<_, SystemTime>(2) < later && row.get::<_, SystemTime>(2) > now);

    assert!(listener.probe().await.unwrap());
    let quiet = tokio::time::timeout(Duration::ZERO, listener.next()).await;
    assert!(quiet.is_err(), "reports woke the gateway");
    assert!(matches!(world.read(&cursor).await, Read::Nothing(..)));
}

#[tokio::test]
async fn report_about_locked_rows_waits_until_they_are_free() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let bob = world.peer(world.gateway, "bob").await;
    let mut app = client("postgres", &world.database).await;
    let busy = app.transaction().await.unwrap();
    busy.execute("update devices set os_version = '9' where id = $1", &[&ann.device])
        .await
        .unwrap();
    busy.execute("update gateways set endpoint = 'e:2'", &[]).await.unwrap();

    let now = SystemTime::now() - Duration::from_secs(5);
    let reports = [handshake(ann.device, now), handshake(bob.device, now)];
    assert_eq!(world.store.report(&reports).await.unwrap().skipped, []);
    assert!(world.store.synced(now).await.unwrap());
    let seen = "select count(*) from devices where last_seen_at is not null";
    let synced = "select count(*) from gateways where last_sync_at is not null";
    merge(&world).await;
    assert_eq!((world.count(seen).await, world.count(synced).await), (1, 0));
    busy.commit().await.unwrap();
    merge(&world).await;
    assert_eq!((world.count(seen).await, world.count(synced).await), (2, 1));
}

#[tokio::test]
async fn a_proof_of_one_epoch_is_not_written_into_another() {
    let world = World::new().await;
    let (rows, _) = world.store.snapshot().await.unwrap();
    let unwritten = "select count(*) from gateways where last_sync_at is null";
    // As a restored backup, or a standby that had not seen all, takes the address.
    world.run("update gatepost.state set database_epoch = gen_random_uuid()").await;
    assert!(!world.store.synced(rows.taken_at).await.unwrap());
    merge(&world).await;
    assert_eq!(world.count(unwritten).await, 1);
    let (rows, _) = world.store.snapshot().await.unwrap();
    assert!(world.store.synced(rows.taken_at).await.unwrap());
    merge(&world).await;
    assert_eq!(world.count(unwritten).await, 0);
}

#[tokio::test]
async fn ten_thousand_handshakes_are_written_in_batches() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run(&format!(
            "insert into devices (user_id, name, platform, device_fingerprint, public_key)
                 select '{}', 'd' || n, 'x', 'f' || n, 'k' from generate_series(1, 9999) n;
             insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip)
                 select '{}', d.id, d.device_fingerprint, '10.8.0.1' from devices d where d.id <> '{}'",
            ann.user, world.gateway, ann.device
        ))
        .await;
    let now = SystemTime::now() - Duration::from_secs(5);
    let (rows, _) = world.store.snapshot().await.unwrap();
    let reports: Vec<_> = rows.peers.iter().map(|peer| handshake(peer.device_id.0, now)).collect();
    assert_eq!(reports.len(), 10_000);
    assert_eq!(world.store.report(&reports).await.unwrap().skipped, []);
    merge(&world).await;
    let seen = "select count(*) from devices where last_seen_at is not null";
    assert_eq!(world.count(seen).await, 10_000);
}

#[tokio::test]
async fn audit_entries_are_stamped_with_the_gateway() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let entry = |event, entity, metadata| AuditEntry {
        event,
        entity,
        device_id: Some(DeviceId(ann.device)),
        ip_address: Some("192.0.2.7".parse().unwrap()),
        status: AuditStatus::Success,
        message: "a NUL \0 and more".into(),
        metadata,
    };
    let forged = serde_json::json!({ "gateway_id": "somebody else", "flows": 3 });
    let audited = world
        .store
        .audit(&[
            entry(AuditEvent::PeerRevoked, Entity::Device(DeviceId(ann.device)), forged),
            entry(
                AuditEvent::GatewayStarted,
                Entity::Gateway(GatewayId(ann.peer)),
                serde_json::Value::String("x".repeat(20_000)),
            ),
        ])
        .await;
    assert_eq!((audited.settled, audited.refused.len()), (2, 0), "{audited:?}");
    merge(&world).await;
    let written = format!(
        "select count(*) from audit_logs where metadata ->> 'gateway_id' = '{0}' \
         and actor_device_id = '{1}' and ip_address = '192.0.2.7' and status = 'success'
         and ((event_type = 'peer.revoked' and entity_id = '{1}' and metadata -> 'flows' = '3')
             or (event_type = 'gateway.started' and entity_id = '{0}'))",
        world.gateway, ann.device
    );
    assert_eq!(world.count(&written).await, 2);
    let stolen = client(&world.role, &world.database).await;
    let login = "select gatepost.audit('[{\"event_type\": \"user.login\"}]')";
    let error = stolen.execute(login, &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "GP005");
}

#[tokio::test]
async fn a_bad_row_is_audited_once_until_its_reason_changes() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let entry = |event: AuditEvent, message: &str| AuditEntry {
        event,
        entity: Entity::Peer(gatepost::model::PeerId(ann.peer)),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Warning,
        message: message.into(),
        metadata: serde_json::json!({}),
    };
    let rows = "select count(*) from audit_logs where event_type = 'peer.quarantined'";
    for (message, count) in [("bad key", 1), ("bad key", 1), ("no pool", 2), ("bad key", 3)] {
        let quarantined = entry(AuditEvent::PeerQuarantined, message);
        assert_eq!(world.store.audit(&[quarantined]).await.settled, 1);
        merge(&world).await;
        assert_eq!(world.count(rows).await, count, "after {message:?}");
    }
    let released = entry(AuditEvent::PeerReleased, "well again");
    let again = entry(AuditEvent::PeerQuarantined, "bad key");
    assert_eq!(world.store.audit(&[released, again]).await.settled, 2);
    merge(&world).await;
    assert_eq!(world.count(rows).await, 4, "it came back with the same words");
}

fn started(message: String) -> AuditEntry {
    AuditEntry {
        event: AuditEvent::GatewayStarted,
        entity: Entity::Gateway(GatewayId(uuid::Uuid::nil())),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        metadata: serde_json::json!({ "of": &message }),
        message,
    }
}

/// A trigger of the user's on `audit_logs` that refuses entries of this message with this SQLSTATE.
async fn refuse(world: &World, messages: &str, state: &str) {
    world
        .run(&format!(
            "create or replace function refuse() returns trigger language plpgsql as $$ begin
                 raise exception 'not this one' using errcode = '{state}';
             end $$;
             drop trigger if exists refuse on audit_logs;
             create trigger refuse before insert on audit_logs
                 for each row when (new.message in ({messages})) execute function refuse()"
        ))
        .await;
}

#[tokio::test]
async fn a_refused_audit_entry_is_the_only_one_lost() {
    let world = World::new().await;
    let entries: Vec<_> = (0..2_500).map(|number| started(format!("{number}"))).collect();
    refuse(&world, "'7', '1999'", "P0001").await;
    let audited = world.store.audit(&entries).await;
    assert_eq!(audited.settled, 2_500, "{:?}", audited.error);
    let merged = world.store.merge().await.unwrap();
    assert_eq!(merged.lost, ["trigger refuse on audit_logs: not this one"; 2]);
    assert_eq!(merged.refusals, []);
    let written = "select count(*) from audit_logs where event_type = 'gateway.started'";
    assert_eq!(world.count(written).await, 2_498);
    let lost = "select count(*) from audit_logs where message in ('7', '1999')";
    assert_eq!(world.count(lost).await, 0);
}

#[tokio::test]
async fn audit_entries_are_written_once_whatever_interrupts_it() {
    let world = World::new().await;
    let entries: Vec<_> = (0..2_500).map(|number| started(format!("{number}"))).collect();
    refuse(&world, "'1500'", "40001").await;
    assert_eq!(world.store.audit(&entries).await.settled, 2_500);
    merge(&world).await;
    let written = "select count(*) from audit_logs where event_type = 'gateway.started'";
    assert_eq!(world.count(written).await, 1_000, "up to the part that cannot be serialized");
    world.run("drop trigger refuse on audit_logs").await;
    merge(&world).await;
    assert_eq!(world.count(written).await, 2_500);
    let twice = "select count(*) - count(distinct message) from audit_logs \
                 where event_type = 'gateway.started'";
    assert_eq!(world.count(twice).await, 0);
}

#[tokio::test]
async fn an_audit_entry_with_any_device_name_is_written() {
    let world = World::new().await;
    let names = ["a NUL \0", r"six characters \u0000", r"a backslash \"];
    let entries: Vec<_> = names.map(|name| started(name.to_owned())).into();
    let audited = world.store.audit(&entries).await;
    assert!(audited.refused.is_empty() && audited.error.is_none(), "{audited:?}");
    merge(&world).await;
    let rows = world.admin.query("select message, metadata ->> 'of' from audit_logs", &[]).await;
    let kept: Vec<(String, String)> =
        rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    for name in names.map(|name| name.replace('\0', "\u{fffd}")) {
        assert!(kept.contains(&(name.clone(), name.clone())), "{name:?} in {kept:?}");
    }
}

#[tokio::test]
async fn a_late_report_does_not_move_the_start_of_a_session() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let now = world.store.snapshot().await.unwrap().0.taken_at;
    let before = |secs| now - Duration::from_secs(secs);
    world.store.report(&[handshake(ann.device, before(7_200))]).await.unwrap();
    merge(&world).await;
    // The database was away for two hours in which the session went on.
    let late = Handshake { first_at: before(7_080), ..handshake(ann.device, before(60)) };
    world.store.report(&[late]).await.unwrap();
    merge(&world).await;
    let read = "select last_seen_at, last_connected_at from devices";
    let row = world.admin.query_one(read, &[]).await.unwrap();
    assert_eq!(row.get::<_, SystemTime>(0), before(60));
    assert_eq!(row.get::<_, SystemTime>(1), before(7_200));
}

#[tokio::test]
async fn a_time_ahead_of_the_clock_is_replaced() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run("update devices set last_seen_at = now() + '1 day', last_connected_at = now() + '1 day'")
        .await;
    let seen = world.store.snapshot().await.unwrap().0.taken_at - Duration::from_secs(60);
    world.store.report(&[handshake(ann.device, seen)]).await.unwrap();
    merge(&world).await;
    let read = "select last_seen_at, last_connected_at from devices";
    let row = world.admin.query_one(read, &[]).await.unwrap();
    assert_eq!(row.get::<_, SystemTime>(0), seen);
    assert_eq!(row.get::<_, SystemTime>(1), seen);
}
