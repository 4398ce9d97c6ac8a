//! Selects the denied packets that the journal shows: each kind once an hour, and few lines a minute. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A packet of the same kind is told again after this time.
const AGAIN_AFTER: Duration = Duration::from_hours(1);
/// How many lines come at once; after them, one each [`LINE_EVERY`].
const BURST: u32 = 20;
const LINE_EVERY: Duration = Duration::from_secs(6);
/// Between two lines that sum up what no line told.
const SUM_EVERY: Duration = Duration::from_mins(1);
/// How many kinds are distinguished.
const KINDS: usize = 1_024;

/// The lines that were written, and those that were left out.
#[derive(Debug)]
pub struct Said {
    kinds: HashMap<String, Kind>,
    lines_left: u32,
    refilled_at: Instant,
    untold: u64,
    summed_at: Instant,
}

#[derive(Debug)]
struct Kind {
    said_at: Instant,
    more: u64,
}

/// A line for the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// This packet, and how many of its kind were logged since the last one that was told.
    Packet {
        more: u64,
    },
    Nothing,
}

impl Said {
    /// Nothing was said.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            kinds: HashMap::new(),
            lines_left: BURST,
            refilled_at: now,
            untold: 0,
            summed_at: now,
        }
    }

    /// A packet of this kind was logged.
    pub fn packet(&mut self, kind: &str, now: Instant) -> Say {
        self.refill(now);
        if let Some(known) = self.kinds.get_mut(kind)
            && now.duration_since(known.said_at) < AGAIN_AFTER
        {
            known.more += 1;
            return Say::Nothing;
        }
        if self.lines_left == 0 {
            self.untold += 1;
            return Say::Nothing;
        }
        self.lines_left -= 1;
        if self.kinds.len() >= KINDS {
            self.kinds.retain(|_, kind| now.duration_since(kind.said_at) < AGAIN_AFTER);
        }
        if self.kinds.len() >= KINDS {
            self.kinds.clear();
        }
        let known = self.kinds.insert(kind.to_owned(), Kind { said_at: now, more: 0 });
        Say::Packet { more: known.map_or(0, |known| known.more) }
    }

    /// The kinds that were told an hour ago, each with how many of it were logged since: told now, though
    /// no other may come.
    pub fn past(&mut self, now: Instant) -> Vec<(String, u64)> {
        let is_past = |_: &String, kind: &mut Kind| {
            now.duration_since(kind.said_at) >= AGAIN_AFTER && kind.more > 0
        };
        let mut past: Vec<_> =
            self.kinds.extract_if(is_past).map(|(name, kind)| (name, kind.more)).collect();
        past.sort_unstable();
        past
    }

    /// How many packets of other kinds no line told, if that is to be said now.
    pub fn untold(&mut self, now: Instant) -> Option<u64> {
        let due = now.duration_since(self.summed_at) >= SUM_EVERY;
        if self.untold == 0 || !due {
            return None;
        }
        self.summed_at = now;
        Some(std::mem::take(&mut self.untold))
    }

    fn refill(&mut self, now: Instant) {
        while self.lines_left < BURST && now.duration_since(self.refilled_at) >= LINE_EVERY {
            self.refilled_at += LINE_EVERY;
            self.lines_left += 1;
        }
        if self.lines_left == BURST {
            self.refilled_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_told_once_an_hour_with_its_number() {
        let start = Instant::now();
        let mut said = Said::new(start);
        assert_eq!(said.packet("a", start), Say::Packet { more: 0 });
        for minute in 1..60 {
            let now = start + Duration::from_mins(minute);
            assert_eq!(said.packet("a", now), Say::Nothing);
        }
        assert_eq!(said.packet("b", start), Say::Packet { more: 0 });
        assert_eq!(said.packet("a", start + AGAIN_AFTER), Say::Packet { more: 59 });
        assert_eq!(said.untold(start + AGAIN_AFTER), None, "each kind was told");
    }

    #[test]
    fn sum_of_a_kind_is_told_after_an_hour_though_no_packet_comes() {
        let start = Instant::now();
        let mut said = Said::new(start);
        for kind in ["a", "b", "b", "b"] {
            said.packet(kind, start);
        }
        assert_eq!(said.past(start + AGAIN_AFTER / 2), []);
        assert_eq!(said.past(start + AGAIN_AFTER), [("b".to_owned(), 2)]);
        assert_eq!(said.past(start + AGAIN_AFTER), [], "it was told");
        assert_eq!(said.packet("b", start + AGAIN_AFTER), Say::Packet { more: 0 });
    }

    #[test]
    fn flood_of_kinds_is_summed_and_takes_bounded_memory() {
        let start = Instant::now();
        let mut said = Said::new(start);
        let (mut lines, mut summed) = (0, 0);
        for number in 0..100_000_u32 {
            // A thousand packets a second, each of another kind.
            let now = start + Duration::from_millis(number.into());
            lines += u64::from(said.packet(&number.to_string(), now) != Say::Nothing);
            summed += said.untold(now).unwrap_or_default();
        }
        assert_eq!(lines, u64::from(BURST) + 100 / LINE_EVERY.as_secs());
        assert_eq!(summed + lines + said.untold, 100_000);
        assert!(said.kinds.len() <= KINDS);
    }
}
