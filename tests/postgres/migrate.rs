use gatepost::store::{
    ConnectOptions, CreateRole, Migration, Read, SCHEMA_VERSION, Store, StoreError, grant, migrate,
    migrate_telling, misfits, pending,
};

use crate::postgres::Cluster;
use crate::world::{
    IS_IN_THIS_DATABASE, World, client, connect, insert_device, insert_gateway, options,
};

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let database = Cluster::shared().database(None);
    let options = options("postgres", &database);
    let names = |all: Vec<Migration>| all.into_iter().map(|it| it.name).collect::<Vec<_>>();
    let pending_names = names(pending(&options).await.unwrap());
    let newest = &pending_names[pending_names.len() - 4];
    assert!(newest.starts_with(&format!("V{SCHEMA_VERSION}__")), "{newest}");
    assert_eq!(pending_names[..2], ["prepare", "V1__control_plane"]);
    assert_eq!(pending_names[pending_names.len() - 3..], ["access", "triggers", "indexes"]);
    assert_eq!(names(migrate(&options).await.unwrap()), pending_names);
    assert_eq!(pending(&options).await.unwrap(), []);
    assert_eq!(migrate(&options).await.unwrap(), []);
}

#[tokio::test]
async fn migrate_tells_each_part_before_it_begins() {
    let database = Cluster::shared().database(None);
    let (say, told) = std::sync::mpsc::channel();
    let tells = move |part: &str| say.send(part.to_owned()).unwrap();
    migrate_telling(&options("postgres", &database), &tells).await.unwrap();
    let told = Vec::from_iter(told.try_iter());
    let parts = [
        "waiting for other migrations of this database",
        "comparing the tables",
        "applying migrations",
        "granting rights and creating triggers",
    ];
    assert_eq!(told[..parts.len()], parts);
}

#[tokio::test]
async fn a_dry_run_leaves_nothing_behind() {
    let database = Cluster::shared().database(None);
    pending(&options("postgres", &database)).await.unwrap();
    let admin = client("postgres", &database).await;
    let made = "select count(*) from pg_class where relnamespace in (select oid from pg_namespace \
                where nspname in ('public', 'gatepost', 'gatepost_wanted'))";
    assert_eq!(admin.query_one(made, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn every_index_of_gatepost_is_valid() {
    let world = World::new().await;
    let valid = "select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid \
                 where c.relname like 'gatepost\\_%' and i.indisvalid";
    assert_eq!(world.count(valid).await, 8);
}

/// The tables of the first migration, created by a control plane, with rows.
async fn brown_field() -> (String, tokio_postgres::Client) {
    brown_field_on(Cluster::shared()).await
}

pub async fn brown_field_on(cluster: &Cluster) -> (String, tokio_postgres::Client) {
    let database = cluster.database(None);
    let admin = connect(&cluster.socket_url("postgres", &database)).await;
    admin.batch_execute(include_str!("../../migrations/V1__control_plane.sql")).await.unwrap();
    admin
        .batch_execute(
            "insert into roles (name) values ('staff');
             insert into users (role_id, username, display_name, password_hash)
                 select id, 'Ann', 'Ann', 'x' from roles;
             insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
                 values ('g1', 'e:1', 'k', 1, '10.8.0.0/16');
             insert into devices (user_id, name, platform, device_fingerprint, public_key)
                 select id, 'phone', 'ios', 'f', 'k' from users;
             insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
                 select d.id, g.id, 'k', '10.8.0.2' from devices d, gateways g;
             alter table users add column favourite_colour text",
        )
        .await
        .unwrap();
    (database, admin)
}

#[tokio::test]
async fn a_database_with_rows_keeps_them_and_is_followed() {
    let (database, admin) = brown_field().await;
    let rows = "select md5(string_agg(t::text, '' order by t.id)) from (select u.id, \
        u::text || d::text || p::text as t from users u, devices d, wireguard_peers p) t";
    let before: String = admin.query_one(rows, &[]).await.unwrap().get(0);
    migrate(&options("postgres", &database)).await.unwrap();
    assert_eq!(admin.query_one(rows, &[]).await.unwrap().get::<_, String>(0), before);

    grant(&options("postgres", &database), "g1", "postgres", &CreateRole::No).await.unwrap();
    let store = Store::connect(&options("postgres", &database)).unwrap();
    let (rows, _) = store.snapshot().await.unwrap();
    assert_eq!(rows.peers.len(), 1);
    assert_eq!(&*rows.peers[0].username, "Ann");
}

#[tokio::test]
async fn migrate_names_tables_that_differ_and_changes_nothing() {
    let (database, admin) = brown_field().await;
    admin
        .batch_execute(
            "alter table devices drop column platform;
             alter table policies alter column priority type text;
             alter table gateways alter column is_active drop not null",
        )
        .await
        .unwrap();
    let Err(StoreError::Differs(differences)) = migrate(&options("postgres", &database)).await
    else {
        panic!("migrated tables that differ");
    };
    assert_eq!(
        differences,
        [
            "devices.platform is missing (text)",
            "gateways.is_active may be null",
            "policies.priority is text, not integer",
        ]
    );
    let ours = "select count(*) from pg_namespace where nspname like 'gatepost%'";
    assert_eq!(admin.query_one(ours, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn migrate_names_what_gatepost_could_not_write_or_see() {
    let (database, admin) = brown_field().await;
    admin
        .batch_execute(
            "alter table audit_logs add column ticket text not null;
             alter table devices enable row level security",
        )
        .await
        .unwrap();
    let Err(StoreError::Differs(differences)) = migrate(&options("postgres", &database)).await
    else {
        panic!("migrated what cannot work");
    };
    let [ticket, hidden] = &differences[..] else { panic!("{differences:?}") };
    assert!(ticket.starts_with("audit_logs.ticket may not be null and has no default"), "{ticket}");
    assert!(hidden.starts_with("devices has row-level security"), "{hidden}");
}

/// As in a control plane that generates the ids itself.
#[tokio::test]
async fn id_columns_need_no_default() {
    let world = World::new().await;
    world
        .run(
            "alter table audit_logs alter column id drop default;
             alter table gateways alter column id drop default",
        )
        .await;
    let enroll = "select gatepost.enroll('g9', 'key', 'e:1', 51820, '10.9.0.0/16')";
    world.run(enroll).await;
    assert_eq!(world.count("select count(*) from audit_logs").await, 1);
    let started = r#"select gatepost.audit('[{"event_type": "gateway.started",
        "entity_type": "gateway", "status": "success", "message": "started"}]')"#;
    world.run(started).await;
    world.run("select gatepost.merge()").await;
    assert_eq!(world.count("select count(*) from audit_logs").await, 2);

    world.run("update gateways set deleted_at = now() where name = 'g9'").await;
    let error = world.admin.batch_execute(enroll).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert!(error.message().starts_with("gateway g9 was deleted at "), "{error}");
}

#[tokio::test]
async fn row_level_security_is_an_error_instead_of_an_empty_answer() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    world.run("update devices set name = 'renamed'").await;
    world.run("alter table devices enable row level security").await;
    for error in
        [world.store.snapshot().await.unwrap_err(), world.store.changes(&cursor).await.unwrap_err()]
    {
        assert!(matches!(error, StoreError::RowSecurity { .. }), "{error}");
        let words = error.to_string();
        assert!(words.contains(r#"table "devices""#) && words.contains("bypassrls"), "{words}");
    }
}

/// A recreated table, or one with disabled triggers.
#[tokio::test]
async fn missing_triggers_are_reported_and_restored() {
    let world = World::new().await;
    let unwatched = async || world.store.attach(true).await.unwrap().unwatched;
    assert!(unwatched().await.is_empty());
    world.run("create table devices_of_2026 () inherits (devices)").await;
    assert_eq!(unwatched().await, ["devices"], "writes to a child fire no trigger of its parent");
    world.run("drop table devices_of_2026").await;
    world
        .run(
            "drop trigger gatepost_update on devices;
             alter table users disable trigger gatepost_delete",
        )
        .await;
    assert_eq!(unwatched().await, ["devices", "users"]);
    let options = options("postgres", &world.database);
    let missing = pending(&options).await.unwrap();
    assert_eq!(missing.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["access", "triggers"]);
    let cursor = world.cursor().await;
    migrate(&options).await.unwrap();
    assert!(unwatched().await.is_empty());
    assert!(pending(&options).await.unwrap().is_empty());
    // Writes in between left no marks.
    assert!(matches!(world.read(&cursor).await, Read::Everything(_)));
    let cursor = world.cursor().await;
    world.peer(world.gateway, "ann").await;
    assert!(matches!(world.read(&cursor).await, Read::Changed(..)));
}

/// What the team's own migrations altered since keeps Gatepost from nothing.
#[tokio::test]
async fn migrate_repairs_triggers_although_columns_were_altered_since() {
    let world = World::new().await;
    let options = options("postgres", &world.database);
    world
        .run(
            "alter table devices drop column platform;
             alter table devices alter column status type varchar(40);
             alter table audit_logs add column ticket text not null;
             drop trigger gatepost_update on devices",
        )
        .await;
    migrate(&options).await.unwrap();
    assert!(world.store.attach(true).await.unwrap().unwatched.is_empty());
    world.store.snapshot().await.unwrap();
    let text = ["column devices.status is character varying, not text"];
    assert_eq!(misfits(&options).await.unwrap(), text, "it can be read all the same");
    world.run("alter table devices rename column revoked_at to gone_at").await;
    migrate(&options).await.unwrap();
    let told = misfits(&options).await.unwrap();
    assert!(told.contains(&"column devices.revoked_at is missing".to_owned()), "{told:?}");
}

/// As a migration of the control plane does: another table under the same name.
async fn recreate(world: &World, table: &str) {
    world
        .run(&format!(
            "alter table {table} rename to former_{table};
             create table {table} (like former_{table} including all);
             insert into {table} select * from former_{table}"
        ))
        .await;
}

#[tokio::test]
async fn recreated_tables_are_reported_fail_no_writer_and_are_followed_again() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    for table in ["users", "policy_targets"] {
        recreate(&world, table).await;
    }
    let unwatched = async || world.store.attach(true).await.unwrap().unwatched;
    assert_eq!(unwatched().await, ["policy_targets", "users"]);
    // The look-up for notifications may not read the new table.
    insert_device(&world.admin, ann.user, "another").await;
    let options = options("postgres", &world.database);
    migrate(&options).await.unwrap();
    assert!(unwatched().await.is_empty());
    assert!(pending(&options).await.unwrap().is_empty());
    let of_new = "select count(*) from pg_index where indrelid = 'policy_targets'::regclass
                  and indexrelid::regclass::text like 'gatepost\\_%' and indisvalid";
    assert_eq!(world.count(of_new).await, 2);

    let cursor = world.cursor().await;
    world.run("update users set is_active = false").await;
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    assert_eq!(rows.peers[&ann.device.into()][0].bars, gatepost::model::BarredBy::USER_INACTIVE);
    world.run("drop table former_users, former_policy_targets cascade").await;
    assert_eq!(world.store.snapshot().await.unwrap().0.peers.len(), 1);
}

/// As tools for online migrations do: the new table has everything that the former one had.
#[tokio::test]
async fn a_table_copied_with_its_triggers_is_read_under_its_name_at_once() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    recreate(&world, "devices").await;
    world
        .run(
            "grant select on devices to gatepost_owner;
             do $$
             declare t record;
             begin
                 for t in
                     select tgname, pg_get_triggerdef(oid) as text from pg_trigger
                     where tgrelid = 'former_devices'::regclass and tgname like 'gatepost_%'
                 loop
                     execute replace(t.text, 'former_devices', 'devices');
                     execute format('alter table devices enable always trigger %I', t.tgname);
                 end loop;
             end $$",
        )
        .await;
    let unwatched = async || world.store.attach(true).await.unwrap().unwatched;
    assert!(unwatched().await.is_empty());
    // By name, so at once: the migration only restores the rights to write.
    let cursor = world.cursor().await;
    world.run("update devices set status = 'lost'").await;
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    assert_eq!(rows.peers[&ann.device.into()][0].bars, gatepost::model::BarredBy::DEVICE_STATUS);
    migrate(&options("postgres", &world.database)).await.unwrap();
    assert!(unwatched().await.is_empty());
    let cursor = world.cursor().await;
    world.run("update devices set status = 'blocked'").await;
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    assert_eq!(rows.peers[&ann.device.into()][0].bars, gatepost::model::BarredBy::DEVICE_STATUS);
}

/// audit_logs may have additional columns, also a serial one.
#[tokio::test]
async fn audit_works_with_an_additional_serial_column() {
    let (database, admin) = brown_field().await;
    admin.batch_execute("alter table audit_logs add column seq bigserial not null").await.unwrap();
    let options = options("postgres", &database);
    migrate(&options).await.unwrap();
    grant(&options, "g1", "postgres", &CreateRole::No).await.unwrap();
    let started = r#"select gatepost.audit('[{"event_type": "gateway.started",
        "entity_type": "gateway", "status": "success", "message": "started"}]')"#;
    admin.batch_execute(&format!("{started}; select gatepost.merge()")).await.unwrap();
    let written = admin.query_one("select count(*) from audit_logs where seq > 0", &[]).await;
    assert_eq!(written.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test]
async fn rows_that_break_a_unique_index_are_named() {
    let (database, admin) = brown_field().await;
    admin
        .batch_execute(
            "drop index ip_allocations_gateway_id_address_idx;
             insert into ip_allocations (gateway_id, address)
                 select id, '10.8.0.9'::inet from gateways, generate_series(1, 2)",
        )
        .await
        .unwrap();
    let error = migrate(&options("postgres", &database)).await.unwrap_err().to_string();
    assert!(
        error.contains("ip_allocations holds rows that share (gateway_id, address)"),
        "{error}"
    );
    assert!(error.contains("10.8.0.9"), "{error}");
}

#[tokio::test]
async fn migrate_waits_for_a_table_in_use() {
    let (database, mut admin) = brown_field().await;
    let busy = admin.transaction().await.unwrap();
    busy.batch_execute("lock table devices in row exclusive mode").await.unwrap();
    let options = options("postgres", &database);
    let migrating = tokio::spawn(async move { migrate(&options).await });
    // It must run into its lock timeout at least once while the table is held.
    let watcher = client("postgres", &database).await;
    let waiting =
        format!("select count(*) from pg_locks where not granted and {IS_IN_THIS_DATABASE}");
    while watcher.query_one(&*waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(!migrating.is_finished());
        tokio::task::yield_now().await;
    }
    while watcher.query_one(&*waiting, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!migrating.is_finished());
    busy.commit().await.unwrap();
    migrating.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_error_of_an_unmigrated_database_names_the_command() {
    let database = Cluster::shared().database(None);
    let store = Store::connect(&options("postgres", &database)).unwrap();
    let error = store.hello().await.unwrap_err();
    assert!(matches!(error, StoreError::Unmigrated { .. }), "{error}");
    assert!(error.to_string().contains("`gatepost migrate`"));
}

#[tokio::test]
async fn an_owner_without_superuser_rights_migrates_and_grants() {
    let world = World::alone().await;
    world.run("create role boss login createrole").await;
    world.run("create database theirs owner boss").await;
    let boss = ConnectOptions::new(
        world.url.replace(&world.role, "boss").replace(&world.database, "theirs"),
    );
    // Since version 16, the right to create roles is none to use those of another administrator.
    let version = "select current_setting('server_version_num')::bigint / 10000";
    if world.count(version).await >= 16 {
        let error = migrate(&boss).await.unwrap_err().to_string();
        let way_out =
            "`grant gatepost_owner, gatepost_gateway, gatepost_bell to boss with admin option`";
        assert!(error.contains(way_out), "{error}");
        world.run(way_out.trim_matches('`')).await;
    }
    migrate(&boss).await.unwrap();
    grant(&boss, "g1", "newcomer", &CreateRole::IfAbsent(None)).await.unwrap();
    assert!(pending(&boss).await.unwrap().is_empty());
}

#[tokio::test]
async fn grants_of_one_role_at_the_same_time_all_succeed() {
    let world = World::new().await;
    let admin = options("postgres", &world.database);
    for round in 0..5 {
        let role = format!("{}_round_{round}", world.database);
        let create = CreateRole::IfAbsent(None);
        let all = (0..6).map(|_| grant(&admin, "g1", &role, &create));
        let granted = futures_util::future::try_join_all(all).await.unwrap();
        assert_eq!(granted.iter().filter(|granted| granted.role_created).count(), 1);
    }
}

#[tokio::test]
async fn migrate_names_tables_in_another_schema_and_creates_none() {
    let (database, admin) = brown_field().await;
    admin
        .batch_execute(
            "create schema vpn;
             do $$
             declare t text;
             begin
                 for t in select tablename from pg_tables where schemaname = 'public' loop
                     execute format('alter table public.%I set schema vpn', t);
                 end loop;
             end $$",
        )
        .await
        .unwrap();
    let Err(StoreError::Differs(differences)) = migrate(&options("postgres", &database)).await
    else {
        panic!("migrated beside the tables");
    };
    assert_eq!(differences.len(), 15, "{differences:?}");
    let devices = "devices is in schema vpn, but gatepost reads schema public: \
                   run `alter table vpn.devices set schema public`";
    assert!(differences.contains(&devices.to_owned()), "{differences:?}");
    let created = "select count(*) from pg_tables where schemaname in ('public', 'gatepost')";
    assert_eq!(admin.query_one(created, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test]
async fn migrate_names_empty_tables_beside_those_with_rows_in_another_schema() {
    const MINE: &str = "do $$ declare t text; begin
        for t in select tablename from pg_tables where schemaname = 'public' loop
            execute format('alter table public.%I set schema vpn', t);
        end loop; end $$";
    let (database, admin) = brown_field().await;
    admin.batch_execute(&format!("create schema vpn; {MINE}")).await.unwrap();
    let five = ["devices", "gateways", "roles", "users", "wireguard_peers"];
    for table in five {
        let make = format!("create table {table} (like vpn.{table} including all)");
        admin.batch_execute(&make).await.unwrap();
    }
    let options = options("postgres", &database);
    let differences = async || match migrate(&options).await {
        Err(StoreError::Differs(differences)) => differences,
        done => panic!("migrated beside the tables: {done:?}"),
    };
    let expected = five.map(|table| {
        format!(
            "{table} is in schema vpn, but gatepost reads schema public: drop or rename the empty table \
             public.{table}, and run `alter table vpn.{table} set schema public`"
        )
    });
    let told = differences().await;
    assert!(expected.iter().all(|it| told.contains(it)), "{told:#?}");
    // And those that are not in schema public, which would be made there, and be empty.
    assert_eq!(told.len(), 15, "{told:#?}");
    assert!(matches!(pending(&options).await, Err(StoreError::Differs(_))));
    let made = "select count(*) from pg_namespace where nspname like 'gatepost%'";
    assert_eq!(admin.query_one(made, &[]).await.unwrap().get::<_, i64>(0), 0);

    // An earlier version migrated all the same: no gateway is served by the empty tables.
    admin.batch_execute("alter schema vpn rename to elsewhere").await.unwrap();
    admin.batch_execute("alter table elsewhere.wireguard_peers rename to others").await.unwrap();
    migrate(&options).await.unwrap();
    admin.batch_execute("alter table elsewhere.others rename to wireguard_peers").await.unwrap();
    assert_eq!(differences().await.len(), 15);
    // A gateway that is served, beside an archive.
    insert_gateway(&admin, "g2", "10.9.0.0/16").await;
    assert_eq!(migrate(&options).await.unwrap(), []);
}

/// A control plane's own migration took it away, or is on the way: agents name it meanwhile.
#[tokio::test]
async fn migrate_repairs_and_grants_although_a_column_or_a_table_is_gone() {
    for (gone, back) in [
        (
            "alter table wireguard_peers drop column dns_servers",
            "alter table wireguard_peers add dns_servers text[] not null default '{}'",
        ),
        (
            "alter table devices drop column status cascade",
            "alter table devices add status text not null default 'active'",
        ),
        ("alter table groups rename to teams", "alter table teams rename to groups"),
        (
            "alter table policy_targets rename target_id to target",
            "alter table policy_targets rename target to target_id",
        ),
    ] {
        let world = World::new().await;
        world.peer(world.gateway, "ann").await;
        let admin = options("postgres", &world.database);
        world.run(gone).await;
        world
            .run("drop function gatepost.prune(interval); drop trigger gatepost_update on users")
            .await;
        migrate(&admin).await.unwrap_or_else(|error| panic!("{gone}: {error}"));
        let error = world.store.snapshot().await.unwrap_err().to_string();
        assert!(error.contains(" is missing"), "{gone}: {error}");
        assert_eq!(world.count("select count(*) from pg_proc where proname = 'prune'").await, 1);
        world.run(back).await;
        migrate(&admin).await.unwrap_or_else(|error| panic!("{back}: {error}"));
        assert_eq!(world.store.snapshot().await.unwrap().0.peers.len(), 1, "{back}");
        assert_eq!(pending(&admin).await.unwrap(), [], "{back}");
    }
}
