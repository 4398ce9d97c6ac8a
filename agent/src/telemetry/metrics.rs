//! Metrics: the published status as numbers, rendered when they are scraped.

use std::time::{Duration, Instant};

use ::metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::text::{Family, head, sample};
use super::{peers, process};
use crate::handles::{Ask, Watcher};
use gatepost::dataplane::nft::denied_packets;
use gatepost::reconcile::status::{LagsStatus, PeerStatus, Status, Timestamp};

/// The values that are read for each scrape, besides the status.
#[derive(Debug, Clone, Default)]
pub struct Scraped {
    /// Packets that the firewall has denied since its table was loaded; `None`: there is no table.
    pub denied_packets: Option<u64>,
    /// All peers, where `metrics.per_peer` asks for them; `None`: they are not shown.
    pub peers: Option<Vec<PeerStatus>>,
}

impl Scraped {
    /// Reads it. What cannot be read in time is left out.
    pub async fn read(watcher: &Watcher, per_peer: bool) -> Self {
        const TIMEOUT: Duration = Duration::from_secs(5);
        let denied = denied_packets().ok().flatten();
        let peers = async {
            let (answer, answered) = oneshot::channel();
            watcher.asks.send(Ask::Peers { user: None, answer }).await.ok()?;
            answered.await.ok()
        };
        let peers = if per_peer { timeout(TIMEOUT, peers).await.ok().flatten() } else { None };
        Self { denied_packets: denied.map(|denied| denied.packets), peers }
    }
}

/// The current metrics in Prometheus's text format.
#[must_use]
pub fn render(watcher: &Watcher, scraped: &Scraped, now: Instant) -> String {
    let status = watcher.status();
    // A registry per scrape: a lasting one would keep every value that a label ever had.
    let recorder = PrometheusBuilder::new().build_recorder();
    with_local_recorder(&recorder, || {
        describe();
        record(&status);
        gauge!("gatepost_deny_log_failed").set(number(watcher.denied.trouble().is_some()));
        if let Some(packets) = scraped.denied_packets {
            counter!("gatepost_denied_packets_total").absolute(packets);
        }
        gauge!("gatepost_loop_age_seconds").set(watcher.pulse.age(now).as_secs_f64());
    });
    let mut text = recorder.handle().render();
    append_lags(&mut text, &status.sync.lags);
    process::append(&mut text, status.agent.started_at.map(|at| at.0));
    if let Some(peers) = &scraped.peers {
        peers::append(&mut text, peers);
    }
    text
}

/// The one histogram.
const LAGS: Family = (
    "gatepost_commit_to_kernel_seconds",
    "histogram",
    "Time from the notification of a pass's oldest change (else from the read that found it) to its proof in the kernel",
);

fn append_lags(out: &mut String, lags: &LagsStatus) {
    head(out, LAGS);
    for class in &lags.at_most {
        let bound = (amount(class.ms) / 1_000.0).to_string();
        sample(out, LAGS, "_bucket", &[("le", &bound)], class.count);
    }
    sample(out, LAGS, "_bucket", &[("le", "+Inf")], lags.count);
    sample(out, LAGS, "_sum", &[], amount(lags.sum_ms) / 1_000.0);
    sample(out, LAGS, "_count", &[], lags.count);
}

/// Name and meaning of each gauge.
const GAUGES: [(&str, &str); 15] = [
    ("gatepost_info", "Always 1; its labels are version, gateway, backend and mode"),
    ("gatepost_ready", "1 while the kernel is proven equal to the last good desired state, else 0"),
    ("gatepost_peers", "Peers by state; desired and in_kernel are equal on a healthy gateway"),
    (
        "gatepost_last_sync_timestamp_seconds",
        "Database time as of which the kernel was last proven equal; 0 if never",
    ),
    (
        "gatepost_lag_seconds",
        "Time from the notification of the last change to its proof in the kernel; absent after a repair of drift",
    ),
    ("gatepost_last_pass_duration_seconds", "Duration of the last pass that changed something"),
    ("gatepost_last_pass_refused_steps", "Steps of the last pass that the kernel refused"),
    ("gatepost_database_connected", "1 while connected to the database, else 0"),
    ("gatepost_held_back_removals", "Peers whose removal waits for `gatepost confirm`"),
    ("gatepost_warnings", "Warnings of `gatepost status`"),
    ("gatepost_blocked", "Users, devices, keys and addresses that this host blocks"),
    (
        "gatepost_last_good_failed",
        "1 while the rows in force cannot be written to disk for a boot without the database, else 0",
    ),
    (
        "gatepost_reports_refused",
        "1 while a table of the control plane refuses this gateway's reports, else 0",
    ),
    (
        "gatepost_deny_log_failed",
        "1 while the log of denied packets cannot be read, so that `gatepost denied` shows none, else 0",
    ),
    ("gatepost_loop_age_seconds", "Time since the last iteration of the loop"),
];

/// Name and meaning of each counter. All but the first count from the start of the agent.
const COUNTERS: [(&str, &str); 8] = [
    (
        "gatepost_denied_packets_total",
        "Packets denied since the firewall table was loaded; absent without a table",
    ),
    ("gatepost_rx_bytes_total", "Bytes received from all peers, as of the last complete reading"),
    ("gatepost_tx_bytes_total", "Bytes sent to all peers, as of the last complete reading"),
    ("gatepost_passes_total", "Passes that ended"),
    ("gatepost_drift_repaired_total", "Passes that repaired drift"),
    ("gatepost_notify_missed_total", "Changes found by a timer instead of a notification"),
    ("gatepost_refused_steps_total", "Steps that the kernel refused"),
    ("gatepost_flows_cut_total", "Connection tracking entries deleted"),
];

fn describe() {
    for (name, meaning) in GAUGES {
        describe_gauge!(name, meaning);
    }
    for (name, meaning) in COUNTERS {
        describe_counter!(name, meaning);
    }
}

fn record(status: &Status) {
    let text = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    gauge!(
        "gatepost_info",
        "version" => status.agent.version.clone(),
        "gateway" => status.gateway.name.clone(),
        "backend" => text(status.interface.backend.map(|backend| backend.to_string())),
        "mode" => text(status.sync.mode.map(|mode| mode.to_string())),
    )
    .set(1.0);
    gauge!("gatepost_ready").set(number(status.state.is_ready()));
    gauge!("gatepost_database_connected").set(number(status.database.connected));

    let peers = &status.peers;
    gauge!("gatepost_peers", "state" => "desired").set(amount(peers.desired));
    gauge!("gatepost_peers", "state" => "in_kernel").set(amount(peers.in_kernel));
    gauge!("gatepost_peers", "state" => "connected").set(amount(peers.connected));
    gauge!("gatepost_peers", "state" => "held").set(amount(peers.held));
    gauge!("gatepost_peers", "state" => "ineligible").set(amount(peers.ineligible));
    gauge!("gatepost_peers", "state" => "quarantined").set(amount(peers.quarantined));
    let held_back = status.held_back.map_or(0, |held| held.removals);
    gauge!("gatepost_held_back_removals").set(amount(held_back));
    let failed = status.last_good.why().is_some();
    gauge!("gatepost_last_good_failed").set(number(failed));
    gauge!("gatepost_reports_refused").set(number(status.reports.refused_since.is_some()));
    gauge!("gatepost_warnings").set(amount(status.warnings.len() as u64));
    gauge!("gatepost_blocked").set(amount(status.blocked.len() as u64));

    let sync = &status.sync;
    // Zero rather than absent if there was none, so that an alert on its age fires.
    let last_sync = sync.last_sync_at.map_or(0.0, Timestamp::unix_seconds);
    gauge!("gatepost_last_sync_timestamp_seconds").set(last_sync);
    if let Some(lag_ms) = sync.lag_ms {
        gauge!("gatepost_lag_seconds").set(amount(lag_ms) / 1_000.0);
    }
    if let Some(pass) = &sync.last_pass {
        gauge!("gatepost_last_pass_duration_seconds").set(amount(pass.duration_ms) / 1_000.0);
        gauge!("gatepost_last_pass_refused_steps").set(amount(pass.refused));
    }
    counter!("gatepost_rx_bytes_total").absolute(status.traffic.rx_bytes);
    counter!("gatepost_tx_bytes_total").absolute(status.traffic.tx_bytes);
    counter!("gatepost_passes_total").absolute(sync.passes);
    counter!("gatepost_drift_repaired_total").absolute(sync.drift_repaired);
    counter!("gatepost_notify_missed_total").absolute(sync.notify_missed);
    counter!("gatepost_refused_steps_total").absolute(sync.refused_steps);
    counter!("gatepost_flows_cut_total").absolute(sync.flows_cut);
}

fn number(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// Exact up to 2^53, which no value here reaches.
#[allow(clippy::cast_precision_loss)]
fn amount(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::handles::channels;
    use gatepost::reconcile::status::{PeerCounts, State};

    #[test]
    fn metrics_follow_the_status() {
        let start = Instant::now();
        let (watcher, end, _stop) = channels(Status::default(), start);
        let before = render(&watcher, &Scraped::default(), start);
        assert!(before.contains("\ngatepost_ready 0\n"), "{before}");
        assert!(before.contains("\ngatepost_last_sync_timestamp_seconds 0\n"), "{before}");

        end.status.send_modify(|status| {
            status.state = State::Ready;
            status.peers = PeerCounts {
                desired: 9,
                in_kernel: 8,
                connected: 3,
                held: 0,
                ineligible: 2,
                quarantined: 1,
                read_at: None,
            };
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
            status.sync.last_sync_at = Some(Timestamp(at));
            status.sync.lag_ms = Some(250);
            status.sync.passes = 3;
            status.sync.refused_steps = 4;
        });
        let scraped = Scraped { denied_packets: Some(7), peers: None };
        let after = render(&watcher, &scraped, start + Duration::from_secs(5));
        for line in [
            "gatepost_ready 1",
            "gatepost_peers{state=\"desired\"} 9",
            "gatepost_peers{state=\"in_kernel\"} 8",
            "gatepost_peers{state=\"quarantined\"} 1",
            "gatepost_last_sync_timestamp_seconds 1700000000",
            "gatepost_lag_seconds 0.25",
            "gatepost_passes_total 3",
            "gatepost_refused_steps_total 4",
            "gatepost_denied_packets_total 7",
            "gatepost_loop_age_seconds 5",
            "# TYPE gatepost_passes_total counter",
        ] {
            assert!(after.lines().any(|found| found == line), "no line {line:?} in:\n{after}");
        }
    }

    #[test]
    fn changed_label_leaves_no_second_info() {
        let start = Instant::now();
        let (watcher, end, _stop) = channels(Status::default(), start);
        let _before = render(&watcher, &Scraped::default(), start);
        end.status.send_modify(|status| status.gateway.name = "fra-1".into());
        let after = render(&watcher, &Scraped::default(), start);
        let infos = after.lines().filter(|line| line.starts_with("gatepost_info{")).count();
        assert_eq!(infos, 1, "{after}");
    }

    #[test]
    fn every_metric_is_in_the_reference() {
        let reference = include_str!("../../../docs/reference.md");
        let families = [LAGS].into_iter().chain(process::FAMILIES).chain(peers::FAMILIES);
        for (name, kind, _) in families {
            let is_described =
                |line: &str| line.contains(name) && line.contains(&format!(" | {kind} | "));
            assert!(reference.lines().any(is_described), "{name} is not described");
        }
        let typed = |kind: &'static str| move |(name, _)| (name, format!(" | {kind} | "));
        let gauges = GAUGES.into_iter().map(typed("gauge"));
        for (name, kind) in gauges.chain(COUNTERS.into_iter().map(typed("counter"))) {
            let is_described = |line: &str| line.contains(name) && line.contains(&kind);
            assert!(reference.lines().any(is_described), "{name} is not described");
        }
    }
}
