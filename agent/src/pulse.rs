//! The loop's sign of life, which systemd's watchdog and `/healthz` depend on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The loop is stuck when its last beat is older than this.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// When the loop last beat. Clones share it.
#[derive(Debug, Clone)]
pub struct Pulse {
    epoch: Instant,
    /// Milliseconds after `epoch`.
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// Starts with a beat at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { epoch: now, last_ms: Arc::default() }
    }

    /// Records a beat. The loop calls this each time round.
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

    /// Whether the last beat is no older than [`STUCK_AFTER`].
    #[must_use]
    pub fn is_alive(&self, now: Instant) -> bool {
        self.age(now) <= STUCK_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_loop_is_alive() {
        assert!(gatepost::reconcile::ROUND_AT_MOST * 2 < STUCK_AFTER);
    }

    #[test]
    fn pulse_is_alive_only_with_recent_beats() {
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
