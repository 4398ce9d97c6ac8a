//! What a stolen gateway of a pool leaves behind for the others.

use uuid::Uuid;

use gatepost::store::{CreateRole, Store, grant_token, rights_of_public};

use crate::token::{Pool, token};
use crate::world::options;

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
