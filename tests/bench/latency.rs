//! From a commit to the WireGuard device: 100 devices added by SQL, then revoked one by one.
//!
//! The clock starts when the database has acknowledged the commit to its client, and stops when a
//! reader of its own (`wireguard-control`, not our code) finds the change in the gateway's device.
//!
//! Then a device is revoked again and again while it downloads from the LAN: until the last packet
//! that comes to it, until its address is free for another peer, and beside it what another device's
//! download notices. This is done with few peers, with 100,000, and with 500,000 tracked flows of
//! others besides.
//!
//! Called with `peers=N` or `flows=N`, it does so with as many.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../netns/lab/mod.rs"]
mod lab;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../support/tracked.rs"]
mod tracked;

use std::time::{Duration, Instant};

use lab::{
    Backend, Client, Download, LAN_SERVER, Lab, eventually, policy_rows, revoke_under_download,
    time_to_last_packet,
};
use wireguard_control::{Device, InterfaceName, Key};

const COMMITS: u32 = 100;
const CUTS: u32 = 25;
/// So often `conntrack -D -s` is run for comparison.
const COMPARED: u32 = 9;
const PEERS: u32 = 100_000;
const FLOWS: u32 = 500_000;
/// The most that a revocation may take to the last packet, half of the times.
const LAST_PACKET: Duration = Duration::from_millis(5);
/// The most that an address may take to be free, beside `conntrack -D -s`.
const FREE_RATIO: f64 = 1.25;

fn main() {
    let asked = |what: &str| std::env::args().find_map(|arg| arg.strip_prefix(what)?.parse().ok());
    few_peers();
    many_peers(asked("peers=").unwrap_or(PEERS), asked("flows=").unwrap_or(FLOWS));
}

fn few_peers() {
    let lab = Lab::open();
    let _agent = lab.start();
    add_user(&lab);
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
    println!("\ncommit to device, {COMMITS} commits each, WireGuard in {backend}");
    print("added", added);
    print("revoked", revoked);
    println!("\nrevoked during a download, {CUTS} times each, a packet each millisecond");
    cut_downloads(&lab, &clients(&lab));
}

/// A gateway with many peers, and after a while with many tracked flows.
fn many_peers(peers: u32, flows: u32) {
    let lab = Lab::open();
    let config = std::fs::read_to_string(lab.config()).unwrap();
    let wide = config.replace("site_prefixes", "addresses = [\"10.99.0.1/13\"]\nsite_prefixes");
    std::fs::write(lab.config(), wide).unwrap();
    add_user(&lab);
    lab.database.exec(&format!(
        "update gateways set vpn_cidr = '10.96.0.0/13';
         insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select users.id, 'd', 'linux', 'many-' || n, {key}
             from users, generate_series(1, {peers}) as n where username = 'fleet';
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select devices.id, gateways.id, devices.public_key,
                 '10.100.0.0'::inet + substr(device_fingerprint, 6)::int
             from devices, gateways where device_fingerprint like 'many-%';
         {policy}",
        key = sql_key("' || n || '"),
        policy = policy_rows("fleet", "fleet", "10.20.0.0/24")
    ));
    // A minute later autovacuum does it, which the tests' servers leave out.
    lab.database.exec("analyze");
    let _agent = lab.start();
    let clients = clients(&lab);
    cut_downloads(&lab, &clients);
    let _max = tracked::Max::at_least(flows + 10_000);
    lab.gateway.within(|| tracked::track(tracked::others(flows)));
    // The first cut tries what the kernel can list.
    revoke_under_download(&lab, &clients[0]);
    let free = cut_downloads(&lab, &clients);
    let delete = |host: u32| {
        let (address, started) = (format!("10.128.0.{host}"), Instant::now());
        lab.gateway.run("conntrack", &["-D", "-s", &address]);
        started.elapsed()
    };
    let beside = print("conntrack -D -s", (1..=COMPARED).map(delete).collect());
    let ratio = free.as_secs_f64() / beside.as_secs_f64();
    println!(
        "  address free / conntrack -D -s: {ratio:.2} x, bar {FREE_RATIO} x: {}",
        met(ratio <= FREE_RATIO)
    );
}

const fn met(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

fn clients(lab: &Lab) -> [Client; 2] {
    ["alice", "bob"].map(|name| {
        let client = lab.client(name);
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(name, name, "10.20.0.0/24"));
        client.connect();
        eventually("the policy is applied", || client.reaches(LAN_SERVER));
        client
    })
}

/// Returns the median time until the address was free.
fn cut_downloads(lab: &Lab, [alice, bob]: &[Client; 2]) -> Duration {
    let others = Download::start(bob, &lab.lan);
    let last = (0..CUTS).map(|_| time_to_last_packet(lab, alice)).collect();
    let free = (0..CUTS).map(|_| revoke_under_download(lab, alice).free).collect();
    others.await_more(1);
    let came = others.came();
    let peers = lab.status()["peers"]["in_kernel"].as_u64().unwrap();
    let flows = lab.gateway.within(tracked::tracked);
    println!("\n  {peers} peers, {flows} flows tracked");
    let last = print("last packet", last);
    let free = print("address free", free);
    println!(
        "  another device's download meanwhile: {} of {} datagrams lost, longest pause {:.2} ms",
        came.lost,
        came.datagrams + came.lost,
        came.longest_pause.as_secs_f64() * 1000.0
    );
    println!("  median to the last packet, bar 5 ms: {}", met(last < LAST_PACKET));
    free
}

fn add_user(lab: &Lab) {
    lab.database.exec(
        "insert into users (role_id, username, display_name, password_hash)
             select id, 'fleet', 'fleet', '!' from roles",
    );
}

/// The database makes it, so that there is one definition.
fn key_of(lab: &Lab, number: u32) -> Key {
    let key = lab.database.value(&format!("select {}", sql_key(number)));
    Key::from_base64(&key).unwrap()
}

fn sql_key(number: impl std::fmt::Display) -> String {
    format!("encode(sha256(('latency-{number}')::bytea), 'base64')")
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

/// Returns the median.
fn print(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let percentile = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    let ms = |percent| percentile(percent).as_secs_f64() * 1000.0;
    println!(
        "  {what:<15} p50 {:6.2} ms   p90 {:6.2} ms   p99 {:6.2} ms   max {:6.2} ms",
        ms(50),
        ms(90),
        ms(99),
        ms(100)
    );
    percentile(50)
}
