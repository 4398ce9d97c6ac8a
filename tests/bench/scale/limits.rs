//! What the simulation says: how far it is from what was measured, what a fleet asks for, and what
//! gives way first.

use std::time::Duration;

use gatepost::reconcile::status::Mode;

use super::costs::{Costs, Prices};
use super::figures::{Bar, Row, grouped, words};
use super::simulation::{Load, Outcome, PARTS, Part, simulate};
use super::writers::Measured;

const GATEWAYS: usize = 1_000;
const PEERS: usize = 10_000_000;
/// Of a machine for a fleet of that size.
const PROCESSORS: usize = 16;
/// A database that is busier than this answers late.
const BUSY: f64 = 0.8;
const LAG_SECS: f64 = 0.5;
/// Seldom enough for a fleet that only wants to know who was seen today.
const SELDOM_SECS: f64 = 900.0;

/// The configuration's defaults.
fn fleet(processors: usize) -> Load {
    Load {
        processors,
        gateways: GATEWAYS,
        peers: PEERS,
        mode: Mode::Hints,
        changes_per_sec: 10.0,
        policies_per_min: 1.0,
        online: 1.0,
        question_interval_secs: question_interval_secs(Mode::Hints, GATEWAYS),
        report_interval_secs: 15.0,
        heartbeat_secs: heartbeat_secs(GATEWAYS),
        resync_interval_secs: 600.0,
    }
}

/// The configuration's defaults.
fn question_interval_secs(mode: Mode, gateways: usize) -> f64 {
    let among = gateways as f64 / 200.0;
    match mode {
        Mode::Listen => 10.0,
        Mode::Hints => among.max(10.0),
        Mode::Poll => among.max(1.0),
    }
}

/// The configuration's default.
const fn heartbeat_secs(gateways: usize) -> f64 {
    if gateways > 1_000 { 60.0 } else { 10.0 }
}

/// Rows of the simulation of what was measured, beside it.
pub fn check(measured: &[Measured], peers_each: usize, processors: usize, prices: Prices) {
    for real in measured {
        let simulated = simulate(
            Load {
                gateways: real.agents,
                peers: real.agents * peers_each,
                mode: real.mode,
                changes_per_sec: real.changes_per_sec,
                policies_per_min: 0.0,
                online: 0.0,
                question_interval_secs: question_interval_secs(real.mode, real.agents),
                ..fleet(processors)
            },
            prices.of(real.mode),
        );
        let size = format!("{} agents, {}", grouped(real.agents), real.mode);
        let ratio = simulated.total() / real.busy;
        Row {
            what: "simulated: the database's busy processors",
            size: size.clone(),
            ours: format!("{:.3}", simulated.total()),
            beside: format!("{:.3} measured", real.busy),
            ratio: Some(ratio),
            bar: Bar::Other("0.5 to 2 x", (0.5..=2.0).contains(&ratio)),
        }
        .print();
        let lag = Duration::from_secs_f64(simulated.lag_secs(50));
        let ratio = lag.as_secs_f64() / real.median.as_secs_f64();
        Row {
            what: "simulated: commit to rows, median",
            size,
            ours: words(lag),
            beside: format!("{} measured, to the kernel", words(real.median)),
            ratio: Some(ratio),
            bar: Bar::None,
        }
        .print();
    }
}

pub fn print_costs(prices: &Prices) {
    table(
        "Costs of one operation, in microseconds of one of the database's processors",
        &["operation", "with a session for each gateway", "with a pool of 8"],
    );
    let (own, pool) = (operations(&prices.own_sessions), operations(&prices.pool));
    for ((operation, own), (_, pool)) in own.into_iter().zip(pool) {
        println!("| {operation} | {:.1} | {:.1} |", own * 1e6, pool * 1e6);
    }
}

fn operations(costs: &Costs) -> [(&'static str, f64); 13] {
    [
        ("a commit of one changed device", costs.commit),
        ("to wake one session that listens", costs.notify),
        ("to address one mark", costs.address),
        ("a look of the bell that finds nothing", costs.look),
        ("a question that finds nothing", costs.poll),
        ("a read of the changes that finds nothing", costs.changes),
        ("more, for each mark of others that no bell has addressed", costs.mark),
        ("more, for each changed device", costs.device),
        ("a read of the changes that finds one policy", costs.policy),
        ("to report one handshake", costs.handshake),
        ("to write `last_sync_at`", costs.synced),
        ("to write the two audit entries of a pass that revoked a peer", costs.audit),
        ("a snapshot, for each peer", costs.snapshot_peer),
    ]
}

/// 1,000 gateways and 10 million peers.
pub fn print_fleet(processors: usize, prices: Prices) {
    table(
        &format!(
            "Simulated: {} gateways, {} peers that all have traffic, a policy change a minute",
            grouped(GATEWAYS),
            grouped(PEERS)
        ),
        &[
            "device changes/s",
            "sync.mode",
            "report.interval",
            "processors",
            "marks/s",
            "notifications/s",
            "questions/s",
            "deltas/s",
            "handshakes/s",
            "report statements/s",
            "processors wanted",
            "of them by writers",
            "notifications",
            "questions",
            "reports",
            "snapshots",
            "commit to rows: median",
            "p99",
        ],
    );
    for changes_per_sec in [1.0, 10.0, 100.0, 1_000.0] {
        line(Load { changes_per_sec, ..fleet(PROCESSORS) }, prices);
    }
    for mode in [Mode::Poll, Mode::Listen] {
        let question_interval_secs = question_interval_secs(mode, GATEWAYS);
        line(Load { mode, question_interval_secs, ..fleet(PROCESSORS) }, prices);
    }
    for report_interval_secs in [120.0, SELDOM_SECS] {
        line(Load { report_interval_secs, ..fleet(PROCESSORS) }, prices);
    }
    line(Load { report_interval_secs: SELDOM_SECS, ..fleet(processors) }, prices);
}

fn line(load: Load, prices: Prices) {
    let outcome = simulate(load, prices.of(load.mode));
    let parts: Vec<String> = PARTS.iter().map(|part| format!("{:.2}", outcome.of(*part))).collect();
    println!(
        "| {} | {} | {} s | {} | {:.1} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {:.2} | {} | {} | {} |",
        load.changes_per_sec,
        load.mode,
        load.report_interval_secs,
        load.processors,
        outcome.marks,
        outcome.notifications,
        outcome.questions,
        outcome.deltas,
        outcome.handshakes,
        outcome.report_statements,
        outcome.total(),
        parts.join(" | "),
        lag(&outcome, 50),
        lag(&outcome, 99),
    );
}

/// A queue that only grows has no median worth printing.
fn lag(outcome: &Outcome, percent: usize) -> String {
    let secs = outcome.lag_secs(percent);
    if secs > 10.0 { "> 10 s".into() } else { words(Duration::from_secs_f64(secs)) }
}

/// How far each thing can grow while the others stand, and what gives way.
pub fn print_limits(processors: usize, measured: &[Measured], prices: Prices) {
    table(
        &format!(
            "Simulated limits: the most that keeps the database's processors at most {} % busy and the median lag under {LAG_SECS} s",
            BUSY * 100.0
        ),
        &["grows", "processors", "while", "up to", "what gives way", "what to do"],
    );
    let calm = |processors| Load {
        peers: PEERS / 10,
        report_interval_secs: SELDOM_SECS,
        ..fleet(processors)
    };
    for processors in [processors, PROCESSORS] {
        let limit = |what, standing, load: &dyn Fn(usize) -> Load| {
            limit(what, standing, prices, load);
        };
        limit(
            "device changes/s",
            "1,000 gateways, 1,000,000 peers, reports every 15 min",
            &|many| Load { changes_per_sec: many as f64, ..calm(processors) },
        );
        limit("peers with traffic", "1,000 gateways, 10 changes/s, reports every 15 s", &|many| {
            Load { peers: many, ..fleet(processors) }
        });
        limit(
            "peers with traffic",
            "1,000 gateways, 10 changes/s, reports every 15 min",
            &|many| Load { peers: many, ..calm(processors) },
        );
        limit("gateways that follow hints", "1,000,000 peers, 100 changes/s", &|many| Load {
            gateways: many,
            changes_per_sec: 100.0,
            question_interval_secs: question_interval_secs(Mode::Hints, many),
            heartbeat_secs: heartbeat_secs(many),
            ..calm(processors)
        });
        limit(
            "device changes/s",
            "10,000 gateways, 1,000,000 peers, reports every 15 min",
            &|many| Load {
                gateways: 10_000,
                changes_per_sec: many as f64,
                question_interval_secs: question_interval_secs(Mode::Hints, 10_000),
                heartbeat_secs: heartbeat_secs(10_000),
                ..calm(processors)
            },
        );
        limit("gateways that poll", "1,000,000 peers, 100 changes/s", &|many| Load {
            gateways: many,
            changes_per_sec: 100.0,
            mode: Mode::Poll,
            question_interval_secs: question_interval_secs(Mode::Poll, many),
            ..calm(processors)
        });
        let mode = Mode::Listen;
        limit("gateways that listen", "1,000,000 peers, 100 changes/s", &|many| Load {
            gateways: many,
            changes_per_sec: 100.0,
            mode,
            question_interval_secs: question_interval_secs(mode, many),
            ..calm(processors)
        });
    }
    if let Some(most) = measured.iter().max_by_key(|real| real.agents) {
        println!(
            "| sessions |  | {} agents, measured | {} KiB each: {:.1} GiB | memory | a token for each gateway, and PgBouncer |",
            grouped(most.agents),
            grouped(most.private_kib_per_session as usize),
            most.private_kib_per_session as f64 * most.sessions as f64 / f64::from(1 << 20)
        );
    }
}

/// Doubles, then halves the gap.
fn limit(what: &str, standing: &str, prices: Prices, load: &dyn Fn(usize) -> Load) {
    const SMALLEST: usize = 10;
    const LARGEST: usize = 500_000_000;
    let holds = |many: usize| {
        let (load, outcome) = judged(load(many), prices);
        outcome.total() <= BUSY * load.processors as f64 && outcome.lag_secs(50) < LAG_SECS
    };
    let (mut good, mut bad) = (0, SMALLEST);
    while bad <= LARGEST && holds(bad) {
        (good, bad) = (bad, bad * 2);
    }
    while bad - good > (good / 50).max(1) {
        let middle = good.midpoint(bad);
        if holds(middle) { good = middle } else { bad = middle }
    }
    let (load, outcome) = judged(load(bad), prices);
    let (gives_way, advice) = if outcome.total() <= BUSY * load.processors as f64 {
        ("the lag", "shard by gateway")
    } else {
        remedy(outcome.first())
    };
    println!(
        "| {what} | {} | {standing} | {} | {gives_way} | {advice} |",
        load.processors,
        grouped(good)
    );
}

fn judged(load: Load, prices: Prices) -> (Load, Outcome) {
    (load, simulate(load, prices.of(load.mode)))
}

/// What gives way, and what to do.
const fn remedy(part: Part) -> (&'static str, &'static str) {
    match part {
        Part::Writers => ("the writers' own commits", "more processors, then shard by gateway"),
        Part::Notifications => (
            "notifications: each signals every session that listens",
            "sync.mode = \"auto\": above 50 gateways they poll",
        ),
        Part::Questions => ("questions and deltas", "more processors, then shard by gateway"),
        Part::Reports => (
            "reports: a row written for each handshake",
            "a longer report.interval, then shard by gateway",
        ),
        Part::Snapshots => {
            ("full comparisons", "a longer sync.resync_interval, then shard by gateway")
        }
    }
}

fn table(title: &str, columns: &[&str]) {
    println!("\n#### {title}\n");
    println!("| {} |", columns.join(" | "));
    println!("|{}", "---|".repeat(columns.len()));
}
