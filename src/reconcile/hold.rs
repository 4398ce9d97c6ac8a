//! The removals that the guard holds back, and the operator's confirmation of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use super::device_standings::DeviceStandings;
use super::event::{Action, Keep, ReadKind};
use super::history::{KeptWithoutRow, Withdrawals};
use super::rows::{Change, Extent, Planned, Waiting};
use super::without_row::WithoutRow;
use crate::model::{Departed, DesiredState, DeviceStanding, ObservedState, PublicKey, Touched};
use crate::plan::guard::{Guard, HeldBack, MaxRemoved, Whose};
use crate::plan::{Held, HeldPeer, Plan, PlanError};

#[derive(Debug)]
pub(super) struct Hold {
    limit: MaxRemoved,
    /// The peers that stay until an operator confirms their removal or the rows want them again.
    staying: Held,
    /// Peers that no rows of the database judge now, but that stayed when rows last judged them.
    unjudged: Held,
    /// [`Held::arrivals`] when the peers that wait were last written to the disk, and how many they were.
    written: (u64, usize),
    /// Those removals in figures; `None`: no removal is held back.
    held_back: Option<HeldBack>,
    /// [`Held::arrivals`] at the last plan.
    arrivals: u64,
    /// Whose removal was confirmed when it was held back.
    confirmed: BTreeSet<PublicKey>,
    /// Those in `confirmed` that the database's answer about their devices confirmed, not an operator.
    confirmed_by_answer: BTreeSet<PublicKey>,
    /// The time by which the setting confirmed removals.
    confirmed_at: Option<SystemTime>,
    without_row: WithoutRow,
    verdict: Verdict,
    /// How much was read since the last verdict.
    read: ReadKind,
}

/// Whether the rows that were read may be persisted as last-good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// All of them may: the cache knows.
    Kept,
    /// Rows were read that no plan was made from yet.
    Open,
    /// The cache knows that some of them wait for the operator.
    Waiting,
}

/// What a plan's removals change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Update {
    news: Option<HeldBack>,
    keep: Option<Keep>,
}

/// A plan without the removals that are held back.
#[derive(Debug)]
pub(super) struct Guarded {
    pub plan: Plan,
    pub extent: Extent,
    /// Why only withdrawals are planned, although rows decide.
    pub obstacle: Option<PlanError>,
    /// Other peers are held back than before.
    pub news: Option<HeldBack>,
    /// The verdict on the rows, where the cache must hear it.
    pub keep: Option<Keep>,
}

/// What follows from an answer about the devices of held peers.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// The peers that go, as far as their names are known.
    pub taken_out: BTreeMap<PublicKey, Departed>,
    pub change: Change,
}

/// The view for readers.
#[derive(Debug, Clone, Copy)]
pub(super) struct HoldView<'a> {
    pub staying: &'a Held,
    pub held_back: Option<HeldBack>,
    /// How many peers stay until rows of the database judge them.
    pub unjudged: usize,
}

impl Hold {
    /// `remembered`: among others, the peers that an earlier run held, and since when.
    pub fn new(limit: MaxRemoved, remembered: &Withdrawals, now: Instant) -> Self {
        let (narrowed, unjudged) = (&remembered.without_row.narrowed, remembered.recalled());
        Self {
            limit,
            staying: Held::default(),
            written: (unjudged.arrivals(), unjudged.peers().len()),
            unjudged,
            held_back: None,
            arrivals: 0,
            confirmed_at: None,
            confirmed: BTreeSet::new(),
            confirmed_by_answer: BTreeSet::new(),
            without_row: WithoutRow::new(now, narrowed.clone()),
            verdict: Verdict::Kept,
            read: ReadKind::Changes,
        }
    }

    pub const fn set_limit(&mut self, limit: MaxRemoved) {
        self.limit = limit;
    }

    pub fn view(&self) -> HoldView<'_> {
        let Self { staying, held_back, .. } = self;
        HoldView { staying, held_back: *held_back, unjudged: self.unjudged.peers().len() }
    }

    /// Whether no removal waits for an operator.
    pub const fn holds_nothing_back(&self) -> bool {
        self.held_back.is_none()
    }

    /// Whether no removal waits, neither for an operator nor for rows of the database that judge the peer.
    pub fn lets_all_go(&self) -> bool {
        self.holds_nothing_back() && self.unjudged.is_empty()
    }

    /// Lets `plan` make a plan under the guard, from what was `observed`. `rows_decide`: it follows the rows,
    /// not `[stale]`, unless something is in its way. `confirmed_at`: the rows' setting.
    pub fn plan(
        &mut self,
        confirmed_at: Option<SystemTime>,
        observed: &ObservedState,
        rows_decide: bool,
        plan: impl FnOnce(Guard<'_>) -> Planned,
    ) -> Guarded {
        self.confirmed_by_setting(confirmed_at);
        let Planned { plan, extent, held, obstacle } = plan(self.guard());
        let rows_decide = rows_decide && obstacle.is_none();
        let Update { news, keep } = self.update(held, observed.peers.len(), rows_decide);
        Guarded { plan, extent, obstacle, news, keep }
    }

    /// What the planner must know to hold removals back. The peers that stay go with it, and come back
    /// by [`Self::update`].
    fn guard(&mut self) -> Guard<'_> {
        let held = joined(std::mem::take(&mut self.staying), std::mem::take(&mut self.unjudged));
        self.guard_of(held)
    }

    fn guard_of(&self, held: Held) -> Guard<'_> {
        let Self { limit, confirmed, without_row, .. } = self;
        Guard { limit: *limit, held, confirmed, granted: without_row.granted(), whose: Whose::Ours }
    }

    /// As [`Self::guard`], for a question that changes nothing.
    pub fn guard_as_is(&self) -> Guard<'_> {
        let held = joined(self.staying.clone(), self.unjudged.clone());
        self.guard_of(held)
    }

    /// An operator confirms the removals that are held back by rows read at such a time of the
    /// database, and no others.
    pub fn confirm(&mut self, covers: impl Fn(SystemTime) -> bool) {
        let shown = self.staying.peers().iter().filter(|(_, peer)| covers(peer.since()));
        let shown = shown.map(|(key, _)| *key).collect();
        self.are_confirmed(shown);
    }

    fn are_confirmed(&mut self, keys: BTreeSet<PublicKey>) {
        self.confirmed_by_answer.retain(|key| !keys.contains(key));
        self.confirmed.extend(keys);
    }

    /// When to ask about the devices whose peers stay and are named by no row.
    pub fn question_due(&self, connected: bool) -> Option<Instant> {
        self.without_row.due(&self.staying, connected)
    }

    /// Asks about them, if that is due. `names` tells which devices these are.
    pub fn begin_question(
        &mut self,
        names: &BTreeMap<PublicKey, Departed>,
        connected: bool,
        now: Instant,
    ) -> Option<Action> {
        self.without_row.begin_question(&self.staying, names, connected, now)
    }

    /// The database was asked about them; `None`: in vain. A revocation, a narrowed policy and the removal of a few
    /// whose users are no longer active wait for no operator.
    pub fn devices_answered(
        &mut self,
        answer: Option<DeviceStandings>,
        names: &BTreeMap<PublicKey, Departed>,
        now: Instant,
    ) -> Answered {
        let Some(standings) = answer else {
            self.without_row.not_answered(&self.staying, now);
            return Answered::default();
        };
        let (taken_out, peers) = self.take_standings(standings, now);
        let named = taken_out.iter().filter_map(|key| Some((*key, names.get(key)?.clone())));
        let change = Touched { peers, ..Touched::default() }.into();
        Answered { taken_out: named.collect(), change }
    }

    /// The database says what becomes of the devices of these peers: the removal of one whose device takes it out
    /// waits no more, and what policies grant no more is taken. Returns who is taken out, and those of whom
    /// anything in this is news.
    fn take_standings(
        &mut self,
        answer: DeviceStandings,
        now: Instant,
    ) -> (BTreeSet<PublicKey>, BTreeSet<PublicKey>) {
        let Self { without_row, staying, confirmed, confirmed_by_answer, .. } = self;
        let may_connect =
            |key: &PublicKey| matches!(answer.of.get(key), Some(DeviceStanding::Granted(_)));
        for key in confirmed_by_answer.extract_if(.., |key| may_connect(key)) {
            confirmed.remove(&key);
        }
        let (taken_out, mut news) = without_row.answered(answer, staying, confirmed, now);
        let new: BTreeSet<_> = taken_out.difference(confirmed).copied().collect();
        confirmed.extend(&new);
        confirmed_by_answer.extend(&new);
        news.extend(new);
        (taken_out, news)
    }

    /// The setting confirms the removals that are held back by rows read before this time, also by an
    /// earlier run. A peer that is held later is not meant.
    fn confirmed_by_setting(&mut self, at: Option<SystemTime>) {
        if let Some(at) = at.filter(|_| at != self.confirmed_at) {
            let meant = self.waiting().filter(|(_, peer)| peer.since() < at);
            let meant = meant.map(|(key, _)| *key).collect();
            self.are_confirmed(meant);
        }
        self.confirmed_at = at;
    }

    /// Forgets what was confirmed for peers that are gone or wanted again. Of those that no rows of the
    /// database judge now, neither is known.
    pub fn forget_confirmed(&mut self, desired: Option<&DesiredState>, observed: &ObservedState) {
        let (wanted, unjudged) = (desired.map(DesiredState::peers), &self.unjudged);
        self.confirmed.retain(|key| {
            let is_wanted = wanted.is_some_and(|it| it.contains_key(key));
            unjudged.peers().contains_key(key) || observed.peers.contains_key(key) && !is_wanted
        });
        self.confirmed_by_answer.retain(|key| self.confirmed.contains(key));
    }

    /// Rows were read: a plan made from them will show whether they may be persisted.
    /// Of none ([`ReadKind::Check`]) there is nothing to persist.
    pub fn rows_read(&mut self, kind: ReadKind) {
        if kind == ReadKind::Check {
            return;
        }
        let before = Some(self.read).filter(|_| self.verdict == Verdict::Open);
        self.read = before.map_or(kind, |before| before.max(kind));
        self.verdict = Verdict::Open;
    }

    /// Tells the cache this verdict, and around which peers it is to keep the rows.
    pub fn keep(&self, keep: Keep) -> Action {
        let around = match (keep, self.read) {
            (Keep::All, _) | (Keep::These, ReadKind::Check | ReadKind::Changes) => BTreeSet::new(),
            (Keep::These, ReadKind::Everything) | (Keep::Later, _) => {
                self.staying.peers().keys().copied().collect()
            }
        };
        Action::Keep(keep, around)
    }

    /// A plan was made that leaves these peers `waiting`, of so many `present`. `rows_decide`: the
    /// plan follows the rows, not `[stale]`; else the verdict on the rows stays open.
    fn update(&mut self, waiting: Waiting, present: usize, rows_decide: bool) -> Update {
        let Waiting { judged: staying, unjudged } = waiting;
        self.unjudged = unjudged;
        let removals = staying.peers().len();
        let more = staying.arrivals() != self.arrivals;
        let before = self.held_back.map_or(0, |held| held.removals);
        let differs = more || removals as u64 != before;
        // Peers that an earlier run held may not be in the kernel yet.
        self.held_back = HeldBack::new(removals, present.max(removals));
        (self.arrivals, self.staying) = (staying.arrivals(), staying);
        self.without_row.planned(&self.staying, &self.unjudged);
        let keep = match self.held_back {
            None => Keep::All,
            Some(_) if more => Keep::Later,
            Some(_) => Keep::These,
        };
        Update {
            news: self.held_back.filter(|_| differs),
            keep: rows_decide.then_some(keep).filter(|keep| self.is_due(*keep)),
        }
    }

    /// The peers that wait and since when, and what is kept of those without a row, if this must be written to the
    /// disk: what is kept has changed, new peers wait, or at most half of the written peers still wait. A released
    /// peer does no harm on disk, so releasing one among many needs no look at the others.
    pub fn begin_remember(&mut self) -> Option<(BTreeMap<PublicKey, SystemTime>, KeptWithoutRow)> {
        let arrivals = self.staying.arrivals().max(self.unjudged.arrivals());
        let count = self.staying.peers().len() + self.unjudged.peers().len();
        let (former, most) = self.written;
        let most_are_left = count == most || count < most && count > most / 2;
        if arrivals == former && most_are_left && !self.without_row.differs() {
            return None;
        }
        let since = self.waiting().map(|(key, peer)| (*key, peer.since())).collect();
        self.written = (arrivals, count);
        Some((since, self.without_row.write(&self.staying, &self.unjudged)))
    }

    /// Whether the removal of this peer waits.
    pub fn waits(&self, key: &PublicKey) -> bool {
        [&self.staying, &self.unjudged].iter().any(|held| held.peers().contains_key(key))
    }

    /// Those that stay, and those that may again once rows judge them.
    fn waiting(&self) -> impl Iterator<Item = (&PublicKey, &HeldPeer)> {
        self.staying.peers().iter().chain(self.unjudged.peers())
    }

    /// Whether the cache must hear this verdict. From then on it has.
    fn is_due(&mut self, keep: Keep) -> bool {
        let due = match self.verdict {
            Verdict::Kept => false,
            Verdict::Open => true,
            Verdict::Waiting => keep == Keep::All,
        };
        if due {
            self.verdict = if keep == Keep::All { Verdict::Kept } else { Verdict::Waiting };
        }
        due
    }
}

/// What rows judge, and what they do not.
fn joined(judged: Held, unjudged: Held) -> Held {
    match (judged.is_empty(), unjudged.is_empty()) {
        (_, true) => judged,
        (true, false) => unjudged,
        (false, false) => judged.with_those(&unjudged),
    }
}

#[cfg(test)]
mod tests;
