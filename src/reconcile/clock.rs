//! The clocks as values.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// One moment, by both clocks of this host.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

/// One moment, by the clocks that count for sessions: this host's wall clock is none of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub instant: Instant,
    pub steady: SystemTime,
    pub database: SystemTime,
}

impl Clocks {
    /// The database's time at this time of the steady clock, which has passed.
    pub fn by_database(&self, steady: SystemTime) -> SystemTime {
        let age = self.steady.duration_since(steady).unwrap_or_default();
        self.database.checked_sub(age).unwrap_or(self.database)
    }
}

/// Reads both clocks. Only the shell calls this. The instant goes on while the host is suspended, as
/// [`Instant::now`] does not.
pub(super) fn now() -> Now {
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let boot = || clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    let (start, booted) = START.get_or_init(|| (Instant::now(), boot()));
    Now { instant: *start + boot().saturating_sub(*booted), wall: SystemTime::now() }
}

/// Milliseconds for people and for JSON.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
