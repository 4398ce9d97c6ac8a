//! What a gateway of 1,000, 10,000 and 100,000 peers costs the database and the agent, beside the
//! bare query or the untriggered statement in the same run. Prints a table for docs/scale.md.
//!
//! A private PostgreSQL; the kernel is the model kernel, so that nothing here measures it.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "scale/agent.rs"]
mod agent;
#[path = "figures.rs"]
mod figures;
#[path = "scale/fleet.rs"]
mod fleet;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "scale/writers.rs"]
mod writers;

use fleet::Fleet;
use postgres::{Cluster, Setup};

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];

/// How the memory of one agent is read: in a process of its own.
const MEMORY_OF: &str = "GATEPOST_BENCH_MEMORY_OF";

#[tokio::main]
async fn main() {
    if let Ok(url) = std::env::var(MEMORY_OF) {
        return agent::print_memory(&url).await;
    }
    let cluster =
        Cluster::start(&Setup { settings: "max_connections = 400\njit = off", ..Setup::default() });
    println!("\n{}", cluster.psql("postgres", "select version()"));
    let mut largest = None;
    for peers in SIZES {
        let fleet = Fleet::make(&cluster, peers).await;
        agent::measure(&fleet).await;
        largest = Some(fleet);
    }
    let fleet = largest.unwrap();
    writers::bulk_update(&fleet);
    writers::report(&fleet).await;
    writers::commit_rates(&fleet).await;
}
