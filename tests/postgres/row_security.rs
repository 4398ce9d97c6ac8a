//! Row-level security of tables of the control plane: no answer is shorter because of it, and no report is lost.

use std::time::{Duration, SystemTime};

use gatepost::model::DeviceId;
use gatepost::reconcile::status::{State, Status};
use gatepost::store::{
    ConnectOptions, Handshake, Merged, Read, StoreError, migrate, pending, try_reports,
};

use crate::agent::{Memory, agent, good_peer};
use crate::guest::WATCHED;
use crate::running::Running;
use crate::world::{Peer, World, client, options};

const WAY_OUT: &str = "run `alter role gatepost_owner bypassrls` as a superuser";

/// Hides all rows, from the owner of the table as well.
fn hide(table: &str) -> String {
    format!(
        "alter table {table} enable row level security, force row level security;
         create policy hidden on {table} using (false)"
    )
}

fn show(table: &str) -> String {
    format!(
        "drop policy hidden on {table};
         alter table {table} disable row level security, no force row level security"
    )
}

/// Ann's device has a peer, an address, and a policy by her group.
async fn rows_in_each_table(world: &World) -> Peer {
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run(&format!(
            "insert into groups (name) values ('staff');
             insert into group_memberships (group_id, user_id) select id, '{}' from groups;
             insert into policies (name) values ('office');
             insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'group', g.id from policies p, groups g;
             insert into policy_destinations (policy_id, destination)
                 select id, '10.20.0.0/16' from policies;
             insert into ip_allocations (gateway_id, device_id, address)
                 select gateway_id, device_id, assigned_ip from wireguard_peers;
             insert into settings (category, key, value) values ('policy', 'default_effect', '\"deny\"')",
            ann.user
        ))
        .await;
    ann
}

/// Changes what agents read of this table.
fn touch(table: &str) -> &'static str {
    match table {
        "users" => "update users set username = username || 'x'",
        "devices" => "update devices set name = name || 'x'",
        "wireguard_peers" => "update wireguard_peers set allowed_ips = '{10.30.0.0/16}'",
        "gateways" => "update gateways set listen_port = listen_port + 1",
        "ip_allocations" => "update ip_allocations set address = address + 1",
        "policies" => "update policies set priority = priority + 1",
        "policy_targets" => {
            "insert into policy_targets (policy_id, target_type, target_id)
                 select p.id, 'user', u.id from policies p, users u"
        }
        "policy_destinations" => "update policy_destinations set destination = '10.30.0.0/16'",
        "groups" => "update groups set deleted_at = now()",
        "group_memberships" => "delete from group_memberships",
        "settings" => "update settings set value = '\"allow\"'",
        other => panic!("{other} is not read"),
    }
}

#[tokio::test]
async fn hidden_rows_of_any_table_are_an_error_and_changes_meanwhile_are_read_afterwards() {
    let world = World::new().await;
    rows_in_each_table(&world).await;
    for (table, _) in WATCHED {
        let (before, cursor) = world.store.snapshot().await.unwrap();
        assert_eq!((before.peers.len(), before.policies.len()), (1, 1), "{table}");
        world.run(&hide(table)).await;
        world.run(touch(table)).await;
        let everything = world.store.snapshot().await.map(|_| ());
        let changes = match world.store.changes(&cursor).await {
            // A changed setting has everything read again.
            Ok(Read::Everything(_)) if table == "settings" => None,
            changes => Some(changes.map(|_| ())),
        };
        for answer in [Some(everything), changes].into_iter().flatten() {
            let error = answer.expect_err(table);
            assert!(matches!(error, StoreError::RowSecurity { .. }), "{table}: {error}");
            assert!(error.to_string().contains(WAY_OUT), "{table}: {error}");
        }
        world.run(&show(table)).await;
        let read = world.read(&cursor).await;
        assert!(matches!(read, Read::Changed(..) | Read::Everything(_)), "{table}: {read:?}");
        if ["groups", "group_memberships"].contains(&table) {
            world.run("update groups set deleted_at = null").await;
            let back = "insert into group_memberships (group_id, user_id)
                            select g.id, u.id from groups g, users u on conflict do nothing";
            world.run(back).await;
        }
    }
}

#[tokio::test]
async fn hidden_rows_change_nothing_in_the_kernel_and_the_status_says_so() {
    let world = World::new().await;
    for number in 1..=2 {
        good_peer(&world, number).await;
    }
    let memory = Memory::default();
    let mut agent = Running::start(agent(&world, memory.clone()).await);
    agent.waits_for("served", |status| status.peers.in_kernel == 2).await;
    for table in ["devices", "users", "wireguard_peers", "gateways"] {
        agent.waits_for("ready", |status| status.state == State::Ready).await;
        world.run(&hide(table)).await;
        world.run("update devices set name = name || 'x'").await;
        let says_so = |status: &Status| {
            let why = status.state.why().unwrap_or_default();
            why.contains("row-level security would hide rows") && why.contains(WAY_OUT)
        };
        agent.waits_for(table, says_so).await;
        world.run("update devices set status = 'revoked' where name like 'user-2%'").await;
        assert_eq!(memory.state().peers.len(), 2, "{table}");
        world.run(&show(table)).await;
        agent.waits_for("revoked", |status| status.peers.in_kernel == 1).await;
        world.run("update devices set status = 'active'").await;
        agent.waits_for("back", |status| status.peers.in_kernel == 2).await;
    }
    agent.stop().await;
}

/// A handshake and an audit entry.
async fn report(world: &World, device: uuid::Uuid) {
    let seen_at = SystemTime::now() - Duration::from_secs(5);
    let handshake =
        Handshake { device_id: DeviceId(device), first_at: seen_at, seen_at, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    let started = r#"select gatepost.audit('[{"event_type": "gateway.started",
        "entity_type": "gateway", "status": "success", "message": "started"}]')"#;
    client(&world.role, &world.database).await.batch_execute(started).await.unwrap();
}

const REPORTED: &str = "select (select count(*) from devices where last_seen_at is not null)
    + (select count(*) from audit_logs)";

#[tokio::test]
async fn report_that_row_security_refuses_waits_and_names_the_way_out() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    // It is not read, only written.
    world.run(&hide("audit_logs")).await;
    report(&world, ann.device).await;
    let merged = world.store.merge().await.unwrap();
    let [refusal] = &merged.refusals[..] else { panic!("{merged:?}") };
    assert!(refusal.why.starts_with("audit_logs: ") && refusal.why.ends_with(WAY_OUT));
    let tried = world.store.try_reports().await.unwrap();
    assert_eq!(tried, [&*refusal.why]);
    assert_eq!(try_reports(&options("postgres", &world.database)).await.unwrap(), tried);
    assert_eq!(world.count(REPORTED).await, 1, "the handshake alone");
    world.run(&show("audit_logs")).await;
    world.run(&hide("devices")).await;
    report(&world, ann.device).await;
    let error = world.store.merge().await.unwrap_err();
    assert!(matches!(error, StoreError::RowSecurity { .. }), "{error}");
    world.run(&show("devices")).await;
    assert_eq!(world.store.merge().await.unwrap(), Merged::default());
    assert_eq!(world.count(REPORTED).await, 1 + 2);
    assert_eq!(world.count("select count(*) from gatepost.seen").await, 0);
}

/// On a server of its own: roles belong to all databases.
#[tokio::test]
async fn role_that_bypasses_row_security_reads_and_reports_what_it_hides() {
    let world = World::alone().await;
    let ann = rows_in_each_table(&world).await;
    let before = world.store.snapshot().await.unwrap().0;
    let mut hidden: Vec<_> = WATCHED.iter().map(|(table, _)| *table).collect();
    hidden.push("audit_logs");
    for table in &hidden {
        world.run(&hide(table)).await;
    }
    let admin = ConnectOptions::new(world.cluster().socket_url("postgres", &world.database));
    let refused = migrate(&admin).await.unwrap_err().to_string();
    assert!(refused.contains("row-level security"), "{refused}");
    let named = match pending(&admin).await {
        Err(StoreError::Differs(named)) => named,
        done => panic!("{done:?}"),
    };
    for table in &hidden {
        let line = format!("{table} has row-level security, which would hide rows from gatepost");
        assert!(named.iter().any(|it| it.starts_with(&line)), "{table}: {named:#?}");
    }
    world.run("alter role gatepost_owner bypassrls").await;
    let rows = world.store.snapshot().await.unwrap().0;
    assert_eq!((rows.peers, rows.policies), (before.peers, before.policies));
    let started = r#"[{"event_type": "gateway.started", "entity_type": "gateway",
        "status": "success", "message": "started"}]"#;
    let stolen = crate::world::connect(&world.url).await;
    stolen.query("select gatepost.audit($1::text::jsonb)", &[&started]).await.unwrap();
    let seen_at = SystemTime::now() - Duration::from_secs(5);
    let device_id = DeviceId(ann.device);
    let handshake = Handshake { device_id, first_at: seen_at, seen_at, connected_at: None };
    world.store.report(&[handshake]).await.unwrap();
    assert_eq!(world.store.merge().await.unwrap(), Merged::default());
    assert_eq!(world.count(REPORTED).await, 2);
    migrate(&admin).await.unwrap();
}
