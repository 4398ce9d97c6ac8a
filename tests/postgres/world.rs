//! A migrated database with one gateway, its role, and helpers to fill it.

use std::sync::atomic::{AtomicU32, Ordering};

use gatepost::store::{ConnectOptions, CreateRole, Cursor, Read, Store, grant, migrate};
use tokio::sync::OnceCell;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::postgres::{Cluster, Setup};

pub struct World {
    pub database: String,
    pub admin: Client,
    pub gateway: Uuid,
    pub role: String,
    pub store: Store,
    /// As `role`.
    pub url: String,
    /// Held for as long as the world is; `None`: the shared one.
    pub own: Option<Cluster>,
}

/// Of a row of `pg_locks`. Databases that are copies of one template give the same ids to their tables.
pub const IS_IN_THIS_DATABASE: &str =
    "database = (select oid from pg_database where datname = current_database())";

/// SQL that ends these sessions and waits until they are gone: `pg_terminate_backend` waits from PostgreSQL 14 on.
macro_rules! end_sessions {
    ($which:literal) => {
        concat!(
            "do $$ declare
                ended constant integer[] := array(select pid from pg_stat_activity where ",
            $which,
            ");
            begin
                perform pg_terminate_backend(pid) from unnest(ended) pid;
                for turn in 1..1000 loop
                    perform pg_stat_clear_snapshot();
                    exit when not exists (select from pg_stat_activity where pid = any (ended));
                    perform pg_sleep(0.01);
                end loop;
            end $$"
        )
    };
}
pub(crate) use end_sessions;

/// A database that is migrated once and copied for each test.
async fn template() -> &'static str {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    TEMPLATE
        .get_or_init(|| async {
            let cluster = Cluster::shared();
            let name = cluster.database(None);
            migrate(&options("postgres", &name)).await.unwrap();
            // A template must have no connections, and our session may linger.
            cluster.psql(
                "postgres",
                &format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"),
            );
            name
        })
        .await
}

pub fn options(role: &str, database: &str) -> ConnectOptions {
    ConnectOptions::new(Cluster::shared().socket_url(role, database))
}

pub async fn client(role: &str, database: &str) -> Client {
    connect(&Cluster::shared().socket_url(role, database)).await
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl World {
    pub async fn new() -> Self {
        let database = Cluster::shared().database(Some(template().await));
        Self::on(Cluster::shared(), database).await
    }

    /// On a cluster where no other test's transaction holds anything back.
    pub async fn alone() -> Self {
        Self::alone_with(&Setup::UNDISTURBED).await
    }

    pub async fn alone_with(setup: &Setup) -> Self {
        let cluster = Cluster::start(setup);
        let database = cluster.database(None);
        let options = ConnectOptions::new(cluster.socket_url("postgres", &database));
        migrate(&options).await.unwrap();
        let world = Self::on(&cluster, database).await;
        Self { own: Some(cluster), ..world }
    }

    pub async fn on(cluster: &Cluster, database: String) -> Self {
        let url = |role: &str| cluster.socket_url(role, &database);
        let admin = connect(&url("postgres")).await;
        let gateway = insert_gateway(&admin, "g1", "10.8.0.0/16").await;
        let role = format!("{database}_g1");
        let create = CreateRole::IfAbsent(None);
        grant(&ConnectOptions::new(url("postgres")), "g1", &role, &create).await.unwrap();
        let store = Store::connect(&ConnectOptions::new(url(&role))).unwrap();
        let url = url(&role);
        Self { database, admin, gateway, role, store, url, own: None }
    }

    /// Of a world that is alone.
    pub fn cluster(&self) -> &Cluster {
        self.own.as_ref().unwrap()
    }

    pub async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub async fn count(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// A user with one device and one peer of `gateway`.
    pub async fn peer(&self, gateway: Uuid, name: &str) -> Peer {
        let user = insert_user(&self.admin, name).await;
        let device = insert_device(&self.admin, user, name).await;
        let peer = insert_peer(&self.admin, gateway, device, name).await;
        Peer { user, device, peer }
    }

    pub async fn cursor(&self) -> Cursor {
        self.store.snapshot().await.unwrap().1
    }

    pub async fn read(&self, since: &Cursor) -> Read {
        self.store.changes(since).await.unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub user: Uuid,
    pub device: Uuid,
    pub peer: Uuid,
}

pub async fn id(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Uuid {
    let row = client.query_one(sql, parameters).await;
    row.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

pub async fn insert_gateway(client: &Client, name: &str, cidr: &str) -> Uuid {
    id(
        client,
        "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr) \
         values ($1, 'vpn.example.net:51820', 'key of ' || $1, 51820, $2::text::cidr) returning id",
        &[&name, &cidr],
    )
    .await
}

pub async fn insert_user(client: &Client, name: &str) -> Uuid {
    id(
        client,
        "with staff as (insert into roles (name) values ('staff') \
             on conflict (name) do update set name = excluded.name returning id) \
         insert into users (role_id, username, display_name, password_hash) \
         select id, $1::text::citext, $1, 'secret' from staff returning id",
        &[&name],
    )
    .await
}

pub async fn insert_device(client: &Client, user: Uuid, name: &str) -> Uuid {
    id(
        client,
        "insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at) \
         values ($1, $2, 'linux', $2, 'key', now()) returning id",
        &[&user, &name],
    )
    .await
}

/// With an address that no other test's peer has, from 10.8.1.0 on.
pub async fn insert_peer(client: &Client, gateway: Uuid, device: Uuid, key: &str) -> Uuid {
    static NUMBER: AtomicU32 = AtomicU32::new(256);
    let number = i64::from(NUMBER.fetch_add(1, Ordering::Relaxed));
    id(
        client,
        "insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip) \
         values ($1, $2, $3, '10.8.0.0'::inet + $4::bigint) returning id",
        &[&gateway, &device, &key, &number],
    )
    .await
}
