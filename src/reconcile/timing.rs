//! When what is due.

use std::time::{Duration, Instant};

/// The intervals, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between asks in poll mode.
    pub poll_interval: Duration,
    /// Between asks in listen mode, for a notification that was lost.
    pub safety_poll_interval: Duration,
    /// Between full reads of the database.
    pub resync_interval: Duration,
    /// Between two reports of handshakes.
    pub report_interval: Duration,
    /// Between two writes of `last_sync_at`, each the proof of a complete reading of the kernel.
    pub heartbeat: Duration,
    /// Seed of the jitter, so that a fleet does not knock all at once.
    pub seed: u64,
}

impl Timing {
    /// Between two complete readings of the kernel: both `last_sync_at` and the handshakes live
    /// on them.
    #[must_use]
    pub fn compare_interval(&self) -> Duration {
        self.report_interval.min(self.heartbeat)
    }
}

/// A full comparison asked for by events comes at most this often: a storm of them (another
/// daemon that fights us) must not become a storm of dumps.
const OBSERVE_GAP: Duration = Duration::from_millis(50);

/// Points in time at which something is due.
#[derive(Debug, Clone)]
pub(super) struct Due {
    pub poll: Instant,
    pub resync: Instant,
    pub compare: Instant,
    pub heartbeat: Instant,
    pub report: Instant,
    pub handshakes: Instant,
    pub retry_read: Option<Instant>,
    /// When a notification that has not come counts as missed.
    pub suspicion: Option<Instant>,
    pub retry_pass: Option<Instant>,
    pub last_observed: Option<Instant>,
}

impl Due {
    pub fn new(now: Instant) -> Self {
        Self {
            poll: now,
            resync: now,
            compare: now,
            heartbeat: now,
            report: now,
            handshakes: now,
            retry_read: None,
            suspicion: None,
            retry_pass: None,
            last_observed: None,
        }
    }

    pub fn may_observe(&self, now: Instant) -> bool {
        self.last_observed.is_none_or(|at| now >= at + OBSERVE_GAP)
    }

    /// When an observation that is wanted may begin.
    pub fn observe_at(&self, now: Instant) -> Instant {
        self.last_observed.map_or(now, |at| at + OBSERVE_GAP)
    }
}
