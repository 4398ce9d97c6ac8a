//! The loop's sign of life: systemd's watchdog and `/healthz` are told of it, and of nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A loop that has not beaten for this long is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// When the loop last beat. Clones share it.
#[derive(Debug, Clone)]
pub struct Pulse {
    epoch: Instant,
    /// Milliseconds after `epoch`.
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// Starts with a beat: the loop gets its first [`STUCK_AFTER`] from `now` on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { epoch: now, last_ms: Arc::default() }
    }

    /// The loop moves. To be called each time round, and between the parts of a long pass.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.epoch).as_millis();
        self.last_ms.fetch_max(u64::try_from(since).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Time since the last beat.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.epoch).saturating_sub(last)
    }

    /// Beaten within [`STUCK_AFTER`].
    #[must_use]
    pub fn is_alive(&self, now: Instant) -> bool {
        self.age(now) <= STUCK_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_loop_is_alive() {
        assert!(gatepost::reconcile::ROUND_AT_MOST * 2 < STUCK_AFTER);
    }

    #[test]
    fn a_pulse_dies_without_beats_and_lives_with_them() {
        let start = Instant::now();
        let (pulse, late) = (Pulse::new(start), start + STUCK_AFTER * 2);
        assert!(pulse.is_alive(start + STUCK_AFTER));
        assert!(!pulse.is_alive(late));
        pulse.clone().beat(late);
        assert!(pulse.is_alive(late));
        pulse.beat(start);
        assert_eq!(pulse.age(late), Duration::ZERO, "an older beat must not age it");
    }
}
