//! What the database's writers pay for our triggers, notifications and readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use gatepost::model::{DeviceId, GatewayId};
use gatepost::store::{ConnectOptions, Handshake, Hello, Read, Store};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::figures::{median, millis, timed};
use super::fleet::Fleet;
use super::postgres::bin;

const REPORTED: usize = 10_000;
/// How long each rate is measured.
const SECONDS: u32 = 5;
const POLLS_PER_CONNECTION: u32 = 10;

const SILENT: &str = "alter table devices disable trigger all";
const LOUD: &str = "alter table devices enable trigger all";

/// One statement that changes every device, with our triggers and without.
pub fn bulk_update(fleet: &Fleet<'_>) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..3 {
        for (times, triggers) in [(&mut without, SILENT), (&mut with, LOUD)] {
            fleet.sql(triggers);
            fleet.sql("vacuum full devices");
            fleet.sql("checkpoint");
            let status = format!("{round} {triggers}");
            times.push(timed(|| fleet.sql(&format!("update devices set status = '{status}'"))));
        }
    }
    fleet.sql("update devices set status = 'active'");
    fleet.sql("vacuum full analyze devices");
    let (with, without) = (median(&with), median(&without));
    println!("\nwriters, {} peers", fleet.peers);
    println!(
        "  update of all devices: {:.0} ms without triggers, {:.0} ms with: {:.2} x",
        millis(without),
        millis(with),
        with.as_secs_f64() / without.as_secs_f64()
    );
}

/// The handshakes of many devices in one report.
pub async fn report(fleet: &Fleet<'_>) {
    let ids = fleet.sql(&format!("select id from devices limit {REPORTED}"));
    let handshakes: Vec<Handshake> = ids
        .lines()
        .map(|id| {
            let device_id = DeviceId(Uuid::parse_str(id).unwrap());
            Handshake { device_id, seen_at: SystemTime::now(), connected_at: None }
        })
        .collect();
    let mut times = Vec::new();
    for later_secs in 0..3 {
        let later = Duration::from_secs(later_secs);
        let moved: Vec<Handshake> = handshakes
            .iter()
            .map(|one| Handshake { seen_at: one.seen_at + later, ..*one })
            .collect();
        let started = std::time::Instant::now();
        let reported = fleet.store.report(&moved).await.unwrap();
        times.push(started.elapsed());
        assert!(reported.skipped.is_empty());
    }
    println!("  report of {REPORTED} handshakes: {:.0} ms", millis(median(&times)));
}

/// Commits a second of eight writers, each changing one random device after another.
pub async fn commit_rates(fleet: &Fleet<'_>) {
    fleet.sql(
        "create table numbered as select device_id, row_number() over () as n from wireguard_peers;
         create unique index on numbered (n); analyze numbered",
    );
    println!("  commits a second of 8 writers (pgbench, one device each):");
    fleet.sql(SILENT);
    let bare = pgbench(fleet).await;
    fleet.sql(LOUD);
    println!("    {:<36} {bare:7.0}", "no triggers");
    for (listening, polls_per_sec) in
        [(0, 0), (1, 0), (10, 0), (50, 0), (200, 0), (0, 50), (0, 1_000)]
    {
        let attached = attach(fleet, listening, polls_per_sec).await;
        let rate = pgbench(fleet).await;
        let heard: usize = attached.iter().map(Attached::heard).sum();
        println!(
            "    {:<36} {rate:7.0}  {:.2} x  {heard} notifications or polls answered",
            format!("{listening} listening, {polls_per_sec} polls a second"),
            rate / bare
        );
        fleet.sql("truncate gatepost.change");
    }
}

/// An agent's connection, as far as the database feels it. Ends when dropped.
struct Attached {
    heard: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Attached {
    fn spawn<W: Future<Output = ()> + Send + 'static>(
        work: impl FnOnce(Arc<AtomicUsize>) -> W,
    ) -> Self {
        let heard = Arc::new(AtomicUsize::new(0));
        Self { task: tokio::spawn(work(heard.clone())), heard }
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::Relaxed)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listeners, one of them on our gateway's channel, and connections of another gateway that ask for
/// changes so often in all.
async fn attach(fleet: &Fleet<'_>, listening: usize, polls_per_sec: u32) -> Vec<Attached> {
    let mut attached = Vec::new();
    let hello = fleet.store.hello().await.unwrap();
    for number in 0..listening {
        let gateway_id =
            if number == 0 { hello.gateway_id } else { GatewayId(Uuid::from_u128(number as u128)) };
        let hello = Hello { gateway_id, ..hello.clone() };
        let mut listener = fleet.store.listen(&hello).await.unwrap();
        attached.push(Attached::spawn(|heard| async move {
            while listener.next().await.is_ok() {
                heard.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    // Each asks ten times a second: many gateways at 1 Hz, without a connection for each.
    for _ in 0..polls_per_sec / POLLS_PER_CONNECTION {
        let store = Store::connect(&ConnectOptions::new(fleet.other_url.clone())).unwrap();
        let (_, mut cursor) = store.snapshot().await.unwrap();
        attached.push(Attached::spawn(|heard| async move {
            let mut turn = tokio::time::interval(Duration::from_secs(1) / POLLS_PER_CONNECTION);
            loop {
                turn.tick().await;
                match store.changes(&cursor).await {
                    Ok(Read::Nothing(next, _) | Read::Changed(_, next)) => cursor = next,
                    _ => return,
                }
                heard.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    attached
}

/// The writers for some seconds; their rate.
async fn pgbench(fleet: &Fleet<'_>) -> f64 {
    let script = fleet.cluster.dir.join("writer.sql");
    let writer = format!(
        "\\set n random(1, {})\nupdate devices set os_version = random()::text, status = 's' || random()::text \
         where id = (select device_id from numbered where n = :n);\n",
        fleet.peers
    );
    std::fs::write(&script, writer).unwrap();
    let mut command = tokio::process::Command::new(bin("pgbench"));
    command
        .args(["-n", "-c", "8", "-j", "2", "-M", "prepared", "-U", "postgres"])
        .args(["-T", &SECONDS.to_string(), "-h", fleet.cluster.dir.to_str().unwrap()])
        .args(["-p", &fleet.cluster.port.to_string(), "-f", script.to_str().unwrap()])
        .arg(&fleet.database);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap();
    rate.split(' ').next().unwrap().parse().unwrap()
}
