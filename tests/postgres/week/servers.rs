//! The servers of the week: a primary and, once they are there, its standbys. Each holds both databases.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gatepost::store::{ConnectOptions, CreateRole, grant, migrate};

use super::writers::id;
use crate::agent::private_key;
use crate::postgres::{Cluster, Setup, free_port};
use crate::world::connect;

/// The database with Gatepost, and its twin without.
pub const OURS: &str = "ours";
pub const TWIN: &str = "twin";
pub const BOTH: [&str; 2] = [OURS, TWIN];

/// One after the other is the primary.
const SERVERS: usize = 3;
/// Users, each with a device that only the team's own events touch.
const USERS: usize = 8;

pub struct Servers {
    /// Those that run or ran, the first primary first.
    clusters: Mutex<Vec<Cluster>>,
    primary: AtomicUsize,
    /// Where the servers are or will be.
    places: Vec<(PathBuf, u16)>,
}

impl Servers {
    /// Both databases with the rows of a small company, and Gatepost in one of them.
    pub async fn start() -> Self {
        let first = Cluster::start(&Setup { settings: "wal_level = logical", ..Setup::default() });
        let mut places = vec![(first.dir.clone(), first.port)];
        for number in 1..SERVERS {
            places.push((first.dir.with_extension(format!("standby{number}")), free_port()));
        }
        first
            .psql("postgres", "create role portal login; create role clerk; grant clerk to portal");
        let admin = ConnectOptions::new(first.socket_url("postgres", OURS));
        for name in BOTH {
            first.psql("postgres", &format!("create database {name} owner portal"));
            first.psql(name, "create extension citext; create extension moddatetime");
            let portal = connect(&first.socket_url("portal", name)).await;
            let tables = include_str!("../../../migrations/V1__control_plane.sql");
            let tables =
                tables.replace("create extension if not exists citext with schema public;", "");
            portal.batch_execute(&tables).await.unwrap();
            portal.batch_execute(&rows()).await.unwrap();
        }
        migrate(&admin).await.unwrap();
        grant(&admin, "g1", "agent", &CreateRole::IfAbsent(None)).await.unwrap();
        Self { clusters: Mutex::new(vec![first]), primary: AtomicUsize::new(0), places }
    }

    /// Of whichever server is the primary.
    pub fn url(&self, role: &str, database: &str) -> String {
        let list = |of: fn(&(PathBuf, u16)) -> String| {
            self.places.iter().map(of).collect::<Vec<_>>().join(",")
        };
        let (hosts, ports) =
            (list(|(dir, _)| dir.display().to_string()), list(|(_, port)| port.to_string()));
        format!(
            "user={role} dbname={database} host={hosts} port={ports} \
             target_session_attrs=read-write connect_timeout=5"
        )
    }

    /// Does this with the primary.
    pub fn with_primary<T>(&self, work: impl FnOnce(&Cluster) -> T) -> T {
        work(&self.clusters.lock().unwrap()[self.primary.load(Ordering::Relaxed)])
    }

    /// All servers that are to follow the primary.
    pub fn add_standbys(&self) {
        let mut clusters = self.clusters.lock().unwrap();
        for (dir, port) in &self.places[clusters.len()..] {
            let standby = clusters[0].standby_at(dir.clone(), *port);
            clusters.push(standby);
        }
    }

    /// Makes the next server the primary, which loses nothing or all that is written once it is cut off.
    pub fn promote(&self, loss: Loss) {
        let clusters = self.clusters.lock().unwrap();
        let former = self.primary.fetch_add(1, Ordering::Relaxed);
        let (primary, next) = (&clusters[former], &clusters[former + 1]);
        match loss {
            Loss::None => {
                await_true(next, &has_replayed(primary));
                primary.pg_ctl(&["-m", "fast", "stop"]);
            }
            Loss::LastWrites => {
                cut_off(next);
                let before = primary.psql(OURS, WRITTEN);
                await_true(
                    primary,
                    &format!("select pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}') > 20000"),
                );
                primary.pg_ctl(&["-m", "immediate", "stop"]);
            }
        }
        next.pg_ctl(&["promote"]);
        for other in &clusters[former + 2..] {
            follow(other, Some(next));
        }
    }

    /// What the servers' logs say of sessions that waited for each other.
    pub fn deadlocks(&self) -> Vec<String> {
        self.clusters.lock().unwrap().iter().flat_map(deadlocks_of).collect()
    }

    /// No agent's session was one of those.
    pub fn had_no_deadlock_with_an_agent(&self) {
        let deadlocks = self.deadlocks();
        assert!(!deadlocks.iter().any(|told| told.contains("gatepost")), "{deadlocks:#?}");
    }
}

/// What a promotion loses.
#[derive(Debug, Clone, Copy)]
pub enum Loss {
    None,
    LastWrites,
}

const WRITTEN: &str = "select pg_current_wal_lsn()";

fn has_replayed(primary: &Cluster) -> String {
    let written = primary.psql("postgres", WRITTEN);
    format!("select pg_last_wal_replay_lsn() >= '{written}'")
}

pub fn deadlocks_of(cluster: &Cluster) -> Vec<String> {
    let log = std::fs::read_to_string(cluster.dir.join("log")).unwrap();
    let starts = log.match_indices("deadlock detected").map(|(start, _)| start);
    // What follows the hint is of other sessions.
    let told = starts.map(|start| log[start..].lines().take_while(|line| !line.contains("HINT:")));
    told.map(|lines| lines.collect::<Vec<_>>().join("\n")).collect()
}

pub fn await_true(cluster: &Cluster, sql: &str) {
    let start = std::time::Instant::now();
    while cluster.psql("postgres", sql) != "t" {
        assert!(start.elapsed() < crate::running::PATIENCE, "never {sql}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn follow(standby: &Cluster, primary: Option<&Cluster>) {
    let from = primary.map_or_else(String::new, |it| {
        format!("host={} port={} user=postgres", it.dir.display(), it.port)
    });
    standby.psql("postgres", &format!("alter system set primary_conninfo = '{from}'"));
    standby.psql("postgres", "select pg_reload_conf()");
}

fn cut_off(standby: &Cluster) {
    follow(standby, None);
    await_true(standby, "select not exists (select from pg_stat_wal_receiver)");
}

fn rows() -> String {
    let gateway = id("gateway", 1);
    let key = private_key().public_key();
    let mut sql = format!(
        "insert into roles (name) values ('staff');
         insert into gateways (id, name, endpoint, public_key, listen_port, vpn_cidr)
             values ({gateway}, 'g1', 'vpn.example.net:51820', '{key}', 51820, '10.8.0.0/16');"
    );
    for number in 0..USERS {
        let (user, device, peer) = (id("user", number), id("own", number), id("ownpeer", number));
        let address = 100 + number;
        sql += &format!(
            "insert into users (id, role_id, username, display_name, password_hash)
                 select {user}, id, 'user-{number}', 'User {number}', 'secret' from roles;
             insert into devices (id, user_id, name, platform, device_fingerprint, public_key, approved_at)
                 values ({device}, {user}, 'own-{number}', 'linux', 'own-{number}', 'none', now());
             insert into wireguard_peers (id, device_id, gateway_id, public_key, assigned_ip)
                 values ({peer}, {device}, {gateway},
                     encode(sha256('own {number}'), 'base64'), '10.8.0.{address}');"
        );
    }
    for number in 0..2 {
        let group = id("group", number);
        sql += &format!("insert into groups (id, name) values ({group}, 'group-{number}');");
    }
    for number in 0..4 {
        let (policy, target) = (id("policy", number), id("target", number));
        let (kind, whom) = match number {
            0 => ("user", id("user", 1)),
            1 => ("device", id("own", 2)),
            _ => ("group", id("group", number % 2)),
        };
        sql += &format!(
            "insert into policies (id, name) values ({policy}, 'policy-{number}');
             insert into policy_targets (id, policy_id, target_type, target_id)
                 values ({target}, {policy}, '{kind}', {whom});
             insert into policy_destinations (policy_id, destination)
                 values ({policy}, '10.50.{}.0/24');",
            2 * number
        );
    }
    sql
}
