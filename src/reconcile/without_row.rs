//! Held peers that no row names: no read shows what becomes of their devices, and no mark tells of it. So the
//! database is asked, at intervals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::Action;
use crate::model::policy::PolicyBook;
use crate::model::{Departed, DeviceId, DeviceRows, Profile, PublicKey, Settings};
use crate::plan::{Held, HeldPeer};

/// Between two questions about few peers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How many peers make these last twice as long: the question costs the database some 30 µs for each.
const FEW: u32 = 10_000;

/// What the database says about the devices of such peers, and when it is asked.
#[derive(Debug)]
pub(super) struct WithoutRow {
    question: Question,
    /// What policies let those of these peers reach that keep more.
    granted: BTreeMap<PublicKey, Arc<Profile>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Due(Instant),
    /// The peers that were asked for, and their devices.
    Asked(BTreeMap<PublicKey, DeviceId>),
}

impl WithoutRow {
    pub const fn new(now: Instant) -> Self {
        Self { question: Question::Due(now), granted: BTreeMap::new() }
    }

    /// What policies let peers reach that keep more, by the last answer.
    pub const fn granted(&self) -> &BTreeMap<PublicKey, Arc<Profile>> {
        &self.granted
    }

    /// When to ask, if the database is `connected` and some of the `held` peers are named by no row.
    pub fn due(&self, held: &Held, connected: bool) -> Option<Instant> {
        match self.question {
            Question::Due(at) if connected && held.gone() > 0 => Some(at),
            Question::Due(_) | Question::Asked(_) => None,
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
        let asked: BTreeMap<_, _> = named.map(|(key, who)| (*key, who.device_id)).collect();
        if asked.is_empty() {
            self.not_answered(held, now);
            return None;
        }
        let devices = asked.values().copied().collect();
        self.question = Question::Asked(asked);
        Some(Action::AskDevices(devices))
    }

    /// The database could not be asked, or has nothing to say.
    pub fn not_answered(&mut self, held: &Held, now: Instant) {
        let tens_of_thousands = u32::try_from(held.gone()).unwrap_or(u32::MAX) / FEW;
        self.question = Question::Due(now + ASK_EVERY * (1 + tens_of_thousands));
        self.granted.clear();
    }

    /// The database answered. Returns the peers whose devices are revoked, and the others that keep more than
    /// policies let them reach. A device that is gone, too, says nothing: a mistake may have taken it with the peer.
    pub fn answered(
        &mut self,
        answer: &[DeviceRows],
        settings: &Settings,
        held: &Held,
        now: Instant,
    ) -> (BTreeSet<PublicKey>, BTreeSet<PublicKey>) {
        let asked = match &mut self.question {
            Question::Asked(asked) => std::mem::take(asked),
            Question::Due(_) => return Default::default(),
        };
        self.not_answered(held, now);
        let (mut revoked, mut granted) = (BTreeSet::new(), BTreeMap::new());
        for rows in answer {
            let mut book = book(rows, settings);
            for (key, id) in &asked {
                let peer = held.peers().get(key).filter(|peer| HeldPeer::is_gone(peer));
                let Some((peer, device)) = peer.zip(rows.devices.get(id)) else { continue };
                if device.revoked {
                    revoked.insert(*key);
                } else {
                    let dns_servers = Vec::from_iter(peer.dns_servers());
                    let profile = book.profile_for(device.user_id, *id, &dns_servers);
                    granted.insert(*key, profile);
                }
            }
        }
        self.granted = held.narrowing(granted);
        (revoked, self.granted.keys().copied().collect())
    }
}

/// The policies that apply to these devices.
fn book(rows: &DeviceRows, settings: &Settings) -> PolicyBook {
    let mut book = PolicyBook::new(settings);
    for device in rows.devices.values() {
        book.set_membership(device.user_id, device.group_ids.clone());
    }
    for policy in &rows.policies {
        book.set_policy(policy.id, Some(policy));
    }
    book
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
        let mut without_row = WithoutRow::new(start);
        let (one, names) = held(1);
        assert_eq!((without_row.due(&held(0).0, true), without_row.due(&one, false)), (None, None));
        assert!(without_row.begin_question(&one, &names, true, start).is_some());
        assert_eq!(without_row.due(&one, true), None, "one question at a time");
        for (peers, secs) in [(1, 1), (9_999, 1), (30_000, 4)] {
            let (held, names) = held(peers);
            without_row.not_answered(&held, start);
            let due = start + Duration::from_secs(secs);
            assert_eq!(without_row.due(&held, true), Some(due));
            assert!(without_row.begin_question(&held, &names, true, start).is_none());
            assert!(without_row.begin_question(&held, &names, true, due).is_some());
        }
    }

    #[test]
    fn devices_that_are_not_known_are_not_asked_for() {
        let start = Instant::now();
        let mut without_row = WithoutRow::new(start);
        let (held, _) = held(3);
        assert!(without_row.begin_question(&held, &BTreeMap::new(), true, start).is_none());
        assert!(without_row.due(&held, true).is_some_and(|due| due > start));
    }
}
