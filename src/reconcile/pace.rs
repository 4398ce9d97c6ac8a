//! How often hints may cause reads.
//!
//! Another program that has the bell's login at the broker can publish hints without end, to all gateways
//! at once. Each would be right to look again, and together they would take the database's time.

use std::time::{Duration, Instant};

/// How many reads may follow each other at once.
const AT_ONCE: u32 = 20;
/// The gateways of a database together make at most so many reads a second that hints cause: no more than
/// a bell asks for, which looks again after 250 ms once it rang a thousand.
const READS_PER_SEC: u32 = 4_000;
/// No bell rings more often.
const LEAST_GAP: Duration = Duration::from_millis(20);

/// A bucket of reads, which fills while none is made.
#[derive(Debug)]
pub(super) struct Pace {
    full_at: Instant,
    gap: Duration,
}

impl Pace {
    pub const fn new(now: Instant) -> Self {
        Self { full_at: now, gap: LEAST_GAP }
    }

    /// Notes how many gateways share the database.
    pub fn among(&mut self, gateways: u32) {
        self.gap = LEAST_GAP.max(Duration::from_secs(gateways.into()) / READS_PER_SEC);
    }

    /// When the next read that a hint causes may begin.
    pub fn next_at(&self, now: Instant) -> Instant {
        self.full_at.checked_sub(self.gap * (AT_ONCE - 1)).map_or(now, |at| at.max(now))
    }

    /// Such a read begins.
    pub fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads within so many seconds in which hints come without end.
    fn reads(gateways: u32, secs: u64) -> u32 {
        let start = Instant::now() + Duration::from_hours(1);
        let mut pace = Pace::new(start);
        pace.among(gateways);
        let mut reads = 0;
        for millis in 0..secs * 1_000 {
            let now = start + Duration::from_millis(millis);
            while pace.next_at(now) <= now {
                pace.take(now);
                reads += 1;
            }
        }
        reads
    }

    #[test]
    fn gateways_together_read_at_most_four_thousand_times_a_second_because_of_hints() {
        assert_eq!(reads(1, 10), AT_ONCE - 1 + 50 * 10);
        assert_eq!(reads(80, 10), AT_ONCE - 1 + 50 * 10, "each as often as a bell rings");
        assert_eq!(reads(1_000, 10), AT_ONCE - 1 + 4 * 10);
        assert_eq!(reads(10_000, 100), AT_ONCE - 1 + 40);
    }
}
