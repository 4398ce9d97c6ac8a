//! What is known of the database's clock.

use std::time::{Instant, SystemTime};

use super::Source;
use crate::reconcile::clock::{DatabaseNow, Now};

/// A time that the database's clock showed, and when that was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clock {
    Unknown,
    /// The last good rows were read at this time or later, before this host booted.
    After(SystemTime, Instant),
    /// An earlier run read it since this host booted.
    Kept(SystemTime, Instant),
    /// The last read told it.
    Read(SystemTime, Instant),
}

impl Clock {
    /// The last good rows are followed, which were read `as_of` this time. `database_now`: its time by this
    /// host's steady clock.
    pub fn restored(as_of: SystemTime, database_now: Option<SystemTime>, now: Now) -> Self {
        match database_now {
            Some(time) => Self::Kept(time.max(as_of), now.instant),
            None => Self::After(as_of, now.instant),
        }
    }

    pub fn time(self, now: Now) -> SystemTime {
        let later = |at: Instant| now.instant.duration_since(at);
        match self {
            Self::Unknown => now.wall,
            Self::After(time, at) => (time + later(at)).max(now.wall),
            Self::Kept(time, at) | Self::Read(time, at) => time + later(at),
        }
    }

    /// Whether this host's wall clock, which may be set, does not count.
    pub const fn is_exact(self) -> bool {
        matches!(self, Self::Kept(..) | Self::Read(..))
    }

    /// Whether a read of this run has told it.
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Read(..))
    }
}

impl Source {
    /// The database's clock, as far as the last read tells, of this run or of an earlier one. Only if the host
    /// has booted since does its wall clock count.
    pub fn clock(&self, now: Now) -> SystemTime {
        self.clock.time(now)
    }

    /// The database's clock; `None` while this host's wall clock counts.
    pub fn exact_clock(&self, now: Now) -> Option<SystemTime> {
        self.clock.is_exact().then(|| self.clock(now))
    }

    /// This moment, with [`Self::clock`].
    pub fn database_now(&self, now: Now) -> DatabaseNow {
        DatabaseNow { instant: now.instant, time: self.clock(now), is_read: self.knows_clock() }
    }

    /// Whether a read of this run has told the database's clock.
    const fn knows_clock(&self) -> bool {
        self.clock.is_read()
    }

    /// The last good rows are followed, [`Clock::restored`], if there is a time `as_of` which they were read.
    pub fn rows_are_restored(
        &mut self,
        as_of: Option<SystemTime>,
        database_now: Option<SystemTime>,
        now: Now,
    ) {
        if let Some(as_of) = as_of.filter(|_| !self.knows_clock()) {
            self.clock = Clock::restored(as_of, database_now, now);
        }
    }

    /// No row had changed by this time. What waited to be addressed may be answered with an earlier time: a clock
    /// does not run back.
    pub(super) fn no_row_changed(&mut self, taken_at: SystemTime, now: Now) {
        self.clock = Clock::Read(self.clock(now).max(taken_at), now.instant);
    }

    /// The database's clock stood at `taken_at` at some moment of the read, which may have taken long:
    /// what we knew of the clock before says where in between.
    pub(super) fn set_clock(&mut self, taken_at: SystemTime, began_at: Instant, now: Now) {
        let latest = taken_at + now.instant.duration_since(began_at);
        let known = if self.knows_clock() { self.clock(now) } else { taken_at };
        self.clock = Clock::Read(known.clamp(taken_at, latest), now.instant);
    }
}
