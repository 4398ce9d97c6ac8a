//! When the database is to be connected to, asked or read next.

use std::time::Instant;

use super::Source;
use super::connection::Connection;
use crate::reconcile::clock::Now;

impl Source {
    /// When [`Self::let_time_pass`], [`Self::begin_connect`] or [`Self::begin_read`] has something to do next.
    pub fn due(&self, now: Now) -> Option<Instant> {
        // A read whose time has come waits for the job under way, not for the timer.
        let read = self.read_due(now.instant).filter(|at| *at > now.instant);
        let timers = [self.connect_due(), self.poll_due(), self.resync_due(), read];
        timers.into_iter().chain([self.notifications.due(), self.bell.due()]).flatten().min()
    }

    pub(super) const fn connect_due(&self) -> Option<Instant> {
        match self.connection {
            Connection::Down { retry_at, .. } => Some(retry_at),
            Connection::Connecting { .. } | Connection::Up { .. } => None,
        }
    }

    pub(super) fn poll_due(&self) -> Option<Instant> {
        self.is_connected().then_some(self.next_poll)
    }

    pub(super) fn resync_due(&self) -> Option<Instant> {
        self.is_connected().then_some(self.next_resync)
    }

    /// When the read that is wanted may begin; `None`: none is wanted, or none may begin.
    pub(super) fn read_due(&self, now: Instant) -> Option<Instant> {
        let wanted = self.wanted.map(|_| now);
        let hinted = self.is_hinted.then(|| self.pace.next_at(now));
        let first = wanted.into_iter().chain(hinted).min()?;
        let may_read = self.is_connected() && self.reading.is_none();
        may_read.then(|| self.retry_read.map_or(first, |at| at.max(first)))
    }
}
