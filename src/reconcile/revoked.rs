//! The question whether devices are revoked whose peers are held and named by no row: no read shows these
//! devices, and no mark tells of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event::Action;
use crate::model::{DeviceId, PublicKey};

/// Between two questions about few peers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How many peers make these last twice as long: the question costs both sides some microseconds for each.
const FEW: u32 = 10_000;

/// When the database is asked which devices are revoked.
#[derive(Debug)]
pub(super) struct Revoked {
    question: Question,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Due(Instant),
    Asked,
}

impl Revoked {
    pub const fn new(now: Instant) -> Self {
        Self { question: Question::Due(now) }
    }

    /// When to ask, if the database is `connected` and so many held peers are named by no row.
    pub fn due(&self, gone: usize, connected: bool) -> Option<Instant> {
        match self.question {
            Question::Due(at) if connected && gone > 0 => Some(at),
            Question::Due(_) | Question::Asked => None,
        }
    }

    /// Asks about the devices of those peers, if that is due. A device that is not known cannot be asked for.
    pub fn begin_question(
        &mut self,
        gone: usize,
        connected: bool,
        devices: impl FnOnce() -> BTreeMap<PublicKey, DeviceId>,
        now: Instant,
    ) -> Option<Action> {
        self.due(gone, connected).filter(|at| *at <= now)?;
        let devices = devices();
        if devices.is_empty() {
            self.answered(gone, now);
            return None;
        }
        self.question = Question::Asked;
        Some(Action::AskRevoked(devices))
    }

    /// The database answered, or could not.
    pub fn answered(&mut self, gone: usize, now: Instant) {
        let tens_of_thousands = u32::try_from(gone).unwrap_or(u32::MAX) / FEW;
        self.question = Question::Due(now + ASK_EVERY * (1 + tens_of_thousands));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> BTreeMap<PublicKey, DeviceId> {
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        [(key, DeviceId(uuid::Uuid::from_u128(1)))].into()
    }

    #[test]
    fn database_is_asked_at_once_and_then_at_intervals_that_grow_with_the_peers() {
        let start = Instant::now();
        let mut revoked = Revoked::new(start);
        assert_eq!((revoked.due(0, true), revoked.due(1, false)), (None, None));
        assert!(revoked.begin_question(1, true, devices, start).is_some());
        assert_eq!(revoked.due(1, true), None, "one question at a time");
        for (gone, secs) in [(1, 1), (9_999, 1), (100_000, 11)] {
            revoked.answered(gone, start);
            let due = start + Duration::from_secs(secs);
            assert_eq!(revoked.due(gone, true), Some(due));
            assert!(revoked.begin_question(gone, true, devices, start).is_none());
            assert!(revoked.begin_question(gone, true, devices, due).is_some());
        }
    }

    #[test]
    fn devices_that_are_not_known_are_not_asked_for() {
        let start = Instant::now();
        let mut revoked = Revoked::new(start);
        assert!(revoked.begin_question(3, true, BTreeMap::new, start).is_none());
        assert!(revoked.due(3, true).is_some_and(|due| due > start));
    }
}
