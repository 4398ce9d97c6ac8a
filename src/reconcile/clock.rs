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
    /// `None`: no read has told it.
    pub database: Option<SystemTime>,
}

/// One moment, and the time of the database then, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct DatabaseNow {
    pub instant: Instant,
    pub time: SystemTime,
    /// Whether a read of this run has told it.
    pub is_read: bool,
}

impl DatabaseNow {
    /// When the database's clock shows this time; at once if it has passed.
    pub fn instant_at(&self, time: SystemTime) -> Instant {
        self.instant + time.duration_since(self.time).unwrap_or_default()
    }
}

impl Clocks {
    /// The `database`'s time at this time of the steady clock, which has passed.
    pub fn by(&self, database: SystemTime, steady: SystemTime) -> SystemTime {
        let age = self.steady.duration_since(steady).unwrap_or_default();
        database.checked_sub(age).unwrap_or(database)
    }
}

/// Reads both clocks. Only the shell calls this. The instant goes on while the host is suspended, as
/// [`Instant::now`] does not.
pub(super) fn now() -> Now {
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (start, started) = START.get_or_init(|| (Instant::now(), up()));
    Now { instant: *start + up().saturating_sub(*started), wall: SystemTime::now() }
}

/// How long this host has been up, suspended or not. Only the shell calls this.
pub(super) fn up() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// The name that the kernel gives this boot of the host. Only the shell calls this.
pub(super) fn boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// Whether this deadline, if there is one, has come.
pub(super) fn is_due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

/// Milliseconds for people and for JSON.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
