//! What gateways cost their database, and how soon a commit reaches them: from one gateway of
//! 100,000 peers to 1,000 gateways, beside the bare query or the untriggered statement of the same
//! run; and simulated from there on. Prints the tables of docs/scale.md.
//!
//! A private PostgreSQL that writes its log to disk as a real one does. Agents are whole, but their
//! kernel is a model: nothing here measures WireGuard or nftables. They share the processors with
//! the database and its writers, which no real gateway does.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "scale/agent.rs"]
mod agent;
#[path = "scale/bouncer.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod bouncer;
#[path = "scale/costs.rs"]
mod costs;
#[path = "scale/crowd.rs"]
mod crowd;
#[path = "scale/feed.rs"]
mod feed;
#[path = "figures.rs"]
mod figures;
#[path = "scale/fleet.rs"]
mod fleet;
#[path = "scale/limits.rs"]
mod limits;
#[path = "scale/meter.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod meter;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/rows.rs"]
mod rows;
#[path = "scale/simulation.rs"]
mod simulation;
#[path = "scale/storm.rs"]
mod storm;
#[path = "scale/writers.rs"]
#[allow(dead_code, reason = "another benchmark uses the rest")]
mod writers;

use std::time::Duration;

use figures::{Bar, Row};
use fleet::Fleet;
use gatepost::reconcile::SyncMode;
use postgres::{Cluster, Setup};
use storm::Way;
use writers::Case;

/// Of each gateway of the largest fleet, which has as many peers in all as the one gateway.
const PEERS_EACH: usize = 100;

const SETTINGS: &str = "max_connections = 2500\njit = off\nfsync = on\nfull_page_writes = on\n\
    shared_buffers = 1GB\nmax_wal_size = 4GB\nautovacuum_naptime = 10s";

/// Parts that may be asked for by name: `cargo bench --bench scale -- feed storm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Agent,
    Feed,
    Storm,
    Fleets,
    Simulation,
}

#[tokio::main]
async fn main() {
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let wanted = |part: Part| {
        let name = format!("{part:?}").to_lowercase();
        named.is_empty() || named.contains(&name)
    };
    let peers = peers();
    let gateways = peers / PEERS_EACH;
    let processors = std::thread::available_parallelism().unwrap().get();
    let cluster = Cluster::start(&Setup { settings: SETTINGS, ..Setup::default() });
    println!("\n{}; {processors} processors\n", cluster.psql("postgres", "select version()"));
    figures::heading();
    if wanted(Part::Agent) {
        one_change(&cluster, peers).await;
    }
    let large = Fleet::make(&cluster, peers, 1).await;
    if wanted(Part::Feed) {
        feed::measure(&large).await;
    }
    if wanted(Part::Storm) {
        for way in [Way::Direct(SyncMode::Auto), Way::Direct(SyncMode::Poll), Way::Bouncer] {
            storm::measure(&large, way).await;
        }
    }
    if !wanted(Part::Fleets) && !wanted(Part::Simulation) {
        return;
    }
    let many = Fleet::make(&cluster, peers, gateways).await;
    let measured = if wanted(Part::Fleets) {
        writers::rates(&many, &cases(gateways)).await
    } else {
        Vec::new()
    };
    if wanted(Part::Simulation) {
        let prices = costs::measure(&many, &large).await;
        limits::check(&measured, PEERS_EACH, processors, prices);
        limits::print_costs(&prices);
        limits::print_fleet(processors, prices);
        limits::print_limits(processors, &measured, prices);
    }
}

/// What one changed device costs an agent of few peers and one of many.
async fn one_change(cluster: &Cluster, peers: usize) {
    let mut deciding = Vec::new();
    for peers in [peers / 100, peers] {
        deciding.push(agent::measure(&Fleet::make(cluster, peers, 1).await).await);
    }
    let [few, many] = deciding[..] else { unreachable!("two sizes") };
    Row {
        what: "one changed device: decide and prove, many peers beside few",
        size: String::new(),
        ours: figures::words(many),
        beside: figures::words(few),
        ratio: Some(many.as_secs_f64() / few.as_secs_f64()),
        bar: Bar::Ratio(2.0),
    }
    .print();
}

/// The largest number of `GATEPOST_BENCH_PEERS`, which is a list for the benchmark in the guest.
fn peers() -> usize {
    let sizes = std::env::var("GATEPOST_BENCH_PEERS").unwrap_or("100000".into());
    sizes.split(',').map(|size| size.parse().unwrap()).max().unwrap()
}

/// From the modes that `auto` chooses to the whole fleet, which polls.
fn cases(gateways: usize) -> Vec<Case> {
    let at_once = Case {
        agents: 1,
        mode: SyncMode::Auto,
        bouncer: false,
        least_rate: None,
        most_median: Some((Duration::from_millis(10), "median < 10 ms")),
    };
    let soon = Case {
        agents: 100,
        least_rate: Some((0.6, ">= 0.6 x")),
        // Gateways that poll ask once a second.
        most_median: Some((Duration::from_secs(1), "median < 1 s")),
        ..at_once
    };
    // Not what we recommend for so many.
    let unbarred = Case { least_rate: None, most_median: None, ..soon };
    vec![
        at_once,
        Case { agents: 10, ..at_once },
        Case { agents: 50, ..at_once },
        soon,
        Case { bouncer: true, ..unbarred },
        Case { agents: gateways, mode: SyncMode::Poll, ..unbarred },
    ]
}
