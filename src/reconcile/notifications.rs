//! Notifications: what they announce, and which of them are missed.

use std::time::{Duration, Instant};

use super::note::Note;

/// A notification that has not come this long after its change was read counts as missed.
const NOTIFY_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Notifications {
    /// The announcement since the last read began.
    announcement: Announcement,
    /// When changes were found whose notification has not come.
    suspicion: Option<Instant>,
    /// Tables whose changes are not announced.
    unannounced: Vec<String>,
    received: u64,
    missed: u64,
}

/// The cause of a read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Announcement {
    /// A timer or an operator.
    #[default]
    None,
    /// The connection was made: before that no notification could arrive, so none was missed.
    Connected,
    /// The first notification arrived at this moment.
    Notified(Instant),
}

impl Announcement {
    /// When the notification arrived, or else `otherwise`.
    pub const fn notified_at(self, otherwise: Instant) -> Instant {
        match self {
            Self::Notified(at) => at,
            Self::None | Self::Connected => otherwise,
        }
    }
}

impl Notifications {
    pub const fn received(&self) -> u64 {
        self.received
    }

    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// Tables whose changes are not announced.
    pub fn unannounced(&self) -> &[String] {
        &self.unannounced
    }

    /// Whether changes to every table are announced.
    pub const fn announce_all(&self) -> bool {
        self.unannounced.is_empty()
    }

    pub fn connected(&mut self) {
        if self.announcement == Announcement::None {
            self.announcement = Announcement::Connected;
        }
    }

    pub fn notified(&mut self, now: Instant) {
        self.received += 1;
        if !matches!(self.announcement, Announcement::Notified(_)) {
            self.announcement = Announcement::Notified(now);
        }
        self.suspicion = None;
    }

    /// Whether a notification came since the last read began.
    pub const fn is_announced(&self) -> bool {
        matches!(self.announcement, Announcement::Notified(_))
    }

    /// A read begins, and answers what came so far.
    pub const fn begin_read(&mut self) -> Announcement {
        std::mem::replace(&mut self.announcement, Announcement::None)
    }

    /// A read that this asked for found changes. Where their notification should have come and has
    /// not, it may still be on the way.
    pub fn found(&mut self, asked_by: Announcement, now: Instant) {
        if asked_by == Announcement::None && self.announcement == Announcement::None {
            self.suspicion = Some(now);
        }
    }

    /// When a notification counts as missed.
    pub fn due(&self) -> Option<Instant> {
        self.suspicion.map(|found_at| found_at + NOTIFY_WITHIN)
    }

    /// Whether a notification counts as missed now. `is_owed` says whether one should have come for changes
    /// that were found then.
    pub fn let_time_pass(&mut self, now: Instant, is_owed: impl FnOnce(Instant) -> bool) -> bool {
        let found_at = self.suspicion.take_if(|found_at| *found_at + NOTIFY_WITHIN <= now);
        let missed = found_at.is_some_and(is_owed);
        self.missed += u64::from(missed);
        missed
    }

    /// Returns what to say, if other tables are unannounced than before.
    pub fn set_unannounced(&mut self, tables: Vec<String>) -> Option<Note> {
        if self.unannounced == tables {
            return None;
        }
        self.unannounced.clone_from(&tables);
        let over = tables.is_empty();
        Some(if over { Note::AnnouncedAgain } else { Note::Unannounced { tables } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_without_its_notification_is_missed_after_a_while() {
        let now = Instant::now();
        for notified in [false, true] {
            let mut notifications = Notifications::default();
            let asked_by = notifications.begin_read();
            if notified {
                notifications.notified(now);
            }
            notifications.found(asked_by, now);
            let owed = |found_at| found_at == now;
            assert!(!notifications.let_time_pass(now, owed));
            assert_eq!(notifications.let_time_pass(now + NOTIFY_WITHIN, owed), !notified);
            assert_eq!(notifications.missed(), u64::from(!notified));
        }
    }

    #[test]
    fn a_change_has_waited_since_its_first_notification() {
        let now = Instant::now();
        let later = now + NOTIFY_WITHIN;
        let mut notifications = Notifications::default();
        assert_eq!(notifications.begin_read().notified_at(later), later);
        notifications.connected();
        notifications.notified(now);
        notifications.notified(later);
        assert_eq!(notifications.begin_read().notified_at(later), now);
    }
}
