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

/// The first and the longest wait between two tries.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(15);

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

/// Doubling waits with jitter, from 0.2 s to 15 s.
#[derive(Debug, Clone)]
pub struct Backoff {
    tries: u32,
    random: u64,
}

impl Backoff {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { tries: 0, random: seed | 1 }
    }

    /// After a success the next wait is the first again.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next wait: between half and all of the doubled delay.
    pub fn next_delay(&mut self) -> Duration {
        let doubled = FIRST_DELAY.saturating_mul(1 << self.tries.min(10)).min(LONGEST_DELAY);
        self.tries = self.tries.saturating_add(1);
        // xorshift64 (Marsaglia 2003): jitter needs no better randomness.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let jitter = f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / 2f64.powi(32);
        doubled.mul_f64(0.5 + jitter / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound_with_jitter() {
        let mut backoff = Backoff::new(7);
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next_delay()).collect();
        assert!(waits[0] >= FIRST_DELAY / 2 && waits[0] <= FIRST_DELAY);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_DELAY));
        assert!(waits[11] >= LONGEST_DELAY / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST_DELAY);
        assert_ne!(Backoff::new(7).next_delay(), Backoff::new(99).next_delay());
    }
}
