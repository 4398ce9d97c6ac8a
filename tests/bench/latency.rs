//! From a commit to the WireGuard device: 100 devices added by SQL, then revoked one by one.
//!
//! The clock starts when the database has acknowledged the commit to its client, and stops when a
//! reader of its own (`wireguard-control`, not our code) finds the change in the gateway's device.
//!
//! Called with `flows=500000`, it does all of this while the gateway tracks so many flows of others.
//!
//! Then a device is revoked again and again while it downloads from the LAN: until the last packet
//! that comes to it, and beside it what another device's download notices.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../netns/lab/mod.rs"]
mod lab;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../support/tracked.rs"]
mod tracked;

use std::time::{Duration, Instant};

use lab::{Backend, Download, LAN_SERVER, Lab, eventually, policy_rows, revoke_to_last_packet};
use wireguard_control::{Device, InterfaceName, Key};

const COMMITS: u32 = 100;
const CUTS: u32 = 25;

fn main() {
    let lab = Lab::open();
    let flows = std::env::args().find_map(|arg| arg.strip_prefix("flows=")?.parse::<u32>().ok());
    let _max = flows.map(|flows| tracked::RaisedMax::to(flows + 10_000));
    let tracked = lab.gateway.within(|| {
        tracked::track(tracked::others(flows.unwrap_or_default()));
        tracked::tracked()
    });
    let _agent = lab.start();
    lab.database.exec(
        "insert into users (role_id, username, display_name, password_hash)
             select id, 'fleet', 'fleet', '!' from roles",
    );
    let keys: Vec<_> = (0..COMMITS).map(|number| key_of(&lab, number)).collect();
    let mut added = Vec::new();
    let mut revoked = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        lab.database.exec(&addition(number));
        added.push(until(&lab, key, true));
    }
    for (number, key) in keys.iter().enumerate() {
        lab.database.exec(&format!(
            "update devices set status = 'revoked', revoked_at = now() where device_fingerprint = '{number}'"
        ));
        revoked.push(until(&lab, key, false));
    }
    let backend = lab.backend.word();
    println!(
        "\ncommit to device, {COMMITS} commits each, WireGuard in {backend}, {tracked} flows tracked"
    );
    print("added", added);
    print("revoked", revoked);
    cut_downloads(&lab);
    if flows.is_some() {
        let delete = |host: u8| {
            let (address, started) = (format!("10.128.0.{host}"), Instant::now());
            lab.gateway.run("conntrack", &["-D", "-s", &address]);
            started.elapsed()
        };
        println!("\nfor comparison");
        print("conntrack -D -s", (1..=9).map(delete).collect());
    }
}

fn cut_downloads(lab: &Lab) {
    let clients = ["alice", "bob"].map(|name| {
        let client = lab.client(name);
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(name, name, "10.20.0.0/24"));
        client.connect();
        eventually("the policy is applied", || client.reaches(LAN_SERVER));
        client
    });
    let [alice, bob] = &clients;
    let others = Download::start(bob, &lab.lan);
    let cuts = (0..CUTS).map(|_| revoke_to_last_packet(lab, alice)).collect();
    others.await_more(1);
    let came = others.came();
    println!("\nrevoked to the last packet of a download, {CUTS} times, a packet each millisecond");
    print("cut", cuts);
    println!(
        "  another device's download meanwhile: {} of {} datagrams lost, longest pause {:.2} ms",
        came.lost,
        came.datagrams + came.lost,
        came.longest_pause.as_secs_f64() * 1000.0
    );
}

/// The database makes it, so that there is one definition.
fn key_of(lab: &Lab, number: u32) -> Key {
    let key = lab.database.value(&format!("select {}", sql_key(number)));
    Key::from_base64(&key).unwrap()
}

fn sql_key(number: impl std::fmt::Display) -> String {
    format!("encode(sha256('latency-{number}'::bytea), 'base64')")
}

fn addition(number: usize) -> String {
    let key = sql_key(number);
    format!(
        "insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select id, 'd', 'linux', '{number}', {key} from users where username = 'fleet';
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select devices.id, gateways.id, {key}, '10.99.1.0'::inet + {number}
             from devices, gateways where device_fingerprint = '{number}'"
    )
}

/// How long until the device holds the key, or holds it no more.
fn until(lab: &Lab, key: &Key, present: bool) -> Duration {
    let started = Instant::now();
    let link: InterfaceName = lab.link().parse().unwrap();
    let backend = match lab.backend {
        Backend::Kernel => wireguard_control::Backend::Kernel,
        Backend::Userspace => wireguard_control::Backend::Userspace,
    };
    lab.gateway.within(|| {
        loop {
            let device = Device::get(&link, backend).unwrap();
            if device.peers.iter().any(|peer| peer.config.public_key == *key) == present {
                return started.elapsed();
            }
            assert!(started.elapsed() < Duration::from_secs(30), "not within 30 s");
        }
    })
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let percentile = |percent: usize| {
        let index = (times.len() * percent).div_ceil(100).max(1) - 1;
        times[index].as_secs_f64() * 1000.0
    };
    println!(
        "  {what:<15} p50 {:6.2} ms   p90 {:6.2} ms   p99 {:6.2} ms   max {:6.2} ms",
        percentile(50),
        percentile(90),
        percentile(99),
        percentile(100)
    );
}
