//! No commit is missed, whatever the order of commits and the mode.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::bells::Bells;
use crate::lab::{Database, Lab, eventually};

const WRITERS: u32 = 8;
/// Limits of each writer's transactions. The upper one is the number of its addresses.
const ROUNDS: u32 = 20;
const MOST_ROUNDS: u32 = 2_000;
/// How many addresses share their third octet.
const IN_AN_OCTET: u32 = 250;

/// Every eligible peer as `wg show allowed-ips` prints it.
const WANTED: &str = "select w.public_key || E'\\t' || host(w.assigned_ip) || '/32'
    from wireguard_peers w join devices d on d.id = w.device_id join users u on u.id = d.user_id
    where w.deleted_at is null and d.deleted_at is null and d.status = 'active'
        and (d.revoked_at is null or d.revoked_at > now()) and u.is_active";

#[test]
fn eight_writers_long_transactions_and_cut_connections_miss_nothing() {
    miss_nothing(Lab::open(), &mode("auto"), "listen", |lab, work| {
        cut_connections(lab, work, false)
    });
}

#[test]
fn listening_misses_nothing() {
    miss_nothing(Lab::open(), &mode("listen"), "listen", |lab, work| {
        cut_connections(lab, work, false)
    });
}

#[test]
fn polling_misses_nothing() {
    miss_nothing(Lab::open(), &mode("poll"), "poll", |lab, work| cut_connections(lab, work, false));
}

#[test]
fn behind_a_pooler_nothing_is_missed() {
    let mut lab = Lab::open();
    let _pooler = lab.pool();
    miss_nothing(lab, &mode("auto"), "poll", |lab, work| cut_connections(lab, work, true));
}

/// The agent looks by itself every five minutes: what it follows in time, it follows by hints. Bells are
/// killed and the broker restarted while the writers go on.
#[test]
fn hints_miss_nothing() {
    hints_miss_nothing_of(Lab::open(), false, |_| ());
}

/// As many gateways do that share a role: with a token each, through PgBouncer. The bells have connections of their own.
#[test]
fn hints_by_token_through_a_pool_miss_nothing() {
    let mut lab = Lab::open();
    lab.take_token();
    let role = lab.database.role();
    lab.database.exec(&format!("delete from gatepost.gateway_role where role_name = '{role}'"));
    hints_miss_nothing_of(lab, true, |lab| lab.pool());
}

/// `pool` may put something between agent and database.
fn hints_miss_nothing_of<T>(mut lab: Lab, pooled: bool, pool: impl FnOnce(&mut Lab) -> T) {
    let mut bells = Bells::start(&lab);
    let _pool = pool(&mut lab);
    let config = format!(
        "[sync]\nmode = \"hints\"\npoll_interval = \"5m\"\n[hints]\nurl = \"{}\"\n",
        bells.url()
    );
    miss_nothing(lab, &config, "hints", |lab, work| {
        let commits = || work.commits.load(Ordering::SeqCst);
        for round in 0..4 {
            if round % 2 == 0 {
                bells.kill_the_one_that_rings(lab);
            } else {
                bells.restart_broker(lab);
            }
            let written = commits();
            bells.await_one_that_rings(lab);
            eventually("the writers go on", || commits() > written + WRITERS);
        }
        assert!(commits() < WRITERS * MOST_ROUNDS, "the writers had ended");
        cut_connections(lab, work, pooled);
        bells.await_one_that_rings(lab);
    });
}

fn mode(word: &str) -> String {
    format!("[sync]\nmode = \"{word}\"\n")
}

fn miss_nothing(lab: Lab, config: &str, chosen: &str, disturb: impl FnOnce(&Lab, &Work)) {
    lab.write_config(config);
    lab.database.exec(
        "insert into users (role_id, username, display_name, password_hash)
             select id, 'writer' || n, 'writer', '!' from roles, generate_series(0, 8) as n",
    );
    let _agent = lab.start();
    assert_mode(&lab, chosen);
    let long = lab.database.session();
    long.exec("begin");
    long.exec(&add_device(8, 0));

    let work = Work::default();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (database, work) = (&lab.database, &work);
            scope.spawn(move || write(database, writer, work));
        }
        disturb(&lab, &work);
        work.enough.store(true, Ordering::SeqCst);
    });
    long.exec("commit");

    let mut wanted = lab.database.column(WANTED);
    wanted.sort();
    assert!(
        wanted.len() > 50,
        "the writers left {} peers: too few to prove anything",
        wanted.len()
    );
    eventually("the device equals the database", || lab.wg_show("allowed-ips") == wanted);
    eventually("so says the agent", || lab.status()["peers"]["in_kernel"] == wanted.len());
    assert_mode(&lab, chosen);
    let (code, out, err) = lab.gatepost(&["plan"]);
    assert_eq!(code, 0, "{out}{err}");
}

fn assert_mode(lab: &Lab, chosen: &str) {
    // A bell is heard within a second.
    eventually("the mode is as it should be", || lab.status()["sync"]["mode"] == chosen);
    let status = lab.status();
    assert!(!status["sync"]["mode_why"].as_str().unwrap().is_empty(), "{status}");
}

/// The writers' progress, and whether they may end.
#[derive(Default)]
struct Work {
    commits: AtomicU32,
    enough: AtomicBool,
}

/// Adds, revokes, restores and removes devices. Transactions often commit in another order than they write.
fn write(database: &Database, writer: u32, work: &Work) {
    let session = database.session();
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && work.enough.load(Ordering::SeqCst) {
            break;
        }
        let earlier = format!("device_fingerprint = '{writer}-{}'", round / 2);
        let change = match (writer + round) % 5 {
            0 => {
                format!("update devices set status = 'revoked', revoked_at = now() where {earlier}")
            }
            1 => format!("update devices set status = 'active', revoked_at = null where {earlier}"),
            2 => format!(
                "update wireguard_peers set deleted_at = now() where device_id in (select id from devices where {earlier})"
            ),
            _ => "select 1".to_owned(),
        };
        session.exec(&format!(
            "begin; {}; {change}; select pg_sleep(random() * random() * 0.2); commit",
            add_device(writer, round)
        ));
        work.commits.fetch_add(1, Ordering::SeqCst);
    }
}

fn add_device(writer: u32, round: u32) -> String {
    format!(
        "insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select id, 'd', 'linux', '{writer}-{round}', encode(sha256('{writer}-{round}'::bytea), 'base64')
             from users where username = 'writer{writer}';
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select devices.id, gateways.id, devices.public_key, '10.99.{}.{}'
             from devices, gateways where device_fingerprint = '{writer}-{round}'",
        1 + writer * (MOST_ROUNDS / IN_AN_OCTET) + round / IN_AN_OCTET,
        1 + round % IN_AN_OCTET
    )
}

/// By the network twice, by the server twice: every connection of the agent, the listening one too,
/// while the writers go on. A pooler's own sessions outlive a cut of the network.
fn cut_connections(lab: &Lab, work: &Work, pooled: bool) {
    let backends = format!("from pg_stat_activity where usename = '{}'", lab.login);
    let pids = || lab.database.column(&format!("select pid {backends}"));
    let commits = || work.commits.load(Ordering::SeqCst);
    for round in 0..4 {
        let mut before = Vec::new();
        eventually("the agent is connected", || {
            before = pids();
            !before.is_empty()
        });
        let by_network = round % 2 == 0;
        if by_network {
            eventually("there is a connection to cut", || lab.relay.cut() > 0);
        } else {
            lab.database.exec(&format!("select pg_terminate_backend(pid) {backends}"));
        }
        let written = commits();
        if !(pooled && by_network) {
            eventually("those connections are gone", || {
                let now = pids();
                before.iter().all(|pid| !now.contains(pid))
            });
        }
        eventually("the writers go on", || commits() > written + WRITERS);
    }
    assert!(commits() < WRITERS * MOST_ROUNDS, "the writers had ended");
}
