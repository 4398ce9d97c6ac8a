//! The question whether devices are revoked whose peers are held and named by no row: no read shows these
//! devices, and no mark tells of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event::Action;
use crate::model::{Departed, PublicKey};
use crate::plan::Held;

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

    /// When to ask, if the database is `connected` and some of the `held` peers are named by no row.
    pub fn due(&self, held: &Held, connected: bool) -> Option<Instant> {
        match self.question {
            Question::Due(at) if connected && held.gone() > 0 => Some(at),
            Question::Due(_) | Question::Asked => None,
        }
    }

    /// Asks about the devices of those peers, if that is due. `names` tells which devices these are: one that
    /// is not known cannot be asked for.
    pub fn begin_question(
        &mut self,
        held: &Held,
        names: &BTreeMap<PublicKey, Departed>,
        connected: bool,
        now: Instant,
    ) -> Option<Action> {
        self.due(held, connected).filter(|at| *at <= now)?;
        let named = held.without_row().filter_map(|key| names.get_key_value(key));
        let devices: BTreeMap<_, _> = named.map(|(key, who)| (*key, who.device_id)).collect();
        if devices.is_empty() {
            self.answered(held, now);
            return None;
        }
        self.question = Question::Asked;
        Some(Action::AskRevoked(devices))
    }

    /// The database answered, or could not.
    pub fn answered(&mut self, held: &Held, now: Instant) {
        let tens_of_thousands = u32::try_from(held.gone()).unwrap_or(u32::MAX) / FEW;
        self.question = Question::Due(now + ASK_EVERY * (1 + tens_of_thousands));
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::{DeviceId, PeerId, UserId};

    /// So many peers that are held without a row, and their names.
    fn held(peers: u32) -> (Held, BTreeMap<PublicKey, Departed>) {
        let key = |number: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            PublicKey::from_bytes(bytes).unwrap()
        };
        let id = uuid::Uuid::from_u128(1);
        let who = Departed {
            peer_id: PeerId(id),
            device_id: DeviceId(id),
            user_id: UserId(id),
            device_name: "laptop".into(),
            username: "ann".into(),
        };
        let since = (1..=peers).map(|number| (key(number), SystemTime::UNIX_EPOCH));
        (Held::recalled(since), (1..=peers).map(|number| (key(number), who.clone())).collect())
    }

    #[test]
    fn database_is_asked_at_once_and_then_at_intervals_that_grow_with_the_peers() {
        let start = Instant::now();
        let mut revoked = Revoked::new(start);
        let (one, names) = held(1);
        assert_eq!((revoked.due(&held(0).0, true), revoked.due(&one, false)), (None, None));
        assert!(revoked.begin_question(&one, &names, true, start).is_some());
        assert_eq!(revoked.due(&one, true), None, "one question at a time");
        for (peers, secs) in [(1, 1), (9_999, 1), (30_000, 4)] {
            let (held, names) = held(peers);
            revoked.answered(&held, start);
            let due = start + Duration::from_secs(secs);
            assert_eq!(revoked.due(&held, true), Some(due));
            assert!(revoked.begin_question(&held, &names, true, start).is_none());
            assert!(revoked.begin_question(&held, &names, true, due).is_some());
        }
    }

    #[test]
    fn devices_that_are_not_known_are_not_asked_for() {
        let start = Instant::now();
        let mut revoked = Revoked::new(start);
        let (held, _) = held(3);
        assert!(revoked.begin_question(&held, &BTreeMap::new(), true, start).is_none());
        assert!(revoked.due(&held, true).is_some_and(|due| due > start));
    }
}
