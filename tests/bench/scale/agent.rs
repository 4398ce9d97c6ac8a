//! The agent's part: read, build, plan; then one changed device after another.

use std::time::Duration;

use gatepost::model::{DesiredState, ObservedState};
use gatepost::plan::{ModelKernel, Scope, plan};
use gatepost::store::{ConnectOptions, Read, Store};
use tokio::time::Instant;

use super::MEMORY_OF;
use super::figures::{median, millis, quantile, timed};
use super::fleet::{Fleet, local};

const ROUNDS: usize = 3;
const CHANGES: usize = 100;

/// The rows of the peers as a program would read them that knows nothing of us.
const BARE_QUERY: &str = "copy (select w.id, d.id, u.id, d.name, u.username, w.public_key, w.assigned_ip,
         w.preshared_key_ciphertext, w.allowed_ips, w.dns_servers, d.status, d.revoked_at, d.approved_at, i.status
     from wireguard_peers w join devices d on d.id = w.device_id join users u on u.id = d.user_id
     left join ip_allocations i on i.gateway_id = w.gateway_id and i.address = w.assigned_ip
     where w.deleted_at is null) to stdout";

pub async fn measure(fleet: &Fleet<'_>) {
    println!("\n{} peers", fleet.peers);
    let bare = fleet.sql_time(BARE_QUERY);
    line("bare query, psql COPY", bare);
    let (mut reads, mut builds) = (Vec::new(), Vec::new());
    let mut built = None;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let (rows, cursor) = fleet.store.snapshot().await.unwrap();
        reads.push(started.elapsed());
        let mut desired = None;
        builds.push(timed(|| desired = Some(DesiredState::build(local(), rows).unwrap())));
        built = desired.zip(Some(cursor));
    }
    let (mut desired, mut cursor) = built.unwrap();
    assert_eq!(desired.peers().len(), fleet.peers as usize);
    line("snapshot, read and decoded", median(&reads));
    line("desired state, built", median(&builds));

    let mut kernel = ModelKernel::default();
    let fill = plan(&desired, &kernel.state, &Scope::Everything).unwrap();
    kernel.obey_prefix(&fill, usize::MAX).unwrap();
    let equal = |_| {
        timed(|| assert!(plan(&desired, &kernel.state, &Scope::Everything).unwrap().is_empty()))
    };
    let planned: Vec<Duration> = (0..ROUNDS).map(equal).collect();
    line("plan, everything equal", median(&planned));
    let copied: Vec<Duration> =
        (0..ROUNDS).map(|_| timed(|| kernel.state.firewall.clone())).collect();
    line("copy of the observed firewall", median(&copied));

    let (mut reading, mut deciding) = (Vec::new(), Vec::new());
    let devices = fleet.sql(&format!("select id from devices order by id limit {}", CHANGES / 2));
    for status in ["revoked", "active"] {
        for device in devices.lines() {
            fleet.sql(&format!("update devices set status = '{status}' where id = '{device}'"));
            let started = Instant::now();
            let read = fleet.store.changes(&cursor).await.unwrap();
            reading.push(started.elapsed());
            let Read::Changed(rows, next) = read else { panic!("{read:?}") };
            cursor = next;
            deciding.push(timed(|| decide(&mut desired, &mut kernel, rows)));
        }
    }
    assert!(plan(&desired, &kernel.state, &Scope::Everything).unwrap().is_empty());
    println!(
        "  one changed device: changes {:.2} ms (p99 {:.2}), apply + plan + prove {:.3} ms (p99 {:.3})",
        millis(median(&reading)),
        millis(quantile(&reading, 99)),
        millis(median(&deciding)),
        millis(quantile(&deciding, 99)),
    );
    memory(fleet);
}

/// What the agent does between the rows and the report; the model kernel's part is a few writes.
fn decide(
    desired: &mut DesiredState,
    kernel: &mut ModelKernel,
    rows: gatepost::model::ChangedRows,
) {
    let touched = desired.apply(rows);
    let scope = Scope::Changed { peers: touched.peers, prefixes: touched.prefixes };
    let planned = plan(desired, &kernel.state, &scope).unwrap();
    assert!(!planned.is_empty(), "a change changes something");
    kernel.obey_prefix(&planned, usize::MAX).unwrap();
    assert!(plan(desired, &kernel.state, &scope).unwrap().is_empty());
}

fn line(what: &str, took: Duration) {
    println!("  {what:<40} {:9.1} ms", millis(took));
}

/// Asks a process that does nothing else.
fn memory(fleet: &Fleet<'_>) {
    let this = std::env::current_exe().unwrap();
    let output = std::process::Command::new(this).env(MEMORY_OF, &fleet.url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

/// Builds both states, and prints what they hold of this process's memory.
pub async fn print_memory(url: &str) {
    let store = Store::connect(&ConnectOptions::new(url.to_owned())).unwrap();
    store.hello().await.unwrap();
    let base = resident_kib();
    let (rows, _) = store.snapshot().await.unwrap();
    let read = resident_kib();
    let desired = DesiredState::build(local(), rows).unwrap();
    let built = resident_kib();
    let mut observed = ObservedState::default();
    for step in plan(&desired, &observed, &Scope::Everything).unwrap().steps() {
        observed.obey(step);
    }
    let both = resident_kib();
    let peers = desired.peers().len() as u64;
    println!(
        "  memory: base {base} KiB; after the snapshot {read}, desired state {built}, observed state {both}: {} bytes a peer",
        (both - base) * 1024 / peers
    );
    drop(observed);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
