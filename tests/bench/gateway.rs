//! What a gateway of many peers costs on WireGuard in the kernel, each figure beside the raw tool's
//! in the same run. Prints rows of the table in docs/scale.md.
//!
//! Leaves its interfaces behind, full: run it in the guest (`tests/guest/suite --bench gateway`),
//! which is thrown away. `GATEPOST_BENCH_PEERS` says how many peers (1000,10000,100000), and
//! `GATEPOST_BENCH_IDLE_SECS` for how long an idle agent is watched (300).
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "gateway/change.rs"]
mod change;
#[path = "figures.rs"]
mod figures;
#[path = "gateway/fleet.rs"]
mod fleet;
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../netns/lab/mod.rs"]
mod lab;
#[path = "gateway/mass.rs"]
mod mass;
#[path = "gateway/reader.rs"]
mod reader;

use std::collections::BTreeSet;
use std::time::Duration;

use figures::{Bar, Row, heading, timed, words};
use fleet::Fleet;
use lab::{Backend, Lab};
use reader::{WriteCount, cpu_time};

/// What the agent does unasked, and how often; the defaults of the configuration.
const DEFAULT_REPORT: &str = "heartbeat = \"10s\"\ninterval = \"15s\"";
/// So seldom that what is measured is the change alone.
const RARE_REPORT: &str = "heartbeat = \"1h\"\ninterval = \"1h\"";

fn main() {
    let sizes = std::env::var("GATEPOST_BENCH_PEERS").unwrap_or("1000,10000,100000".into());
    let sizes: Vec<usize> = sizes.split(',').map(|size| size.parse().unwrap()).collect();
    heading();
    let base = memory_without_peers();
    let mut smallest = None;
    for (index, size) in sizes.iter().enumerate() {
        let fleet = Fleet::make(*size);
        cold(&fleet);
        restart(&fleet);
        memory(&fleet, base);
        let costs = change::measure(&fleet);
        costs.print(smallest.as_ref());
        smallest.get_or_insert(costs);
        if index + 1 == sizes.len() {
            mass::measure(&fleet);
            idle(&fleet);
        }
        // To delete an interface takes the kernel 20 ms for each of its peers.
        std::mem::forget(fleet);
    }
}

/// In KiB.
fn memory_without_peers() -> u32 {
    let lab = Lab::open();
    assert_eq!(lab.backend, Backend::Kernel, "userspace WireGuard is not made for this");
    let agent = lab.start();
    let resident = agent.memory_kib();
    Row {
        what: "resident memory",
        size: "0 peers".into(),
        ours: format!("{:.1} MiB", f64::from(resident) / 1024.0),
        beside: String::new(),
        ratio: None,
        bar: Bar::None,
    }
    .print();
    resident
}

fn cold(fleet: &Fleet) {
    let (setconf, query) = (fleet.setconf(), fleet.bare_snapshot());
    let writes = WriteCount::begin(&fleet.lab.gateway);
    let ours = timed(|| fleet.once());
    assert!(writes.end().is_counted(), "a cold start writes, and it is counted");
    assert_eq!(fleet.lab.kernel_peers().len(), fleet.peers);
    let both = setconf + query;
    Row {
        what: "cold start, database to proven kernel",
        size: fleet.size(),
        ours: words(ours),
        beside: format!("{} `wg setconf` + {} the rows", words(setconf), words(query)),
        ratio: Some(ours.as_secs_f64() / both.as_secs_f64()),
        bar: Bar::Ratio(1.25),
    }
    .print();
}

fn restart(fleet: &Fleet) {
    let writes = WriteCount::begin(&fleet.lab.gateway);
    let ours = timed(|| fleet.once());
    let written = writes.end();
    let dump = timed(|| fleet.lab.wg_show("dump"));
    Row {
        what: "restart on a kernel that matches",
        size: fleet.size(),
        ours: words(ours),
        beside: format!("{} `wg show dump`", words(dump)),
        ratio: Some(ours.as_secs_f64() / dump.as_secs_f64()),
        bar: Bar::Ratio(3.0),
    }
    .print();
    Row {
        what: "what that writes to the kernel",
        size: fleet.size(),
        ours: format!("WireGuard {}, nftables {}", written.wireguard_words(), written.nftables),
        beside: String::new(),
        ratio: None,
        bar: Bar::Other("nothing", written.is_nothing()),
    }
    .print();
}

fn memory(fleet: &Fleet, base_kib: u32) {
    fleet.configure(DEFAULT_REPORT);
    fleet.forget_rows();
    let agent = fleet.start();
    // It has read, proven and kept its rows; the next reading is what it always holds.
    fleet.await_kept_rows();
    std::thread::sleep(Duration::from_secs(12));
    let resident = agent.memory_kib();
    let each = f64::from(resident.saturating_sub(base_kib)) * 1024.0 / fleet.peers as f64;
    Row {
        what: "resident memory",
        size: fleet.size(),
        ours: format!("{:.1} MiB, {each:.0} bytes a peer", f64::from(resident) / 1024.0),
        beside: String::new(),
        ratio: None,
        // With few peers it is the threads and their buffers that are measured.
        bar: if fleet.peers < 10_000 {
            Bar::None
        } else {
            Bar::Other("< 1,024 bytes a peer", each < 1024.0)
        },
    }
    .print();
}

/// Nothing happens, at the default intervals.
fn idle(fleet: &Fleet) {
    let watched_secs: u64 =
        std::env::var("GATEPOST_BENCH_IDLE_SECS").map_or(300, |seconds| seconds.parse().unwrap());
    fleet.configure(DEFAULT_REPORT);
    let agent = fleet.start();
    std::thread::sleep(Duration::from_secs(15));
    let lines = fleet.lab.log().lines().count();
    let (mut slices, mut beats) = (Vec::new(), BTreeSet::from([fleet.last_sync()]));
    let before = cpu_time(&agent);
    let mut last = before;
    for _ in 0..watched_secs {
        std::thread::sleep(Duration::from_secs(1));
        let now = cpu_time(&agent);
        slices.push(now - last);
        last = now;
        beats.insert(fleet.last_sync());
    }
    let logged = fleet.lab.log().lines().count() - lines;
    let beats = beats.len() - 1;
    let share = |cpu: Duration, secs: usize| cpu.as_secs_f64() * 100.0 / secs as f64;
    let all = share(last - before, slices.len());
    // A reading for the report takes more than a tenth of the second in which it falls; it comes at
    // most once a minute and may fall into two seconds.
    slices.retain(|cpu| *cpu < Duration::from_millis(100));
    let left_out = watched_secs as usize - slices.len();
    let may_be_left_out = 2 * (watched_secs as usize / 60 + 1);
    let between = share(slices.iter().sum(), slices.len().max(1));
    Row {
        what: "idle: share of one core between reports",
        size: format!("{}, {watched_secs} s", fleet.size()),
        ours: format!(
            "{between:.2} %; with the {left_out} s of reports {all:.2} %; {beats} beats, {logged} log lines"
        ),
        beside: String::new(),
        ratio: None,
        bar: Bar::Other(
            "< 1 %, no line",
            between < 1.0 && logged == 0 && left_out <= may_be_left_out,
        ),
    }
    .print();
}
