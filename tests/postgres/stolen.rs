//! What a stolen gateway of a pool leaves behind for the others.

use std::time::{Duration, SystemTime};

use uuid::Uuid;

use gatepost::store::{
    AuditEntry, AuditEvent, AuditStatus, ConnectOptions, CreateRole, Entity, Read, Store,
    grant_token, rights_of_public,
};

use crate::token::{Pool, token};
use crate::world::{connect, options};

/// A session that another gateway had before, who left in it what it could.
#[tokio::test]
async fn what_another_gateway_left_in_a_session_is_not_believed() {
    let (pool, _) = Pool::new().await;
    let honest = pool.store(token(1)).hello().await.unwrap();
    let (_, cursor) = pool.store(token(1)).snapshot().await.unwrap();
    let session = pool.stolen().await;
    let left = "set gatepost.server = 'forged'; set gatepost.gateway = 'forged';
        create temp table gateway_token (digest bytea, gateway_name text, gateway_id uuid);
        create temp table gateways (id uuid); set search_path = pg_temp, gatepost, public";
    session.batch_execute(left).await.unwrap();
    let query = "select epoch, gateway_id from gatepost.hello($1)";
    let row = session.query_one(query, &[&token(1).expose()]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), cursor.epoch);
    assert_eq!(row.get::<_, Uuid>(1), honest.gateway_id.0);
    let news = "select news from gatepost.news($1, $2, $3)";
    let row = session.query_one(news, &[&token(1).expose(), &cursor.snapshot, &cursor.epoch]).await;
    assert!(!row.unwrap().get::<_, bool>(0), "its cursor is of the same history");
}

/// Types of a stolen gateway, in each session of the pool: the server looks for a type among the temporary ones first.
#[tokio::test]
async fn what_is_sent_through_a_pool_meets_no_type_that_another_gateway_left() {
    let (pool, _) = Pool::new().await;
    // Called by a type of the stolen gateway, it says so to the whole server.
    pool.world
        .run(
            "create table told (by text); grant all on told to public;
             insert into settings (category, key, value) values ('dns', 'servers', '[]');
             create schema theirs; grant usage on schema theirs to public;
             create function theirs.note(what text) returns boolean language plpgsql as $$ begin
                 begin
                     insert into public.told values (what);
                 exception when others then raise exception 'told by %', what;
                 end;
                 return true;
             end $$; grant execute on function theirs.note to public",
        )
        .await;
    // The search path that `gatepost grant` gives the role names temporary types last, but a role may change it.
    let path = format!(
        "alter role {} in database {} set search_path = pg_temp, public, pg_catalog",
        pool.role, pool.world.database
    );
    pool.stolen().await.batch_execute(&path).await.unwrap();
    let (pooler, url) = pool.pooled();
    let types = ["text", "jsonb", "regclass", "interval", "uuid", "name", "cidr"];
    let domain =
        |it| format!("create domain pg_temp.{it} as pg_catalog.{it} check (theirs.note('{it}'));");
    let left = types.map(domain).concat();
    // Both sessions of the pool, each held by a transaction until the other has its types, too.
    let (one, two) = (connect(&url).await, connect(&url).await);
    for session in [&one, &two] {
        session.batch_execute("begin").await.unwrap();
        session.batch_execute(&left).await.unwrap();
    }
    for session in [&one, &two] {
        session.batch_execute("commit").await.unwrap();
    }
    one.batch_execute("select '1'::text").await.unwrap();
    assert!(
        pool.world.count("select count(*) from told").await > 0,
        "the types are in the session"
    );
    pool.world.run("truncate told").await;

    let options = ConnectOptions { token: Some(token(1)), ..ConnectOptions::new(&url) };
    let honest = Store::connect(&options).unwrap();
    let hello = honest.hello().await.unwrap();
    let (_, cursor) = honest.snapshot().await.unwrap();
    let ann = pool.world.peer(pool.world.gateway, "ann").await;
    assert!(matches!(honest.changes(&cursor).await.unwrap(), Read::Changed(..)));
    let entry = AuditEntry {
        event: AuditEvent::GatewayStarted,
        entity: Entity::Gateway(hello.gateway_id),
        device_id: Some(ann.device.into()),
        ip_address: None,
        status: AuditStatus::Success,
        message: "started".into(),
        metadata: serde_json::json!({}),
    };
    let audited = honest.audit(&[entry]).await;
    assert_eq!(audited.settled, 1, "{:?}", audited.error);
    assert!(audited.refused.is_empty(), "{:?}", audited.refused);
    assert!(honest.synced(SystemTime::now()).await.unwrap());
    honest.merge().await.unwrap();
    honest.prune(Duration::from_secs(86_400)).await.unwrap();
    assert_eq!(honest.wrong_rights().await.unwrap(), Vec::<String>::new());
    honest.shared_role().await.unwrap().unwrap();
    assert_eq!(pool.world.count("select count(*) from told").await, 0, "no type was called");
    drop(pooler);
}

/// What `gatepost check` tells of it.
#[tokio::test]
async fn what_the_server_allows_the_role_of_many_gateways_is_told() {
    let (pool, _) = Pool::new().await;
    let store = pool.store(token(1));
    let told = store.shared_role().await.unwrap().unwrap();
    assert_eq!((&told.role, &told.public.database), (&pool.role, &pool.world.database));
    assert!(told.public.makes_temporary_tables && told.public.ends_sessions);
    assert!(!told.logs_statements && told.spoiled.is_empty(), "{told:?}");
    assert_eq!(told.logged_parameters, ["log_parameter_max_length = -1"]);
    assert_eq!(
        rights_of_public(&options("postgres", &pool.world.database), &pool.role).await.unwrap(),
        told.public
    );
    // What the role can change of itself, with a token that may have been revoked.
    pool.stolen()
        .await
        .batch_execute(&format!(
            "alter role {role} set statement_timeout = 0;
             alter role {role} in database {} set search_path = public, pg_catalog",
            pool.world.database,
            role = pool.role
        ))
        .await
        .unwrap();
    let spoiled = pool.store(token(1)).shared_role().await.unwrap().unwrap().spoiled;
    assert_eq!(
        spoiled,
        [
            "search_path = \"public, pg_catalog\" instead of pg_catalog, pg_temp",
            "statement_timeout = \"0\" instead of '35s'"
        ]
    );
    // As `gatepost check` says.
    pool.world
        .run(&format!(
            "alter role {role} reset all; alter role {role} in database {} reset all",
            pool.world.database,
            role = pool.role
        ))
        .await;
    let admin = options("postgres", &pool.world.database);
    grant_token(&admin, "g1", &token(6), Some(&pool.role), &CreateRole::No).await.unwrap();
    let mended = pool.store(token(1)).shared_role().await.unwrap().unwrap();
    assert!(mended.spoiled.is_empty(), "{mended:?}");
    let database = &pool.world.database;
    pool.world
        .run(&format!(
            "revoke temporary on database {database} from public;
             revoke execute on function pg_cancel_backend, pg_terminate_backend from public;
             alter role {role} set log_parameter_max_length = 0;
             alter role {role} set log_parameter_max_length_on_error = 1;
             alter role {role} set log_min_duration_statement = 0",
            role = pool.role
        ))
        .await;
    let told = pool.store(token(1)).shared_role().await.unwrap().unwrap();
    assert!(!told.public.makes_temporary_tables && !told.public.ends_sessions);
    assert!(told.logs_statements);
    assert_eq!(told.logged_parameters, ["log_parameter_max_length_on_error = 1"]);
    let own = Store::connect(&options(&pool.world.role, database)).unwrap();
    assert_eq!(own.shared_role().await.unwrap(), None);
}

/// On PostgreSQL 13 and 14, and in databases that come from them, `public` is open to everyone.
#[tokio::test]
async fn a_schema_that_triggers_search_and_the_role_may_write_is_found() {
    let (pool, _) = Pool::new().await;
    let database = &pool.world.database;
    pool.world.run("revoke create on schema public from public").await;
    assert_eq!(pool.world.store.writable_schemas().await.unwrap(), Vec::<String>::new());
    pool.world.run("grant create on schema public to public").await;
    for store in [&pool.world.store, &pool.store(token(1))] {
        assert_eq!(store.writable_schemas().await.unwrap(), ["public"]);
    }
    pool.world
        .run(&format!(
            "create schema app; create schema open; grant create on schema open to public;
             alter database {database} set search_path = \"open\", app"
        ))
        .await;
    assert_eq!(pool.world.store.writable_schemas().await.unwrap(), ["open"]);
}

/// What docs/security.md says that a stolen gateway of a pool can see.
#[tokio::test]
async fn the_role_of_a_pool_sees_the_names_of_its_other_sessions_and_no_token() {
    let (pool, _) = Pool::new().await;
    let other = connect(&format!("{}?application_name=of-g2", pool.url())).await;
    let call = "select * from gatepost.attach($1, true)";
    other.query(call, &[&token(2).expose()]).await.unwrap();
    let seen =
        "select application_name, query from pg_stat_activity where application_name = 'of-g2'";
    let rows = pool.stolen().await.query(seen, &[]).await.unwrap();
    let [row] = &rows[..] else { panic!("{} sessions", rows.len()) };
    let (name, query): (String, String) = (row.get(0), row.get(1));
    assert_eq!(name, "of-g2");
    assert!(query.contains("attach") && !query.contains(token(2).expose()), "{query}");
}
