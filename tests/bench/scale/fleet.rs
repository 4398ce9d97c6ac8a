//! Gateways with their peers, in a database of their own.

use std::sync::Arc;
use std::time::Duration;

use gatepost::model::Local;
use gatepost::store::{ConnectOptions, CreateRole, Store, grant, migrate};

use super::figures::{grouped, median, timed};
use super::postgres::Cluster;

/// Turns our triggers on a table off.
pub fn silence(table: &str) -> String {
    format!("alter table {table} disable trigger user")
}

/// Turns them on again as they were installed: to fire in every session. Agents take any others for
/// missing, and read everything again and again.
pub fn unsilence(table: &str) -> String {
    format!(
        "do $$ declare ours name; begin
             for ours in select tgname from pg_trigger
                 where tgrelid = '{table}'::regclass and not tgisinternal
             loop
                 execute format('alter table {table} enable always trigger %I', ours);
             end loop;
         end $$"
    )
}

/// Gateways `g1`, `g2`, ..., each with an equal share of the peers. Every user has five devices and
/// is in three of 501 groups: one group holds everybody. 1,000 policies.
pub struct Fleet<'a> {
    pub cluster: &'a Cluster,
    pub database: String,
    pub peers: usize,
    pub gateways: usize,
}

impl<'a> Fleet<'a> {
    /// Each gateway logs in as a role of its own.
    pub async fn make(cluster: &'a Cluster, peers: usize, gateways: usize) -> Self {
        let fleet = Self::without_logins(cluster, peers, gateways).await;
        for number in 1..=gateways {
            let (role, create) = (fleet.role(number), CreateRole::IfAbsent(None));
            grant(&fleet.owner(), &name(number), &role, &create).await.unwrap();
        }
        fleet.forget_marks();
        fleet
    }

    pub async fn without_logins(cluster: &'a Cluster, peers: usize, gateways: usize) -> Self {
        let database = cluster.database(None);
        let fleet = Self { cluster, database, peers, gateways };
        migrate(&fleet.owner()).await.unwrap();
        fleet.sql(&rows(peers, gateways));
        fleet
    }

    /// How its owner connects.
    pub fn owner(&self) -> ConnectOptions {
        ConnectOptions::new(self.cluster.socket_url("postgres", &self.database))
    }

    pub fn size(&self) -> String {
        format!("{} peers", grouped(self.peers))
    }

    pub fn role(&self, gateway: usize) -> String {
        format!("{}_{}", self.database, name(gateway))
    }

    pub fn url(&self, gateway: usize) -> String {
        self.cluster.socket_url(&self.role(gateway), &self.database)
    }

    pub fn store(&self, gateway: usize) -> Store {
        Store::connect(&ConnectOptions::new(self.url(gateway))).unwrap()
    }

    pub fn sql(&self, sql: &str) -> String {
        self.cluster.psql(&self.database, sql)
    }

    /// The median time of an SQL text in `psql`, its start included.
    pub fn sql_time(&self, sql: &str) -> Duration {
        let times: Vec<Duration> = (0..3).map(|_| timed(|| self.sql(sql))).collect();
        median(&times)
    }

    /// A session of the database's owner.
    pub async fn admin(&self) -> tokio_postgres::Client {
        let url = self.cluster.socket_url("postgres", &self.database);
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Between two measurements, while no agent is attached.
    pub fn forget_marks(&self) {
        self.sql("truncate gatepost.change");
        self.sql("update devices set status = 'active' where status <> 'active'");
        self.sql("truncate gatepost.change, gatepost.attached");
        self.sql("vacuum analyze");
    }
}

/// `gateways.name`
pub fn name(gateway: usize) -> String {
    format!("g{gateway}")
}

/// What every gateway's configuration says.
pub fn local() -> Arc<Local> {
    Arc::new(super::rows::local())
}

fn rows(peers: usize, gateways: usize) -> String {
    let key = super::rows::private_key().public_key();
    let users = peers.div_ceil(5);
    format!(
        "insert into roles (name) values ('staff');
         insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
             select 'g' || n, 'vpn.example.net:51820', '{key}', 51820, '10.64.0.0/10'
             from generate_series(1, {gateways}) n;
         create temp table w as
             select id, substr(name, 2)::bigint - 1 as n from gateways;
         insert into users (role_id, username, display_name, password_hash)
             select id, 'user' || n, 'User ' || n, '!' from roles, generate_series(1, {users}) n;
         insert into groups (name) select 'group' || n from generate_series(1, 500) n;
         create temp table u as select id, row_number() over () as n from users;
         create temp table g as select id, row_number() over () as n from groups;
         insert into group_memberships (group_id, user_id)
             select g.id, u.id from u, g where g.n in (u.n % 500 + 1, u.n % 7 + 1);
         with everybody as (insert into groups (name) values ('everybody') returning id)
         insert into group_memberships (group_id, user_id) select everybody.id, u.id from everybody, u;
         insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at)
             select u.id, 'laptop ' || k, 'linux', u.n || '-' || k, encode(sha256((u.n || '-' || k)::bytea), 'base64'), now()
             from u, generate_series(1, 5) k;
         insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip, allowed_ips)
             select w.id, d.id, d.public_key, '10.64.0.1'::inet + d.n, '{{0.0.0.0/0,::/0}}'
             from (select *, row_number() over () as n from devices limit {peers}) d
             join w on w.n = d.n % {gateways};
         insert into ip_allocations (gateway_id, device_id, address)
             select gateway_id, device_id, assigned_ip from wireguard_peers;
         insert into policies (name, priority) select 'policy' || n, n % 100 from generate_series(1, 1000) n;
         create temp table p as select id, row_number() over () as n from policies;
         insert into policy_targets (policy_id, target_type, target_id)
             select p.id, 'group', g.id from p join g on g.n = p.n % 500 + 1;
         insert into policy_destinations (policy_id, destination)
             select p.id, set_masklen('172.16.0.0'::inet + (p.n * 5 + k) * 256, 24)::cidr from p, generate_series(0, 4) k"
    )
}
