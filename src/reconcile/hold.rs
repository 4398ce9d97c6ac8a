//! The removals that the guard holds back, and the operator's confirmation of them.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::event::Keep;
use crate::model::{DesiredState, ObservedState, PublicKey};
use crate::plan::Held;
use crate::plan::guard::{Guard, HeldBack, MaxRemoved, Whose};

#[derive(Debug)]
pub(super) struct Hold {
    limit: MaxRemoved,
    /// The peers that stay until an operator confirms their removal or the rows want them again.
    staying: Held,
    /// Those removals in figures; `None`: no removal is held back.
    held_back: Option<HeldBack>,
    /// [`Held::arrivals`] at the last plan.
    arrivals: u64,
    /// Whose removal an operator confirmed when it was held back.
    confirmed: BTreeSet<PublicKey>,
    /// The time by which the setting confirmed removals.
    confirmed_at: Option<SystemTime>,
    verdict: Verdict,
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
pub(super) struct Update {
    /// Other peers are held back than before.
    pub news: Option<HeldBack>,
    pub keep: Option<Keep>,
}

impl Hold {
    pub fn new(limit: MaxRemoved) -> Self {
        Self {
            limit,
            staying: Held::default(),
            held_back: None,
            arrivals: 0,
            confirmed_at: None,
            confirmed: BTreeSet::new(),
            verdict: Verdict::Kept,
        }
    }

    pub const fn set_limit(&mut self, limit: MaxRemoved) {
        self.limit = limit;
    }

    pub const fn staying(&self) -> &Held {
        &self.staying
    }

    pub const fn held_back(&self) -> Option<HeldBack> {
        self.held_back
    }

    /// What the planner must know to hold removals back. The peers that stay go with it, and come back
    /// by [`Self::update`].
    pub fn guard(&mut self) -> Guard<'_> {
        let (limit, held) = (self.limit, std::mem::take(&mut self.staying));
        Guard { limit, held, confirmed: &self.confirmed, whose: Whose::Ours }
    }

    /// An operator confirms the removals that are held back by rows read at such a time of the
    /// database, and no others.
    pub fn confirm(&mut self, covers: impl Fn(SystemTime) -> bool) {
        let shown = self.staying.peers().iter().filter(|(_, peer)| covers(peer.since()));
        self.confirmed.extend(shown.map(|(key, _)| *key));
    }

    /// The setting confirms the removals that are held back by rows read before this time. A peer that is
    /// held later is not meant.
    pub fn confirmed_by_setting(&mut self, at: Option<SystemTime>) {
        if let Some(at) = at.filter(|_| at != self.confirmed_at) {
            self.confirm(|since| since < at);
        }
        self.confirmed_at = at;
    }

    /// Forgets what was confirmed for peers that are gone or wanted again.
    pub fn forget_confirmed(&mut self, desired: Option<&DesiredState>, observed: &ObservedState) {
        let wanted = desired.map(DesiredState::peers);
        self.confirmed.retain(|key| {
            observed.peers.contains_key(key) && !wanted.is_some_and(|it| it.contains_key(key))
        });
    }

    /// Rows were read: a plan made from them will show whether they may be persisted.
    pub const fn rows_read(&mut self) {
        self.verdict = Verdict::Open;
    }

    /// A plan was made that leaves these peers `staying`, of so many `present`. `rows_decide`: the
    /// plan follows the rows, not `[stale]`; else the verdict on the rows stays open.
    pub fn update(&mut self, staying: Held, present: usize, rows_decide: bool) -> Update {
        let removals = staying.peers().len();
        let more = staying.arrivals() != self.arrivals;
        let before = self.held_back.map_or(0, |held| held.removals);
        let differs = more || removals as u64 != before;
        self.held_back = HeldBack::new(removals, present);
        (self.arrivals, self.staying) = (staying.arrivals(), staying);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn held(numbers: &[u8]) -> Held {
        let peers = numbers.iter().map(|number| PublicKey::from_bytes([*number; 32]).unwrap());
        Held::gone(peers, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn rows_wait_for_the_operator_and_are_kept_once_nothing_is_held_back() {
        let mut hold = Hold::new(MaxRemoved::Percent(50));
        assert_eq!(hold.update(held(&[]), 20, true).keep, None, "no rows were read");
        hold.rows_read();
        let update = hold.update(held(&[1, 2]), 20, true);
        assert_eq!((update.news.unwrap().removals, update.keep), (2, Some(Keep::Later)));
        assert_eq!(hold.update(held(&[1, 2]), 20, true), Update::default(), "said already");
        hold.rows_read();
        assert_eq!(hold.update(held(&[1, 2]), 20, true).keep, Some(Keep::These));
        assert_eq!(hold.update(held(&[]), 18, true).keep, Some(Keep::All));
        assert_eq!(hold.held_back(), None);
    }

    #[test]
    fn stale_rows_leave_the_verdict_open() {
        let mut hold = Hold::new(MaxRemoved::Percent(50));
        hold.rows_read();
        assert_eq!(hold.update(held(&[]), 20, false).keep, None);
        assert_eq!(hold.update(held(&[]), 20, true).keep, Some(Keep::All));
    }

    #[test]
    fn a_confirmation_is_for_the_removals_that_were_shown() {
        let mut hold = Hold::new(MaxRemoved::Percent(50));
        hold.update(held(&[1, 2]), 20, true);
        hold.confirm(|since| since <= SystemTime::UNIX_EPOCH);
        hold.update(held(&[3]), 18, true);
        assert!(hold.guard().confirmed.iter().eq(held(&[1, 2]).peers().keys()));
        hold.forget_confirmed(None, &ObservedState::default());
        assert!(hold.guard().confirmed.is_empty(), "they are gone");
    }
}
