//! When what is due.

use std::time::{Duration, Instant};

use crate::store::Backoff;

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
    /// Between two writes of `last_sync_at`, each rests on a reading of the kernel.
    pub heartbeat: Duration,
    /// Seed of the jitter, so that a fleet does not knock all at once.
    pub seed: u64,
}

impl Timing {
    /// Between two complete readings of the kernel, where these are cheap: both `last_sync_at` and
    /// the handshakes live on them.
    #[must_use]
    pub fn compare_interval(&self) -> Duration {
        self.report_interval.min(self.heartbeat)
    }

    /// Between two complete readings of the kernel, where one takes so long.
    #[must_use]
    pub fn compare_interval_after(&self, took: Duration) -> Duration {
        let affordable = took.saturating_mul(READING_SHARE).min(LONGEST_COMPARE_INTERVAL);
        self.compare_interval().max(affordable)
    }
}

/// The agent reads the kernel for at most one part in so many of the time.
const READING_SHARE: u32 = 200;
/// A live session shakes hands every 120 s (`REKEY_AFTER_TIME`) and ends 180 s after the last time:
/// readings further apart could take one session for two.
const LONGEST_COMPARE_INTERVAL: Duration = Duration::from_secs(60);

/// A full comparison asked for by events comes at most this often: a storm of them (another
/// daemon that fights us) must not become a storm of dumps.
const OBSERVE_GAP: Duration = Duration::from_millis(50);

/// Between two turns of one agent, besides the one at each heartbeat. The 51 that take turns at least
/// ask ten times a second together, a thousand of them two hundred times.
pub(super) const TURN_INTERVAL: Duration = Duration::from_secs(10);

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
    /// Between two complete readings, as long as the last one took.
    pub compare_interval: Duration,
    /// When the reading that is under way, or the last one, began.
    pub observing_since: Instant,
}

impl Due {
    /// All at once, but for the resync: the first read is of everything anyway.
    pub fn new(now: Instant, timing: Timing) -> Self {
        Self {
            poll: now,
            resync: now + timing.resync_interval,
            compare: now,
            heartbeat: now,
            report: now,
            handshakes: now,
            retry_read: None,
            suspicion: None,
            retry_pass: None,
            last_observed: None,
            compare_interval: timing.compare_interval(),
            observing_since: now,
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

/// How long to wait before what failed is tried again: for each kind of work apart, so that none
/// hurries another.
#[derive(Debug, Clone)]
pub(super) struct Backoffs {
    pub connect: Backoff,
    pub read: Backoff,
    /// Reading the kernel, and changing it.
    pub pass: Backoff,
    pub report: Backoff,
}

impl Backoffs {
    pub fn new(seed: u64) -> Self {
        let backoff = |number| Backoff::new(seed.wrapping_add(number));
        Self { connect: backoff(0), read: backoff(1), pass: backoff(2), report: backoff(3) }
    }
}
