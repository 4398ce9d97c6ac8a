//! A cold start of many peers, from the database to the proven kernel, beside the raw tools in the
//! same run: `wg setconf` of the same peers, and the bare query for their rows.
//!
//! `GATEPOST_BENCH_PEERS` says how many (10,000).
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../netns/lab/mod.rs"]
mod lab;

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use lab::{Lab, eventually, run};

fn main() {
    let peers: usize =
        std::env::var("GATEPOST_BENCH_PEERS").map_or(10_000, |count| count.parse().unwrap());
    let lab = Lab::open();
    fill(&lab, peers);

    let raw = setconf(&lab, peers);
    let query = timed(|| {
        lab.database.column("select count(*) from (select w.*, d.*, u.username from wireguard_peers w
        join devices d on d.id = w.device_id join users u on u.id = d.user_id where w.deleted_at is null) as peer")
    });
    let cold = timed(|| once(&lab));
    assert_eq!(lab.kernel_peers().len(), peers);
    let again = timed(|| once(&lab));
    let dump = timed(|| lab.wg_show("dump"));

    let agent = lab.start();
    eventually("all are in the kernel", || lab.status()["peers"]["in_kernel"] == peers);
    let memory_kib = agent.memory_kib();
    println!("\n{peers} peers, WireGuard in {}", lab.backend.word());
    println!("  wg setconf                              {:8.2} s", raw.as_secs_f64());
    println!("  the bare query                          {:8.2} s", query.as_secs_f64());
    println!(
        "  gatepost run --once, empty kernel       {:8.2} s   {:.2} x both",
        cold.as_secs_f64(),
        cold.as_secs_f64() / (raw + query).as_secs_f64()
    );
    println!("  wg show dump                            {:8.2} s", dump.as_secs_f64());
    println!("  gatepost run --once, kernel that matches{:8.2} s", again.as_secs_f64());
    println!(
        "  resident memory of the agent            {:8.1} MiB",
        f64::from(memory_kib) / 1024.0
    );
}

fn fill(lab: &Lab, peers: usize) {
    lab.database.exec(&format!(
        "insert into users (role_id, username, display_name, password_hash)
             select id, 'user' || n, 'user', '!' from roles, generate_series(1, {users}) as n;
         insert into devices (user_id, name, platform, device_fingerprint, public_key)
             select users.id, 'd' || n, 'linux', n, encode(sha256(n::text::bytea), 'base64')
             from generate_series(1, {peers}) as n join users on username = 'user' || (1 + n % {users});
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select devices.id, gateways.id, devices.public_key, '10.96.0.1'::inet + device_fingerprint::int
             from devices, gateways;
         insert into ip_allocations (gateway_id, device_id, address)
             select gateway_id, device_id, assigned_ip from wireguard_peers;
         update gateways set vpn_cidr = '10.96.0.0/13';
         analyze",
        users = peers.div_ceil(5)
    ));
}

/// `wg setconf` of the same peers on a device beside ours.
fn setconf(lab: &Lab, peers: usize) -> Duration {
    let rows = lab.database.column(
        "select public_key || ' ' || host(assigned_ip) from wireguard_peers order by assigned_ip",
    );
    assert_eq!(rows.len(), peers);
    let mut config = format!("[Interface]\nPrivateKey = {}\n", run("wg", &["genkey"]));
    for row in rows {
        let (key, address) = row.split_once(' ').unwrap();
        write!(config, "[Peer]\nPublicKey = {key}\nAllowedIPs = {address}/32\n").unwrap();
    }
    let file = lab.folder.path().join("raw.conf");
    fs::write(&file, config).unwrap();
    lab.gateway.run("ip", &["link", "add", "raw", "type", "wireguard"]);
    let took = timed(|| lab.gateway.run("wg", &["setconf", "raw", file.to_str().unwrap()]));
    // Emptied first: deleting a full device takes the kernel 20 ms for each peer.
    fs::write(&file, "[Interface]\n").unwrap();
    lab.gateway.run("wg", &["setconf", "raw", file.to_str().unwrap()]);
    lab.gateway.run("ip", &["link", "delete", "raw"]);
    took
}

fn once(lab: &Lab) {
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 0, "{out}{err}");
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}
