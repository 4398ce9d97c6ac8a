//! What the database's writers pay for our triggers and for the agents that are attached, and how
//! long a commit takes to reach an agent's kernel meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gatepost::model::PublicKey;
use gatepost::reconcile::SyncMode;
use gatepost::reconcile::status::Mode;
use tokio::process::{Child, Command};

use super::bouncer::Bouncer;
use super::crowd::{Crowd, Member, Write};
use super::figures::{Bar, Row, grouped, median, quantile, words};
use super::fleet::{Fleet, silence, unsilence};
use super::meter::Meter;
use super::postgres::bin;

/// How long each rate is measured.
const SECONDS: u64 = 6;
const WRITERS: usize = 8;
/// Devices that the probes change at most; the writers change others.
const PROBES: usize = 400;
const PROBE_EVERY: Duration = Duration::from_millis(25);
/// How long a probe may take before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// Agents that are attached while the writers write.
#[derive(Clone, Copy)]
pub struct Case {
    pub agents: usize,
    pub mode: SyncMode,
    pub bouncer: bool,
    /// At least this share of the commits without triggers.
    pub least_rate: Option<(f64, &'static str)>,
    pub most_median: Option<(Duration, &'static str)>,
}

/// What one case measured, for the simulation to be checked by.
pub struct Measured {
    pub agents: usize,
    pub mode: Mode,
    pub changes_per_sec: f64,
    pub median: Duration,
    /// Processors that the database's processes kept busy.
    pub busy: f64,
    pub sessions: usize,
    pub private_kib_per_session: u64,
}

/// Prints the rows of all cases. Returns what each measured while only the probes wrote.
pub async fn rates(fleet: &Fleet<'_>, cases: &[Case]) -> Vec<Measured> {
    choose_devices(fleet);
    fleet.sql(&silence("devices"));
    let bare = Writers::start(fleet, WITHOUT_PAUSE).rate().await;
    fleet.sql(&unsilence("devices"));
    row("8 writers' commits a second", "no agent".into(), bare, bare, None);
    let with_triggers = Writers::start(fleet, WITHOUT_PAUSE).rate().await;
    row("8 writers' commits a second", "our triggers, no agent".into(), with_triggers, bare, None);
    fleet.forget_marks();
    let mut measured = Vec::new();
    for case in cases {
        measured.push(attached(fleet, case, bare).await);
        fleet.forget_marks();
    }
    measured
}

/// Devices for the probes, and others for the writers.
pub fn choose_devices(fleet: &Fleet<'_>) {
    fleet.sql(&format!(
        "create table probed as
             select id, public_key, gateway, rank
             from (
                 select d.id, p.public_key, g.gateway,
                     row_number() over (partition by g.gateway order by d.id) as rank
                 from devices d
                 join wireguard_peers p on p.device_id = d.id
                 join (select id, substr(name, 2)::integer as gateway from gateways) g
                     on g.id = p.gateway_id
             ) ranked
             where rank <= greatest(1, {PROBES} / gateway);
         create table numbered as select d.id, row_number() over () as n
             from devices d where id not in (select id from probed);
         create unique index on numbered (n); analyze numbered"
    ));
}

async fn attached(fleet: &Fleet<'_>, case: &Case, bare: f64) -> Measured {
    let bouncer = case.bouncer.then(|| Bouncer::start(fleet, case.agents));
    let url = |number| match &bouncer {
        Some(bouncer) => bouncer.url(fleet, number),
        None => fleet.url(number),
    };
    // As if the whole fleet had been there before, and these were restarted.
    fleet.sql(&format!(
        "insert into gatepost.attached (gateway_id, listens, at)
         select id, false, now() from gateways where substr(name, 2)::integer <= {}",
        case.agents
    ));
    let member = |number| Member::new(url(number), case.mode);
    let mut crowd = Crowd::attach((1..=case.agents).map(member)).await;
    warm(fleet, &mut crowd, case.agents).await;
    let meter = Meter::of(fleet.cluster);
    let sessions: usize = fleet
        .sql("select count(*) from pg_stat_activity where usename like '%\\_g%'")
        .parse()
        .unwrap();
    let via = if case.bouncer { ", through PgBouncer" } else { "" };
    let size = format!(
        "{} agents, {}{via} ({} sessions)",
        grouped(case.agents),
        crowd.mode(),
        grouped(sessions)
    );

    let (before, started) = (meter.used(), Instant::now());
    let quiet = probe(fleet, &mut crowd, case.agents).await;
    let busy = meter.since(&before).as_secs_f64() / started.elapsed().as_secs_f64();
    latency("commit to kernel, 40 commits a second", &size, &quiet, case.most_median);
    let (private_kib, processes) = meter.private_kib();

    let writers = Writers::start(fleet, WITHOUT_PAUSE);
    let under_load = probe(fleet, &mut crowd, case.agents).await;
    let rate = writers.rate().await;
    latency("commit to kernel, 8 writers", &size, &under_load, case.most_median);
    row("8 writers' commits a second", size, rate, bare, case.least_rate);
    let mode = crowd.mode();
    crowd.detach().await;
    Measured {
        agents: case.agents,
        mode,
        changes_per_sec: 1.0 / PROBE_EVERY.as_secs_f64(),
        median: median(&quiet),
        busy,
        sessions,
        private_kib_per_session: private_kib / processes as u64,
    }
}

/// Lets every agent follow a change: what its sessions have not done yet, the database plans first,
/// for each session anew.
pub async fn warm(fleet: &Fleet<'_>, crowd: &mut Crowd, agents: usize) {
    const AT_ONCE: usize = 100;
    let admin = fleet.admin().await;
    let mut waiting = BTreeMap::new();
    for status in ["revoked", "active"] {
        for first in (1..=agents).step_by(AT_ONCE) {
            let last = first + AT_ONCE - 1;
            let update = format!(
                "update devices d set status = '{status}' from probed p
                 where d.id = p.id and rank = 1 and gateway between {first} and {last}
                     and gateway <= {agents} returning p.public_key"
            );
            for row in admin.query(&update, &[]).await.unwrap() {
                waiting.insert(row.get::<_, &str>(0).parse().unwrap(), Instant::now());
            }
        }
        all_arrived(crowd, &mut waiting, &mut Vec::new()).await;
    }
}

fn row(what: &str, size: String, rate: f64, bare: f64, least: Option<(f64, &'static str)>) {
    let ratio = rate / bare;
    let bar = least.map_or(Bar::None, |(least, words)| Bar::Other(words, ratio >= least));
    let number = |rate: f64| grouped(rate.round() as usize);
    let beside = format!("{} without triggers", number(bare));
    Row { what, size, ours: number(rate), beside, ratio: Some(ratio), bar }.print();
}

fn latency(what: &str, size: &str, times: &[Duration], most: Option<(Duration, &'static str)>) {
    let bar = most.map_or(Bar::None, |(most, words)| Bar::Other(words, median(times) < most));
    let ours = format!("median {}, p99 {}", words(median(times)), words(quantile(times, 99)));
    Row { what, size: size.to_owned(), ours, beside: String::new(), ratio: None, bar }.print();
}

/// As [`paced`], then lets all devices in again.
async fn probe(fleet: &Fleet<'_>, crowd: &mut Crowd, agents: usize) -> Vec<Duration> {
    let times = paced(fleet, crowd, agents, SECONDS).await;
    let active = "update devices d set status = 'active' from probed p
        where d.id = p.id and d.status <> 'active' returning p.public_key";
    let mut waiting = BTreeMap::new();
    for row in fleet.admin().await.query(active, &[]).await.unwrap() {
        waiting.insert(row.get::<_, &str>(0).parse().unwrap(), Instant::now());
    }
    all_arrived(crowd, &mut waiting, &mut Vec::new()).await;
    times
}

/// Revokes one device after another, or lets it in again, at a steady pace; the times from each commit's
/// acknowledgement until the agent's kernel has obeyed.
pub async fn paced(
    fleet: &Fleet<'_>,
    crowd: &mut Crowd,
    agents: usize,
    secs: u64,
) -> Vec<Duration> {
    let devices = probed(fleet, agents);
    let admin = fleet.admin().await;
    let update = admin
        .prepare("update devices set status = $2 where id = $1::text::uuid and status <> $2")
        .await;
    let update = update.unwrap();
    let mut waiting: BTreeMap<PublicKey, Instant> = BTreeMap::new();
    let mut times = Vec::new();
    let started = Instant::now();
    let mut pace = tokio::time::interval(PROBE_EVERY);
    for turn in 0.. {
        pace.tick().await;
        if started.elapsed() > Duration::from_secs(secs) {
            break;
        }
        let (id, key) = &devices[turn % devices.len()];
        let status = if (turn / devices.len()).is_multiple_of(2) { "revoked" } else { "active" };
        // Else it would take back what is under way, and nothing might be left to do.
        if !waiting.contains_key(key) && admin.execute(&update, &[id, &status]).await.unwrap() == 1
        {
            waiting.insert(*key, Instant::now());
        }
        while let Ok(write) = crowd.writes.try_recv() {
            arrived(&write, &mut waiting, &mut times);
        }
    }
    all_arrived(crowd, &mut waiting, &mut times).await;
    times
}

async fn all_arrived(
    crowd: &mut Crowd,
    waiting: &mut BTreeMap<PublicKey, Instant>,
    times: &mut Vec<Duration>,
) {
    while !waiting.is_empty() {
        let write = tokio::time::timeout(LOST_AFTER, crowd.writes.recv()).await;
        let write = write.unwrap_or_else(|_| panic!("{} commits were lost", waiting.len()));
        arrived(&write.unwrap(), waiting, times);
    }
}

fn arrived(write: &Write, waiting: &mut BTreeMap<PublicKey, Instant>, times: &mut Vec<Duration>) {
    for key in &write.peers {
        // A write may be seen before the commit's acknowledgement was.
        if let Some(committed) = waiting.remove(key) {
            times.push(write.at.saturating_duration_since(committed));
        }
    }
}

/// Devices of the gateways whose agents are attached, with their keys.
fn probed(fleet: &Fleet<'_>, agents: usize) -> Vec<(String, PublicKey)> {
    let lines = fleet.sql(&format!(
        "select id, public_key from probed where gateway <= {agents}
         order by rank, gateway limit {PROBES}"
    ));
    let device = |line: &str| {
        let (id, key) = line.split_once('|').unwrap();
        (id.to_owned(), key.parse().unwrap())
    };
    lines.lines().map(device).collect()
}

/// Eight clients, each revoking or admitting one random device after another.
pub struct Writers(Child);

/// How the writers write.
#[derive(Clone, Copy)]
pub struct Rhythm {
    secs: u64,
    /// All of them together; `None`: as many as the machine makes.
    commits_per_sec: Option<u32>,
}

const WITHOUT_PAUSE: Rhythm = Rhythm { secs: SECONDS, commits_per_sec: None };

impl Rhythm {
    pub const fn paced(commits_per_sec: u32, secs: u64) -> Self {
        Self { secs, commits_per_sec: Some(commits_per_sec) }
    }
}

impl Writers {
    pub fn start(fleet: &Fleet<'_>, rhythm: Rhythm) -> Self {
        let script = fleet.cluster.dir.join("writer.sql");
        let writer = format!(
            "\\set n random(1, {})\nupdate devices set status = case status when 'active' then 'revoked' else 'active' end \
             where id = (select id from numbered where n = :n);\n",
            fleet.sql("select max(n) from numbered")
        );
        std::fs::write(&script, writer).unwrap();
        let mut command = Command::new(bin("pgbench"));
        command
            .args(["-n", "-c", &WRITERS.to_string(), "-j", "2", "-M", "prepared"])
            .args(["-U", "postgres", "-T", &rhythm.secs.to_string()])
            .args(["-h", fleet.cluster.dir.to_str().unwrap()])
            .args(["-p", &fleet.cluster.port.to_string(), "-f", script.to_str().unwrap()])
            .args(rhythm.commits_per_sec.map(|rate| format!("--rate={rate}")))
            .arg(&fleet.database)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true);
        Self(command.spawn().unwrap())
    }

    /// Commits a second, when they have ended.
    pub async fn rate(self) -> f64 {
        let output = self.0.wait_with_output().await.unwrap();
        assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")).unwrap();
        rate.split(' ').next().unwrap().parse().unwrap()
    }
}
