//! The bell's own state, counters and metrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ::metrics::{counter, describe_counter, describe_gauge, gauge, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::watch;

use crate::pulse::Pulse;
use crate::telemetry::{Pages, Response, health, target};

/// The bell's activity at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BellState {
    Starting,
    Ringing,
    /// Another bell rings.
    Waiting {
        holder: String,
    },
    NoDatabase {
        why: String,
    },
    NoBroker {
        why: String,
    },
}

impl BellState {
    /// Whether this bell does what it is for.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Ringing | Self::Waiting { .. })
    }
}

impl fmt::Display for BellState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Ringing => f.write_str("ringing"),
            Self::Waiting { holder } => write!(f, "waiting: {holder} rings"),
            Self::NoDatabase { why } | Self::NoBroker { why } => write!(f, "not ready: {why}"),
        }
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub looks: AtomicU64,
    pub hints_to_one: AtomicU64,
    pub hints_to_all: AtomicU64,
    pub merges: AtomicU64,
    pub merge_failures: AtomicU64,
}

impl Counts {
    /// Adds to one of them.
    pub fn add(counter: &AtomicU64, more: usize) {
        counter.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The values that metrics and health show. Clones are cheap.
#[derive(Debug, Clone)]
pub struct BellWatcher {
    pub state: watch::Receiver<BellState>,
    pub counts: Arc<Counts>,
    pub pulse: Pulse,
}

/// Name and meaning of each metric of a bell.
const GAUGES: [(&str, &str); 3] = [
    ("gatepost_bell_ready", "1 while this bell rings, or waits because another one does, else 0"),
    ("gatepost_bell_ringing", "1 while this bell is the one that rings, else 0"),
    ("gatepost_bell_loop_age_seconds", "Time since the last iteration of the bell's loop"),
];
const COUNTERS: [(&str, &str); 4] = [
    ("gatepost_bell_looks_total", "Looks at the database for changes"),
    ("gatepost_bell_hints_total", "Hints published, to one gateway or to all"),
    ("gatepost_bell_merges_total", "Times that the reports of a gateway were merged"),
    (
        "gatepost_bell_merge_failures_total",
        "Times that the reports of a gateway could not be merged",
    ),
];

impl Pages for BellWatcher {
    async fn answer(&self, request: &str) -> Response {
        let now = Instant::now();
        match target(request) {
            ("GET" | "HEAD", "/metrics") => Response { status: "200 OK", body: self.metrics(now) },
            ("GET" | "HEAD", "/healthz") => {
                let age = self.pulse.age(now).as_secs();
                health(self.pulse.is_alive(now), &format!("the last look began {age} s ago"))
            }
            ("GET" | "HEAD", "/readyz") => {
                let state = self.state.borrow().clone();
                health(state.is_ready(), &state.to_string())
            }
            ("GET" | "HEAD", _) => {
                Response { status: "404 Not Found", body: "/metrics, /healthz or /readyz\n".into() }
            }
            _ => Response { status: "405 Method Not Allowed", body: "GET or HEAD\n".into() },
        }
    }
}

impl BellWatcher {
    fn metrics(&self, now: Instant) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        let state = self.state.borrow().clone();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        with_local_recorder(&recorder, || {
            GAUGES.iter().for_each(|(name, meaning)| describe_gauge!(*name, *meaning));
            COUNTERS.iter().for_each(|(name, meaning)| describe_counter!(*name, *meaning));
            gauge!("gatepost_bell_ready").set(f64::from(u8::from(state.is_ready())));
            let rings = state == BellState::Ringing;
            gauge!("gatepost_bell_ringing").set(f64::from(u8::from(rings)));
            gauge!("gatepost_bell_loop_age_seconds").set(self.pulse.age(now).as_secs_f64());
            counter!("gatepost_bell_looks_total").absolute(count(&self.counts.looks));
            let to_one = count(&self.counts.hints_to_one);
            counter!("gatepost_bell_hints_total", "to" => "gateway").absolute(to_one);
            let to_all = count(&self.counts.hints_to_all);
            counter!("gatepost_bell_hints_total", "to" => "all").absolute(to_all);
            counter!("gatepost_bell_merges_total").absolute(count(&self.counts.merges));
            let failures = count(&self.counts.merge_failures);
            counter!("gatepost_bell_merge_failures_total").absolute(failures);
        });
        recorder.handle().render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_a_bell_is_in_the_reference_and_has_a_value() {
        let (_send, state) = watch::channel(BellState::Ringing);
        let now = Instant::now();
        let watcher = BellWatcher { state, counts: Arc::default(), pulse: Pulse::new(now) };
        let reference = include_str!("../../../../docs/reference.md");
        let text = watcher.metrics(now);
        for (name, _) in GAUGES.iter().chain(&COUNTERS) {
            assert!(reference.contains(&format!("`{name}")), "{name} is not described");
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}: {text}");
        }
        assert!(text.contains("\ngatepost_bell_ringing 1\n"), "{text}");
    }

    #[test]
    fn a_bell_is_ready_while_it_or_another_rings() {
        let why = || String::new();
        assert!(
            BellState::Waiting { holder: "db1".into() }.is_ready() && BellState::Ringing.is_ready()
        );
        for state in [
            BellState::Starting,
            BellState::NoDatabase { why: why() },
            BellState::NoBroker { why: why() },
        ] {
            assert!(!state.is_ready(), "{state}");
        }
    }
}
