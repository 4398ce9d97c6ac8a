//! One gateway with its peers, in a database of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gatepost::model::psk::PskKeys;
use gatepost::model::{Local, Masquerade, PrivateKey};
use gatepost::store::{ConnectOptions, CreateRole, Store, grant, migrate};

use super::figures::{median, timed};
use super::postgres::Cluster;

/// The gateway, its role and its peers. One user in five devices, 500 groups, 1,000 policies.
pub struct Fleet<'a> {
    pub cluster: &'a Cluster,
    pub database: String,
    pub peers: u32,
    /// As the gateway's role.
    pub url: String,
    /// As the role of a gateway without peers.
    pub other_url: String,
    pub store: Store,
}

impl<'a> Fleet<'a> {
    pub async fn make(cluster: &'a Cluster, peers: u32) -> Self {
        let database = cluster.database(None);
        let admin = ConnectOptions::new(cluster.socket_url("postgres", &database));
        migrate(&admin).await.unwrap();
        cluster.psql(&database, &rows(peers));
        cluster.psql(&database, "truncate gatepost.change");
        // Not within the transaction that several statements are.
        cluster.psql(&database, "vacuum analyze");
        let mut urls = Vec::new();
        for gateway in ["g", "other"] {
            let role = format!("{database}_{gateway}");
            grant(&admin, gateway, &role, &CreateRole::IfAbsent(None)).await.unwrap();
            urls.push(cluster.socket_url(&role, &database));
        }
        let [url, other_url] = urls.try_into().unwrap();
        let store = Store::connect(&ConnectOptions::new(url.clone())).unwrap();
        Self { cluster, database, peers, url, other_url, store }
    }

    pub fn sql(&self, sql: &str) -> String {
        self.cluster.psql(&self.database, sql)
    }

    /// The median time of an SQL text in `psql`, its start included.
    pub fn sql_time(&self, sql: &str) -> Duration {
        let times: Vec<Duration> = (0..3).map(|_| timed(|| self.sql(sql))).collect();
        median(&times)
    }
}

/// What the gateway's configuration says.
pub fn local() -> Arc<Local> {
    Arc::new(Local {
        interface: "gatepost0".parse().unwrap(),
        private_key: private_key(),
        mtu_bytes: 1420,
        addresses: BTreeSet::new(),
        fwmark: 0,
        site_prefixes: BTreeSet::new(),
        masquerade: Masquerade::All,
        deny_log: true,
        flush_conntrack: true,
        psk_keys: PskKeys::default(),
    })
}

fn private_key() -> PrivateKey {
    PrivateKey::from_random([7; 32])
}

fn rows(peers: u32) -> String {
    let key = private_key().public_key();
    let users = peers.div_ceil(5);
    format!(
        "insert into roles (name) values ('staff');
         insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
             values ('g', 'vpn.example.net:51820', '{key}', 51820, '10.64.0.0/10'),
                    ('other', 'vpn.example.net:51820', 'another key', 51820, '10.0.0.0/16');
         insert into users (role_id, username, display_name, password_hash)
             select id, 'user' || n, 'User ' || n, '!' from roles, generate_series(1, {users}) n;
         insert into groups (name) select 'group' || n from generate_series(1, 500) n;
         create temp table u as select id, row_number() over () as n from users;
         create temp table g as select id, row_number() over () as n from groups;
         insert into group_memberships (group_id, user_id)
             select g.id, u.id from u, g where g.n in (u.n % 500 + 1, u.n % 7 + 1);
         insert into devices (user_id, name, platform, device_fingerprint, public_key, approved_at)
             select u.id, 'laptop ' || k, 'linux', u.n || '-' || k, encode(sha256((u.n || '-' || k)::bytea), 'base64'), now()
             from u, generate_series(1, 5) k;
         insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip, allowed_ips)
             select gateways.id, d.id, d.public_key, '10.64.0.1'::inet + d.n, '{{0.0.0.0/0,::/0}}'
             from (select id from gateways where name = 'g') as gateways, (select *, row_number() over () as n from devices) d;
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
