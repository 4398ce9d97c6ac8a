//! Held peers that no row names. No read shows what becomes of their devices, and no mark tells of it, so the agent
//! asks the database at intervals.
//!
//! A revoked device takes its peer out. So does a device that was not barred before, and is now because it or its user
//! was deleted or the user is not active any more, if these are few: many at once may be part of the accident that took
//! the rows, and wait for an operator.
//!
//! Policies are compared from answer to answer, because the accident may also have taken users, groups or policies, and
//! a restore brings tables back one after the other: a peer loses what policies granted at the last answer and do not
//! grant any more. The first answer is compared with what the peer has, if any policy applies to any of the devices. An
//! answer that lacks the device ends the comparison, and the next one that has it begins it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device_standings::{AskedDevice, DeviceStandings};
use super::event::Action;
use super::history::KeptWithoutRow;
use crate::model::{Departed, DeviceStanding, Profile, PublicKey};
use crate::plan::guard::ALWAYS_ALLOWED_PEERS;
use crate::plan::{ByPair, Held};

/// Between two questions about few peers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How many peers make these last twice as long: the question costs the database some 30 µs for each.
const FEW: u32 = 10_000;
/// The pause after a question lasts at least this many times as long as its answer took.
const RESTS: u32 = 4;

/// What the database said about the devices of such peers, and when it is asked.
#[derive(Debug)]
pub(super) struct WithoutRow {
    question: Question,
    /// By the last answer.
    heard: BTreeMap<PublicKey, DeviceStanding>,
    /// What policies grant peers that keep more, until a plan takes that from them.
    granted: BTreeMap<PublicKey, Arc<Profile>>,
    /// From whom policies took something.
    narrowed: BTreeSet<PublicKey>,
    /// [`Held::barrings`] at the last plan or answer.
    barrings: u64,
    /// Whether something else is to be kept than was last written to the disk.
    differs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Due(Instant),
    AskedAt(Instant),
}

impl WithoutRow {
    /// `narrowed`: in an earlier run.
    pub const fn new(now: Instant, narrowed: BTreeSet<PublicKey>) -> Self {
        Self {
            question: Question::Due(now),
            heard: BTreeMap::new(),
            granted: BTreeMap::new(),
            narrowed,
            barrings: 0,
            differs: false,
        }
    }

    /// What policies grant peers that keep more.
    pub const fn granted(&self) -> &BTreeMap<PublicKey, Arc<Profile>> {
        &self.granted
    }

    /// When to ask, if the database is `connected` and some of the `held` peers are named by no row.
    pub fn due(&self, held: &Held, connected: bool) -> Option<Instant> {
        match self.question {
            Question::Due(at) if connected && held.gone() > 0 => Some(at),
            Question::Due(_) | Question::AskedAt(_) => None,
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
        self.question = Question::AskedAt(now);
        let device = |key| {
            let (device_id, peer) = (names.get(key)?.device_id, held.peers().get(key)?);
            let dns_servers = Vec::from_iter(peer.dns_servers());
            Some((*key, AskedDevice { device_id, dns_servers }))
        };
        let asked: BTreeMap<_, _> = held.without_row().filter_map(device).collect();
        if asked.is_empty() {
            self.rest(held, now);
            return None;
        }
        Some(Action::AskDevices(asked))
    }

    /// The database could not be asked. What it said before holds on.
    pub fn not_answered(&mut self, held: &Held, now: Instant) {
        self.rest(held, now);
    }

    /// Sets when to ask again.
    fn rest(&mut self, held: &Held, now: Instant) {
        let tens_of_thousands = u32::try_from(held.gone()).unwrap_or(u32::MAX) / FEW;
        let took = match self.question {
            Question::AskedAt(at) => now.duration_since(at),
            Question::Due(_) => Duration::ZERO,
        };
        let pause = (ASK_EVERY * (1 + tens_of_thousands)).max(took * RESTS);
        self.question = Question::Due(now + pause);
    }

    /// The database answered. Returns the peers whose devices take them out, and the others that are to be narrowed.
    /// The removal of those that are `confirmed` waits no more.
    pub fn answered(
        &mut self,
        answer: DeviceStandings,
        held: &mut Held,
        confirmed: &BTreeSet<PublicKey>,
        now: Instant,
    ) -> (BTreeSet<PublicKey>, BTreeSet<PublicKey>) {
        self.rest(held, now);
        let (taken_out, mut less) = (self.taken_out(&answer, held, confirmed), BTreeMap::new());
        // What is left where policies granted one profile and grant another; `None`: nothing was taken.
        let mut left = ByPair::default();
        for (key, standing) in &answer.of {
            let before = self.heard.get(key);
            match (before.map(DeviceStanding::grants), standing.grants()) {
                (None, Some(now)) if answer.by_policies => {
                    less.insert(*key, Arc::clone(now));
                }
                (Some(Some(before)), Some(now)) => {
                    let left =
                        left.get(before, now, |before, now| now.all_but_lost(before).map(Arc::new));
                    less.extend(left.map(|left| (*key, left)));
                }
                _ => {}
            }
        }
        self.heard = answer.of;
        let less = held.narrowing(less);
        let narrowed: BTreeSet<_> = less.keys().copied().collect();
        self.differs |= !narrowed.is_subset(&self.narrowed);
        self.narrowed.extend(&narrowed);
        for (key, granted) in less {
            let both = self.granted.get(&key).map(|before| Arc::new(before.meet(&granted)));
            self.granted.insert(key, both.unwrap_or(granted));
        }
        (taken_out, narrowed)
    }

    /// The peers whose devices are revoked, and those whose devices are newly barred, if these are few. If they are many,
    /// remembers that they were barred.
    fn taken_out(
        &mut self,
        answer: &DeviceStandings,
        held: &mut Held,
        confirmed: &BTreeSet<PublicKey>,
    ) -> BTreeSet<PublicKey> {
        let (mut taken_out, mut barred) = (BTreeSet::new(), BTreeSet::new());
        let before = held.barred();
        for (key, standing) in &answer.of {
            let Some(peer) = held.peers().get(key).filter(|peer| peer.is_gone()) else { continue };
            match standing {
                DeviceStanding::Revoked => drop(taken_out.insert(*key)),
                DeviceStanding::Barred(_) if confirmed.contains(key) => {
                    taken_out.insert(*key);
                }
                DeviceStanding::Barred(_) if !peer.was_barred() => drop(barred.insert(*key)),
                DeviceStanding::Granted(_) => held.set_barred(key, false),
                DeviceStanding::Barred(_) | DeviceStanding::Gone => {}
            }
        }
        let going = confirmed.iter().filter(|key| held.is_without_row(key)).count();
        let few = ((held.gone() - going) / 2).clamp(1, ALWAYS_ALLOWED_PEERS);
        let were_put_right = held.barred() < before;
        if barred.len() <= few {
            taken_out.append(&mut barred);
        }
        self.differs |= were_put_right || !barred.is_empty();
        barred.iter().for_each(|key| held.set_barred(key, true));
        self.barrings = held.barrings();
        taken_out
    }

    /// A plan was made that leaves these peers `held`, and those `unjudged` that no rows judge now.
    pub fn planned(&mut self, held: &Held, unjudged: &Held) {
        if held.gone() == 0 && unjudged.is_empty() {
            self.heard.clear();
        }
        if !self.granted.is_empty() {
            let (waiting, judged) = std::mem::take(&mut self.granted)
                .into_iter()
                .partition(|(key, _)| unjudged.peers().contains_key(key));
            self.granted = waiting;
            self.granted.extend(held.narrowing(judged));
        }
        self.differs |= held.barrings() != self.barrings;
        self.barrings = held.barrings();
        self.forget(held, unjudged);
    }

    /// Whether something else is to be kept than was last written to the disk.
    pub const fn differs(&self) -> bool {
        self.differs
    }

    /// What is to be written to the disk.
    pub fn write(&mut self, held: &Held, unjudged: &Held) -> KeptWithoutRow {
        self.differs = false;
        let barred = held.were_barred().chain(unjudged.were_barred()).copied().collect();
        KeptWithoutRow { narrowed: self.narrowed.clone(), barred }
    }

    /// Forgets the narrowed peers whose row is back or that are gone: their rows decide.
    fn forget(&mut self, held: &Held, unjudged: &Held) {
        let stays =
            |key: &PublicKey| held.is_without_row(key) || unjudged.peers().contains_key(key);
        let before = self.narrowed.len();
        self.narrowed.retain(stays);
        self.differs |= self.narrowed.len() != before;
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::{
        DesiredState, DeviceId, ObservedState, PeerId, PolicyRow, SnapshotRows, TargetType, UserId,
    };
    use crate::plan::{Scope, plan};
    use crate::test_rows::{id, local, peer_row, policy_row, snapshot, target};

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
        (
            Held::recalled(since, &BTreeSet::new()),
            (1..=peers).map(|number| (key(number), who.clone())).collect(),
        )
    }

    #[test]
    fn database_is_asked_at_once_and_then_at_intervals_that_grow_with_the_peers() {
        let start = Instant::now();
        let mut without_row = WithoutRow::new(start, BTreeSet::new());
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

    /// A peer that is held without a row and keeps what this policy allows, and its key.
    fn keeping(destination: &str) -> (Held, PublicKey) {
        let policy = PolicyRow {
            destinations: vec![destination.parse().unwrap()],
            targets: vec![target(TargetType::User, id(3u8))],
            ..policy_row(1)
        };
        let build = |peers| {
            let rows = SnapshotRows { policies: vec![policy.clone()], ..snapshot(peers) };
            DesiredState::build(Arc::new(local()), rows).unwrap()
        };
        let (before, now) = (build(vec![peer_row(3)]), build(Vec::new()));
        let mut observed = ObservedState::default();
        let steps = plan(&before, &observed, &Scope::Everything).unwrap();
        steps.steps().iter().for_each(|step| observed.apply(step));
        let key = *before.peers().keys().next().unwrap();
        (Held::of([key], &now, &observed, &Held::default()), key)
    }

    #[test]
    fn what_is_to_be_taken_outlasts_a_question_that_fails_until_a_plan_takes_it() {
        let start = Instant::now();
        let (mut held, key) = keeping("172.16.1.0/24");
        let nothing = || DeviceStanding::Granted(Arc::default());
        let answer =
            |standing| DeviceStandings { of: BTreeMap::from([(key, standing)]), by_policies: true };
        let mut without_row = WithoutRow::new(start, BTreeSet::new());
        let (revoked, narrowed) =
            without_row.answered(answer(nothing()), &mut held, &BTreeSet::new(), start);
        assert!(revoked.is_empty() && narrowed.contains(&key));
        without_row.not_answered(&held, start);
        assert!(without_row.granted().contains_key(&key));
        without_row.planned(&Held::default(), &held);
        assert!(without_row.granted().contains_key(&key), "no rows judge it for now");
        without_row.planned(&held, &Held::default());
        assert!(without_row.granted().contains_key(&key), "the plan did not take it");
        let mut taken = held.clone().narrowed(without_row.granted());
        without_row.planned(&taken, &Held::default());
        assert!(without_row.granted().is_empty());
        let again = without_row.answered(answer(nothing()), &mut taken, &BTreeSet::new(), start);
        assert_eq!(again, Default::default());
        let revoked = without_row.answered(
            answer(DeviceStanding::Revoked),
            &mut taken,
            &BTreeSet::new(),
            start,
        );
        assert_eq!(revoked, (BTreeSet::from([key]), BTreeSet::new()));
    }

    #[test]
    fn disk_learns_who_is_newly_barred_although_as_many_were_put_right() {
        let mut without_row = WithoutRow::new(Instant::now(), BTreeSet::new());
        let (two, _) = held(2);
        let all = || two.peers().iter().map(|(key, peer)| (*key, peer.since()));
        let mut before = Held::default();
        for key in two.peers().keys() {
            let barred = BTreeSet::from([*key]);
            let now = Held::recalled(all(), &barred).count_new_since(&before);
            without_row.planned(&now, &Held::default());
            assert!(without_row.differs());
            assert_eq!(without_row.write(&now, &Held::default()).barred, barred);
            without_row.planned(&now, &Held::default());
            assert!(!without_row.differs(), "all of this is on the disk");
            before = now;
        }
    }

    #[test]
    fn question_that_takes_long_is_followed_by_a_longer_pause() {
        let start = Instant::now();
        let (mut held, names) = held(1);
        let mut without_row = WithoutRow::new(start, BTreeSet::new());
        assert!(without_row.begin_question(&held, &names, true, start).is_some());
        let answered = start + Duration::from_secs(3);
        without_row.answered(DeviceStandings::default(), &mut held, &BTreeSet::new(), answered);
        assert_eq!(without_row.due(&held, true), Some(answered + Duration::from_secs(12)));
    }

    #[test]
    fn devices_that_are_not_known_are_not_asked_for() {
        let start = Instant::now();
        let mut without_row = WithoutRow::new(start, BTreeSet::new());
        let (held, _) = held(3);
        assert!(without_row.begin_question(&held, &BTreeMap::new(), true, start).is_none());
        assert!(without_row.due(&held, true).is_some_and(|due| due > start));
    }
}
