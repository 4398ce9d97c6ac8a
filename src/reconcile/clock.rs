//! The clocks as values.

use std::time::{Instant, SystemTime};

/// One moment, by both clocks of this host.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

/// Reads both clocks. Only the shell calls this.
pub(super) fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now() }
}

/// Milliseconds for people and for JSON.
pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
