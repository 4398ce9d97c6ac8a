//! Managed servers: no login is a superuser, and the platform has settings of its own.

use gatepost::store::{
    AuditEntry, AuditEvent, AuditStatus, ConnectOptions, CreateRole, Entity, Handshake, Read,
    Store, grant, migrate, pending, unmigrate,
};

use crate::postgres::{Cluster, Setup};
use crate::world::{connect, insert_device, insert_gateway, insert_peer, insert_user};

/// As the platform's own superuser sets up a customer's database.
const PLATFORM: &str = "
    create role customer login createrole createdb password 'x';
    create role app login;
    create database vpn owner customer;
    alter database vpn set statement_timeout = '20s';
    alter database vpn set idle_in_transaction_session_timeout = '20s';
    alter role customer set search_path = app, public;
    alter role customer set row_security = off";

/// What the customer has there: citext in another schema, rights for every role by default.
const CUSTOMER: &str = "
    create schema extensions;
    create extension citext with schema extensions;
    create schema app;
    grant all on schema public to app;
    alter default privileges grant all on tables to app;
    alter default privileges grant all on functions to app;
    alter default privileges in schema public grant all on sequences to app";

#[tokio::test]
async fn owner_of_a_managed_database_migrates_serves_and_lets_go() {
    let cluster = Cluster::start(&Setup::default());
    for statement in PLATFORM.split(';') {
        cluster.psql("postgres", statement);
    }
    let customer = ConnectOptions::new(cluster.socket_url("customer", "vpn"));
    let admin = connect(&customer.url).await;
    admin.batch_execute(CUSTOMER).await.unwrap();
    migrate(&customer).await.unwrap();
    assert_eq!(pending(&customer).await.unwrap(), []);
    assert_eq!(migrate(&customer).await.unwrap(), []);
    admin.batch_execute("set search_path = public, extensions").await.unwrap();
    let gateway = insert_gateway(&admin, "g1", "10.8.0.0/16").await;
    let user = insert_user(&admin, "ann").await;
    let device = insert_device(&admin, user, "ann").await;
    insert_peer(&admin, gateway, device, "ann").await;
    grant(&customer, "g1", "fra_1", &CreateRole::IfAbsent(None)).await.unwrap();

    let store = Store::connect(&ConnectOptions::new(cluster.socket_url("fra_1", "vpn"))).unwrap();
    assert_eq!(store.hello().await.unwrap().gateway_name, "g1");
    assert!(store.wrong_rights().await.unwrap().is_empty());
    assert!(store.attach(true).await.unwrap().unwatched.is_empty());
    let (rows, cursor) = store.snapshot().await.unwrap();
    assert_eq!(rows.peers.len(), 1);
    // Another role of the customer writes; it has no right on anything of Gatepost's.
    let app = connect(&cluster.socket_url("app", "vpn")).await;
    app.batch_execute("update public.devices set status = 'revoked'").await.unwrap();
    let Read::Changed(rows, _) = store.changes(&cursor).await.unwrap() else { panic!("no change") };
    assert_eq!(rows.peers[&device.into()][0].bars, gatepost::model::BarredBy::DEVICE_STATUS);
    let now = std::time::SystemTime::now();
    let seen =
        Handshake { device_id: device.into(), first_at: now, seen_at: now, connected_at: None };
    store.report(&[seen]).await.unwrap();
    let entry = AuditEntry {
        event: AuditEvent::GatewayStarted,
        entity: Entity::Gateway(gateway.into()),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message: "started".into(),
        metadata: serde_json::json!({}),
    };
    assert_eq!(store.audit(&[entry]).await.settled, 1);
    let refused = app.batch_execute("select gatepost.me()").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "42501");

    let (_, kept) = unmigrate(&customer).await.unwrap();
    assert_eq!(kept, [""; 0]);
    app.batch_execute("update public.devices set status = 'active'").await.unwrap();
    let ours = "select count(*) from pg_roles where rolname like 'gatepost%'";
    assert_eq!(cluster.psql("vpn", ours), "0");
}
