//! The promise of the change feed: old rows and what changed since make exactly the new rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use gatepost::model::{ChangedRows, MembershipRow, PeerRow, PolicyRow, SnapshotRows};
use gatepost::store::{Cursor, Polled, Read};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::seed::seed;
use crate::world::{World, client, insert_gateway};

/// After so many rounds an agent that has not seen enough never will.
const MOST_ROUNDS: u64 = 200;

/// What an agent holds between reads.
#[derive(Debug, Default, PartialEq)]
struct Held {
    peers: BTreeMap<Uuid, PeerRow>,
    memberships: BTreeMap<Uuid, MembershipRow>,
    policies: BTreeMap<Uuid, PolicyRow>,
}

impl Held {
    fn of(rows: SnapshotRows) -> Self {
        Self {
            peers: rows.peers.into_iter().map(|row| (row.id.0, row)).collect(),
            memberships: rows.memberships.into_iter().map(|row| (row.user_id.0, row)).collect(),
            policies: rows.policies.into_iter().map(|row| (row.id.0, row)).collect(),
        }
        .without_strangers()
    }

    /// Changes do not name users without a peer here: what is held of them counts for nothing.
    fn without_strangers(mut self) -> Self {
        let users: BTreeSet<Uuid> = self.peers.values().map(|row| row.user_id.0).collect();
        self.memberships.retain(|user, _| users.contains(user));
        self
    }

    fn apply(mut self, changed: ChangedRows) -> Self {
        for (device, rows) in changed.peers {
            self.peers.retain(|_, row| row.device_id != device);
            self.peers.extend(rows.into_iter().map(|row| (row.id.0, row)));
        }
        for (user_id, group_ids) in changed.memberships {
            if group_ids.is_empty() {
                self.memberships.remove(&user_id.0);
            } else {
                self.memberships.insert(user_id.0, MembershipRow { user_id, group_ids });
            }
        }
        for (id, policy) in changed.policies {
            match policy {
                Some(policy) => drop(self.policies.insert(id.0, policy)),
                None => drop(self.policies.remove(&id.0)),
            }
        }
        self.without_strangers()
    }
}

/// How often each kind of answer came: a test of deltas that never saw one proves nothing.
#[derive(Debug, Default)]
struct Seen {
    nothing: usize,
    changed: usize,
    everything: usize,
    quiet: usize,
}

/// How the agent asks.
#[derive(Debug, Clone, Copy)]
enum Asks {
    /// For changes at once, as where it listens.
    Changes,
    /// Whether there are any, first.
    Polls,
    /// Now so, now so: the mode may turn at any time.
    Either,
    /// Whether there are any, after a bell rang for what was committed: it addresses marks.
    Rung,
}

impl Asks {
    /// A bell rings in statements of its own, each of which sees what was committed before.
    async fn prepare(self, world: &World) {
        if matches!(self, Self::Rung) {
            world.run("select gatepost.hold_bell('tower')").await;
            world.run("select gatepost.ring('tower')").await;
        }
    }

    fn polls(self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Changes => false,
            Self::Polls | Self::Rung => true,
            Self::Either => random.bool(),
        }
    }
}

/// One look. Returns the database's time up to which nothing is missing.
async fn follow(
    world: &World,
    polls: bool,
    held: &mut Held,
    cursor: &mut Cursor,
    seen: &mut Seen,
) -> SystemTime {
    if polls && let Polled::Quiet(next, quiet_until) = world.store.poll(cursor).await.unwrap() {
        seen.quiet += 1;
        *cursor = next;
        return quiet_until;
    }
    follow_changes(world, held, cursor, seen).await
}

async fn follow_changes(
    world: &World,
    held: &mut Held,
    cursor: &mut Cursor,
    seen: &mut Seen,
) -> SystemTime {
    match world.read(cursor).await {
        Read::Nothing(next, taken_at) => {
            seen.nothing += 1;
            *cursor = next;
            taken_at
        }
        Read::Changed(rows, next) => {
            seen.changed += 1;
            let taken_at = rows.taken_at;
            *held = std::mem::take(held).apply(rows);
            *cursor = next;
            taken_at
        }
        Read::Everything(_) => {
            seen.everything += 1;
            let (rows, next) = world.store.snapshot().await.unwrap();
            let taken_at = rows.taken_at;
            *held = Held::of(rows);
            *cursor = next;
            taken_at
        }
    }
}

/// One random statement. Rows are picked by the database, so that writers meet on the same ones.
fn statement(random: &mut fastrand::Rng) -> String {
    let pick = |table: &str| format!("(select id from {table} order by random() limit 1)");
    let n = random.u32(..);
    let flip = random.bool();
    let when = if flip { "now()" } else { "null" };
    let (device, user, group) = (pick("devices"), pick("users"), pick("groups"));
    let (gateway, peer, policy) = (pick("gateways"), pick("wireguard_peers"), pick("policies"));
    let address = format!("'10.8.0.{}'", n % 8);
    match random.u32(0..45) {
        0..=3 => format!(
            "insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip)
             values ({gateway}, {device}, '{n}', {address})"
        ),
        4 => format!("delete from wireguard_peers where id = {peer}"),
        5 | 6 => format!("update wireguard_peers set deleted_at = {when} where id = {peer}"),
        7 => format!("update wireguard_peers set gateway_id = {gateway} where id = {peer}"),
        8 => format!("update wireguard_peers set device_id = {device} where id = {peer}"),
        9 => format!("update wireguard_peers set public_key = '{n}' where id = {peer}"),
        10 => format!("update wireguard_peers set assigned_ip = {address} where id = {peer}"),
        11 => format!(
            "insert into devices (user_id, name, platform, device_fingerprint, public_key)
             values ({user}, 'd{n}', 'x', '{n}', 'k')"
        ),
        12 => format!("update devices set user_id = {user} where id = {device}"),
        13 => format!("update devices set status = 's{}' where id = {device}", n % 3),
        14 => format!("update devices set revoked_at = {when} where id = {device}"),
        15 => format!(
            "with gone as (select {device} as id),
                 peers as (delete from wireguard_peers using gone where device_id = gone.id),
                 held as (delete from ip_allocations using gone where device_id = gone.id)
             select; delete from devices d where not exists
                 (select from wireguard_peers where device_id = d.id) and random() < 0.3"
        ),
        16 => format!("update users set is_active = {flip} where id = {user}"),
        17 => format!("update users set username = 'u{n}' where id = {user}"),
        18 => format!(
            "insert into users (role_id, username, display_name, password_hash)
             select id, 'u{n}', 'u', 'x' from roles limit 1"
        ),
        19..=22 => format!(
            "insert into group_memberships (group_id, user_id) values ({group}, {user})"
        ),
        23 | 24 => format!("delete from group_memberships where id = {}", pick("group_memberships")),
        25 => format!(
            "update group_memberships set group_id = {group} where id = {}",
            pick("group_memberships")
        ),
        26 => format!("update groups set deleted_at = {when} where id = {group}"),
        27 => format!("insert into groups (name) values ('g{n}')"),
        28 => "delete from groups g where random() < 0.3 and not exists
               (select from group_memberships where group_id = g.id)"
            .into(),
        29 => format!("insert into policies (name, priority) values ('p{n}', {})", n % 9),
        30 => format!("update policies set is_active = {flip} where id = {policy}"),
        31 => format!("update policies set effect = 'e{}', deleted_at = {when} where id = {policy}", n % 2),
        32..=34 => {
            let (kind, id) = &[
                ("user", user),
                ("group", group),
                ("device", device),
                ("group", "gen_random_uuid()".into()),
                ("team", policy.clone()),
            ]
            [n as usize % 5];
            format!(
                "insert into policy_targets (policy_id, target_type, target_id)
                 values ({policy}, '{kind}', {id})"
            )
        }
        35 => format!("delete from policy_targets where id = {}", pick("policy_targets")),
        36 => format!(
            "insert into policy_destinations (policy_id, destination) values ({policy}, '10.{}.0.0/16')",
            n % 256
        ),
        37 => format!("delete from policy_destinations where id = {}", pick("policy_destinations")),
        38 => format!(
            "insert into ip_allocations (gateway_id, device_id, address) values ({gateway}, {device}, {address})
             on conflict (gateway_id, address) do update set device_id = excluded.device_id"
        ),
        39 => format!("delete from ip_allocations where id = {}", pick("ip_allocations")),
        40 => replaced("users", &user, &format!("jsonb_build_object('is_active', {flip})")),
        41 => replaced("devices", &device, &format!("jsonb_build_object('revoked_at', {when})")),
        42 => replaced("groups", &group, &format!("jsonb_build_object('deleted_at', {when})")),
        43 => {
            let (table, id) = &[("users", user), ("devices", device), ("groups", group)][n as usize % 3];
            without_foreign_keys(&format!(
                "with gone as (delete from {table} where id = {id} returning *)
                 insert into past_{table} select * from gone"
            ))
        }
        _ => {
            let table = ["users", "devices", "groups"][n as usize % 3];
            without_foreign_keys(&format!(
                "with back as (delete from past_{table} returning *)
                 insert into {table} select * from back"
            ))
        }
    }
}

/// Peers and memberships may refer to a row that is deleted in such a session, and comes back later.
fn without_foreign_keys(statement: &str) -> String {
    format!(
        "set local session_replication_role = replica;
         {statement};
         set local session_replication_role = origin"
    )
}

/// Deletes a row and inserts it again in one statement, which foreign keys allow, with these columns changed.
pub(crate) fn replaced(table: &str, id: &str, columns: &str) -> String {
    format!(
        "with gone as (delete from {table} where id = {id} returning *)
         insert into {table}
         select (jsonb_populate_record(null::{table}, to_jsonb(gone) || {columns})).* from gone"
    )
}

/// Transactions of a few statements, now and then held open, now and then rolled back. A statement
/// that fails, by a foreign key or a deadlock, fails its transaction. Returns how many committed.
async fn write(client: Client, seed: u64, transactions: usize) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut committed = 0;
    for _ in 0..transactions {
        let mut sql = String::from("begin;");
        for _ in 0..random.u32(1..5) {
            sql += &statement(&mut random);
            sql += ";";
            if random.u32(0..4) == 0 {
                sql += &format!("select pg_sleep({});", random.f64() * 0.02);
            }
        }
        let sure = random.u32(0..8) > 0;
        sql += if sure { "commit" } else { "rollback" };
        match client.batch_execute(&sql).await {
            Ok(()) => committed += usize::from(sure),
            Err(_) => client.batch_execute("rollback").await.unwrap(),
        }
    }
    committed
}

async fn seeded() -> World {
    let world = World::new().await;
    insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    for name in ["ann", "bob", "cid", "dan", "eve"] {
        world.peer(world.gateway, name).await;
    }
    world.run("insert into groups (name) values ('a'), ('b'), ('c')").await;
    world.run("insert into policies (name) values ('a'), ('b'), ('c')").await;
    for table in ["users", "devices", "groups"] {
        world.run(&format!("create table past_{table} as table {table} with no data")).await;
    }
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_rows_plus_changes_equal_the_new_rows() {
    changes_make_the_new_rows(Asks::Changes, 25, |seen| seen.changed > 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_rows_plus_polled_changes_equal_the_new_rows() {
    changes_make_the_new_rows(Asks::Polls, 15, |seen| seen.changed > 30 && seen.quiet > 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_mode_misses_nothing() {
    changes_make_the_new_rows(Asks::Either, 15, |seen| seen.changed > 30 && seen.quiet > 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bell_that_rings_between_the_questions_hides_nothing() {
    changes_make_the_new_rows(Asks::Rung, 15, |seen| seen.changed > 30 && seen.quiet > 10).await;
}

/// In at least so many rounds, and until the agent has seen enough: how often it reads while the writers
/// write is up to the machine.
async fn changes_make_the_new_rows(asks: Asks, rounds: u64, enough: fn(&Seen) -> bool) {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let world = seeded().await;
    let (rows, mut cursor) = world.store.snapshot().await.unwrap();
    let mut held = Held::of(rows);
    let mut seen = Seen::default();
    let (mut committed, mut round) = (0, 0);
    while round < rounds || !enough(&seen) && round < MOST_ROUNDS {
        let done = Arc::new(AtomicBool::new(false));
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..4 {
            let connection = client("postgres", &world.database).await;
            writers.spawn(write(connection, seed.wrapping_add(round * 10 + number), 6));
        }
        let waiting = {
            let done = done.clone();
            tokio::spawn(async move {
                let counts = writers.join_all().await;
                done.store(true, Ordering::Release);
                counts.into_iter().sum::<usize>()
            })
        };
        while !done.load(Ordering::Acquire) {
            asks.prepare(&world).await;
            let polls = asks.polls(&mut random);
            follow(&world, polls, &mut held, &mut cursor, &mut seen).await;
        }
        committed += waiting.await.unwrap();
        let now = world.admin.query_one("select now()", &[]).await.unwrap();
        let end: SystemTime = now.get(0);
        let mut up_to = SystemTime::UNIX_EPOCH;
        while up_to < end {
            asks.prepare(&world).await;
            let polls = asks.polls(&mut random);
            up_to = follow(&world, polls, &mut held, &mut cursor, &mut seen).await;
        }
        let (rows, _) = world.store.snapshot().await.unwrap();
        let fresh = Held::of(rows);
        if matches!(asks, Asks::Rung) {
            // A bell addresses no mark of a membership whose user has no peer any more. A policy that applied through
            // it applies to nothing here, and stays until the next read of everything.
            held.policies.retain(|id, _| fresh.policies.contains_key(id));
        }
        assert_eq!(held.peers, fresh.peers, "peers, seed {seed}, round {round}");
        assert_eq!(held.memberships, fresh.memberships, "memberships, seed {seed}, round {round}");
        assert_eq!(held.policies, fresh.policies, "policies, seed {seed}, round {round}");
        round += 1;
    }
    assert!(committed > 8 * round as usize, "only {committed} transactions committed");
    assert!(enough(&seen) && seen.everything == 0, "{seen:?} after {round} rounds");
}

/// Eight writers commit out of order, some while holding their transaction open. Each row that was
/// committed must have been in some change: the new device is not re-read by accident later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_out_of_order_leave_no_gap() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let mut cursor = world.cursor().await;
    let running = Arc::new(AtomicUsize::new(8));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8u64 {
        let connection = client("postgres", &world.database).await;
        let running = running.clone();
        let (gateway, user) = (world.gateway, ann.user);
        writers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(writer);
            for number in 0..40 {
                let hold = if random.u32(0..5) == 0 { random.f64() * 0.05 } else { 0.0 };
                let sql = format!(
                    "begin;
                     with d as (insert into devices (user_id, name, platform, device_fingerprint, public_key)
                         values ('{user}', 'd', 'x', '{writer}-{number}', 'k') returning id)
                     insert into wireguard_peers (gateway_id, device_id, public_key, assigned_ip)
                         select '{gateway}', id, '{writer}-{number}', '10.8.0.9' from d;
                     select pg_sleep({hold});
                     commit"
                );
                connection.batch_execute(&sql).await.unwrap();
            }
            running.fetch_sub(1, Ordering::Release);
        });
    }
    let mut devices = std::collections::BTreeSet::new();
    loop {
        let last = running.load(Ordering::Acquire) == 0;
        match world.read(&cursor).await {
            Read::Nothing(next, _) => cursor = next,
            Read::Changed(rows, next) => {
                devices.extend(rows.peers.into_keys());
                cursor = next;
            }
            Read::Everything(why) => panic!("{why}"),
        }
        if last {
            break;
        }
    }
    writers.join_all().await;
    assert_eq!(devices.len(), 320);
}

/// A device is revoked in a transaction that cannot see its peer, which another has yet to commit.
#[tokio::test]
async fn a_revocation_beside_an_uncommitted_peer_is_not_lost() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world.run("delete from wireguard_peers").await;
    let mut cursor = world.cursor().await;
    let (adding, revoking) =
        (client("postgres", &world.database).await, client("postgres", &world.database).await);
    adding.batch_execute("begin").await.unwrap();
    crate::world::insert_peer(&adding, world.gateway, ann.device, "k").await;
    revoking.batch_execute("begin; update devices set status = 'revoked'").await.unwrap();
    let mut bars = Vec::new();
    for commits in [&adding, &revoking] {
        commits.batch_execute("commit").await.unwrap();
        let Read::Changed(rows, next) = world.read(&cursor).await else { panic!("lost a commit") };
        bars.push(rows.peers[&ann.device.into()][0].bars);
        cursor = next;
    }
    assert_eq!(
        bars,
        [gatepost::model::BarredBy::default(), gatepost::model::BarredBy::DEVICE_STATUS]
    );
}
