//! What a thousand gateways cost one database where it is set up as docs/scale.md advises: PgBouncer with
//! eight server sessions for one role, nats-server, and a bell. Beside each figure stands that of the last
//! version, whose agents took turns with a role and two sessions each, on a machine of two processors.
//!
//! `GATEPOST_BENCH_GATEWAYS` says how many gateways (1000). Agents are whole, but their kernel is a model.
//! They share the processors with the database, the bell and the broker, which no real gateway does.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "scale/bouncer.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod bouncer;
#[path = "../support/broker.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod broker;
#[path = "scale/crowd.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod crowd;
#[path = "fleet/ear.rs"]
mod ear;
#[path = "figures.rs"]
mod figures;
#[path = "scale/fleet.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod fleet;
#[path = "scale/meter.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod meter;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/rows.rs"]
mod rows;
#[path = "fleet/services.rs"]
mod services;
#[path = "scale/writers.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod writers;

use std::time::{Duration, Instant, SystemTime};

use crowd::{Agent, Crowd, Member};
use figures::{Bar, Row, grouped, heading, median, quantile, words};
use fleet::Fleet;
use gatepost::reconcile::SyncMode;
use meter::Meter;
use postgres::{Cluster, Setup};
use services::{POOL, Services, token};
use writers::{Rhythm, Writers, choose_devices, paced, warm};

const PEERS_EACH: usize = 100;
/// More than any session here needs, and far fewer than one for each gateway.
const SETTINGS: &str = "max_connections = 100\njit = off\nfsync = on\nfull_page_writes = on\n\
    shared_buffers = 1GB\nmax_wal_size = 4GB\nautovacuum_naptime = 10s";
const HEARTBEAT: Duration = Duration::from_secs(10);
const LONG_HEARTBEAT: Duration = Duration::from_secs(60);
/// How long a rate of changes goes on.
const PACED_SECS: u64 = 20;
const MANY_COMMITS: u32 = 1_000;
/// Until reports are merged, and until the last agent has looked.
const SETTLES_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::main]
async fn main() {
    let gateways = std::env::var("GATEPOST_BENCH_GATEWAYS").unwrap_or("1000".into());
    let gateways: usize = gateways.parse().unwrap();
    let cluster = Cluster::start(&Setup { settings: SETTINGS, ..Setup::default() });
    let fleet = Fleet::without_logins(&cluster, gateways * PEERS_EACH, gateways).await;
    choose_devices(&fleet);
    println!("\n{}\n", cluster.psql("postgres", "select version()"));
    heading();
    fleet.forget_marks();
    let alone = commits(&fleet).await;
    fleet.forget_marks();
    let services = Services::start(&fleet).await;
    let bench = Bench { fleet: &fleet, services: &services, meter: Meter::of(&cluster) };

    let crowd = bench.attach(HEARTBEAT).await;
    bench.idle(HEARTBEAT, 0.18).await;
    crowd.detach().await;
    let mut crowd = bench.attach(LONG_HEARTBEAT).await;
    bench.sessions();
    let idle = bench.idle(LONG_HEARTBEAT, 0.06).await;
    bench.changes(&mut crowd, idle).await;
    bench.many_commits(alone).await;
    bench.restart(&mut crowd).await;
    crowd.detach().await;
}

struct Bench<'a> {
    fleet: &'a Fleet<'a>,
    services: &'a Services,
    meter: Meter,
}

impl Bench<'_> {
    async fn attach(&self, heartbeat: Duration) -> Crowd {
        let Self { fleet, services, .. } = self;
        let member = |number| {
            let url = services.bouncer.url_of(&services.role, &fleet.database);
            let mut member = Member::new(url, SyncMode::Hints);
            member.connect.token = Some(token(number));
            member.hints = Some(ear::listen(services.nats.port, number));
            member.heartbeat = heartbeat;
            member
        };
        let (before, started) = (self.meter.used(), Instant::now());
        let mut crowd = Crowd::attach((1..=fleet.gateways).map(member)).await;
        let took = started.elapsed();
        let spent = self.meter.since(&before) / u32::try_from(fleet.gateways).unwrap();
        self.row(
            "all attached and proven",
            format!("{}, {} of processor each", words(took), words(spent)),
            "23.3 s",
            Bar::None,
        );
        warm(fleet, &mut crowd, fleet.gateways).await;
        crowd
    }

    /// Processors that the database keeps busy while nothing changes.
    async fn idle(&self, heartbeat: Duration, most: f64) -> f64 {
        tokio::time::sleep(SETTLES_WITHIN).await;
        let (before, started) = (self.meter.used(), Instant::now());
        tokio::time::sleep(2 * heartbeat.max(HEARTBEAT * 2)).await;
        let busy = self.meter.since(&before).as_secs_f64() / started.elapsed().as_secs_f64();
        let beside = if heartbeat == HEARTBEAT { "0.26" } else { "" };
        self.row(
            &format!("idle, a heartbeat of {} s: processors", heartbeat.as_secs()),
            format!("{busy:.3}"),
            beside,
            Bar::Other(if most < 0.1 { "<= 0.06" } else { "<= 0.18" }, busy <= most),
        );
        busy
    }

    fn sessions(&self) {
        let sessions = self.meter.sessions(&self.fleet.database);
        let text = format!("{sessions}, {POOL} of them of the pool");
        self.row("sessions", text, "2,000", Bar::Other("<= 20", sessions <= 20));
        let each = self.meter.private_kib().0 / self.fleet.gateways as u64;
        self.row(
            "private memory of the server, a gateway",
            format!("{each} KiB"),
            "7,270 KiB",
            Bar::Other("<= 256 KiB", each <= 256),
        );
    }

    /// At 40 commits a second: how soon they arrive, and what each costs beyond an idle fleet.
    async fn changes(&self, crowd: &mut Crowd, idle: f64) {
        let (before, started) = (self.meter.used(), Instant::now());
        let times = paced(self.fleet, crowd, self.fleet.gateways, PACED_SECS).await;
        tokio::time::sleep(SETTLES_WITHIN).await;
        let busy = self.meter.since(&before).as_secs_f64();
        let each = (busy - idle * started.elapsed().as_secs_f64()) / times.len() as f64;
        let each = Duration::from_secs_f64(each.max(0.0));
        let most = Duration::from_micros(3_500);
        self.row(
            "one change of one gateway: processor time",
            words(each),
            "8-10 ms",
            Bar::Other("<= 3.5 ms", each <= most),
        );
        let (middle, late) = (median(&times), quantile(&times, 99));
        let met = middle <= Duration::from_millis(50) && late <= Duration::from_millis(150);
        self.row(
            "commit to kernel, 40 commits a second",
            format!("median {}, p99 {}", words(middle), words(late)),
            "median 165 ms, p99 314 ms",
            Bar::Other("median <= 50 ms, p99 <= 150 ms", met),
        );
    }

    async fn many_commits(&self, alone: Commits) {
        let with = commits(self.fleet).await;
        let (rate, bar) = (with.per_sec.round() as usize, f64::from(MANY_COMMITS) * 0.98);
        self.row(
            "1,000 commits a second asked for: made",
            format!("{}, {} without agents", grouped(rate), alone.per_sec.round()),
            "642-820",
            Bar::Other("1,000", with.per_sec >= bar),
        );
        self.row(
            "server processor time a commit, at that rate",
            format!("{}, {} without agents", words(with.each), words(alone.each)),
            "",
            Bar::None,
        );
        tokio::time::sleep(SETTLES_WITHIN).await;
    }

    /// The server restarts under all agents.
    async fn restart(&self, crowd: &mut Crowd) {
        let (cluster, database) = (self.fleet.cluster, &self.fleet.database);
        cluster.pg_ctl(&["-m", "fast", "restart"]);
        let (up, started) = (SystemTime::now(), Instant::now());
        let meter = Meter::of(cluster);
        let mut most = 0;
        let each = crowd.agents.iter_mut().map(|agent| proven_since(agent, up));
        let all = futures_util::future::join_all(each);
        let mut all = std::pin::pin!(tokio::time::timeout(PATIENCE, all));
        let all_proven = loop {
            tokio::select! {
                proven = &mut all => break proven,
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    most = most.max(meter.sessions(database));
                }
            }
        };
        all_proven.expect("every agent is proven again");
        let took = started.elapsed();
        let each = meter.since_start() / u32::try_from(self.fleet.gateways).unwrap();
        let met = took <= Duration::from_secs(30)
            && each <= Duration::from_millis(18)
            && most <= POOL + BELLS;
        self.row(
            "the server restarts: all proven again",
            format!("{}, {} of processor each, at most {most} sessions", words(took), words(each)),
            "29.7 s, 36 ms each",
            Bar::Other("30 s, 18 ms each, the pool's sessions", met),
        );
    }

    fn row(&self, what: &str, ours: String, beside: &str, bar: Bar) {
        let size = format!("{} gateways, hints", grouped(self.fleet.gateways));
        let beside = if beside.is_empty() { String::new() } else { format!("{beside} in turns") };
        Row { what, size, ours, beside, ratio: None, bar }.print();
    }
}

/// Waits until this agent's kernel is proven equal as of this time or later.
async fn proven_since(agent: &mut Agent, time: SystemTime) {
    let proven = agent.status.wait_for(|status| {
        status.state.is_ready() && status.sync.last_sync_at.is_some_and(|at| at.0 >= time)
    });
    // An agent cannot go on while a reader keeps its status.
    drop(proven.await.unwrap());
}

/// Sessions of a bell: for its looks and for merging.
const BELLS: usize = 4;

#[derive(Clone, Copy)]
struct Commits {
    per_sec: f64,
    each: Duration,
}

/// Of eight writers who commit a thousand times a second.
async fn commits(fleet: &Fleet<'_>) -> Commits {
    let meter = Meter::of(fleet.cluster);
    let before = meter.used();
    let mut writers =
        Box::pin(Writers::start(fleet, Rhythm::paced(MANY_COMMITS, PACED_SECS)).rate());
    // The writers' sessions end with them: read just before, as long as all are there.
    let nearly = Duration::from_secs(PACED_SECS) - Duration::from_millis(500);
    let started = Instant::now();
    let spent = tokio::select! {
        () = tokio::time::sleep(nearly) => meter.since(&before),
        _ = &mut writers => panic!("the writers ended early"),
    };
    let secs = started.elapsed().as_secs_f64();
    let per_sec = writers.await;
    Commits { per_sec, each: spent.div_f64(secs * per_sec) }
}
