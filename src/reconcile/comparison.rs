//! Comparisons that operators asked for. Each ends once both sides were read after it was asked for.

use super::event::{Action, Event, ReadKind};

/// How many were asked for, and how many each side has served.
#[derive(Debug)]
pub(super) struct Comparisons {
    asked: u64,
    rows: Side,
    kernel: Side,
    /// For how many of them the kernel was found equal.
    proven: u64,
}

#[derive(Debug)]
struct Side {
    /// How many had been asked for when the last complete reading began.
    begun: u64,
    ended: u64,
}

impl Comparisons {
    pub const fn new() -> Self {
        let (rows, kernel) = (Side { begun: 0, ended: 0 }, Side { begun: 0, ended: 0 });
        Self { asked: 0, rows, kernel, proven: 0 }
    }

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

    /// Both sides are equal as they were last read, or were made equal.
    pub const fn proves(&mut self) {
        let (rows, kernel) = (self.rows.ended, self.kernel.ended);
        self.proven = if rows < kernel { rows } else { kernel };
    }

    pub const fn is_proven(&self, number: u64) -> bool {
        self.proven >= number
    }

    /// Whether both sides have been read for the comparison of this number.
    pub const fn is_read(&self, number: u64) -> bool {
        self.rows.ended >= number && self.kernel.ended >= number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::DataplaneError;

    #[test]
    fn a_reading_that_began_before_the_comparison_was_asked_for_does_not_count() {
        let unread = || Event::Observed(Err(DataplaneError::ThreadGone));
        let unchanged = || {
            let taken_at = std::time::SystemTime::UNIX_EPOCH;
            Event::Read(Ok(super::super::ReadAnswer::Unchanged { taken_at }))
        };
        let mut comparisons = Comparisons::new();
        comparisons.begins(&Action::Observe);
        comparisons.hears(&Event::Resync);
        comparisons.hears(&unread());
        comparisons.begins(&Action::Read(ReadKind::Everything));
        comparisons.hears(&unchanged());
        assert!(!comparisons.is_read(1), "the kernel was not read for it");
        comparisons.begins(&Action::Observe);
        comparisons.hears(&Event::Resync);
        comparisons.hears(&unread());
        assert!(comparisons.is_read(1) && !comparisons.is_read(2));
        comparisons.begins(&Action::Read(ReadKind::Changes));
        comparisons.hears(&unchanged());
        assert!(!comparisons.is_read(2), "not everything was read");
    }
}
