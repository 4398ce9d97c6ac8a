//! Comparisons that were asked for: each is over when both sides were read anew after it was asked.

use super::event::{Action, Event, ReadKind};

/// Counts them, and how many each side has served.
#[derive(Debug, Default)]
pub(super) struct Resyncs {
    asked: u64,
    rows: Side,
    kernel: Side,
    /// How many of them the kernel was found equal for.
    proven: u64,
}

#[derive(Debug, Default)]
struct Side {
    /// How many had been asked for when the last complete reading began.
    begun: u64,
    ended: u64,
}

impl Resyncs {
    pub const fn asked(&self) -> u64 {
        self.asked
    }

    pub const fn begins(&mut self, action: &Action) {
        match action {
            Action::Read(ReadKind::Everything) => self.rows.begun = self.asked,
            Action::Observe => self.kernel.begun = self.asked,
            _ => {}
        }
    }

    pub const fn hears(&mut self, event: &Event) {
        match event {
            Event::Resync => self.asked += 1,
            Event::Read(Ok(_)) => self.rows.ended = self.rows.begun,
            Event::Observed(_) => self.kernel.ended = self.kernel.begun,
            _ => {}
        }
    }

    /// Everything that was read of both sides is equal, or made equal.
    pub fn proves(&mut self) {
        self.proven = self.rows.ended.min(self.kernel.ended);
    }

    pub const fn is_proven(&self, number: u64) -> bool {
        self.proven >= number
    }

    /// Whether both sides have been read for the one of this number.
    pub const fn is_read(&self, number: u64) -> bool {
        self.rows.ended >= number && self.kernel.ended >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_began_before_it_was_asked_for_does_not_count() {
        let unread = || Event::Observed(Err("interrupted".into()));
        let unchanged = || {
            let taken_at = std::time::SystemTime::UNIX_EPOCH;
            Event::Read(Ok(super::super::ReadAnswer::Unchanged { taken_at }))
        };
        let mut resyncs = Resyncs::default();
        resyncs.begins(&Action::Observe);
        resyncs.hears(&Event::Resync);
        resyncs.hears(&unread());
        resyncs.begins(&Action::Read(ReadKind::Everything));
        resyncs.hears(&unchanged());
        assert!(!resyncs.is_read(1), "the kernel was not read for it");
        resyncs.begins(&Action::Observe);
        resyncs.hears(&Event::Resync);
        resyncs.hears(&unread());
        assert!(resyncs.is_read(1) && !resyncs.is_read(2));
        resyncs.begins(&Action::Read(ReadKind::Changes));
        resyncs.hears(&unchanged());
        assert!(!resyncs.is_read(2), "not everything was read");
    }
}
