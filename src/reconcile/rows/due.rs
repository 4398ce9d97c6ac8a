//! What time alone changes: rows grow stale, revocations come, and peers that were kept out come in.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use super::{Change, Rows};
use crate::model::{DesiredState, PublicKey, Touched};
use crate::reconcile::clock::DatabaseNow;
use crate::reconcile::note::Note;
use crate::reconcile::options::StalePolicy;

impl Rows {
    /// When [`Self::let_time_pass`] or, if the database is `connected`, [`Self::begin_question`] has something to
    /// do next.
    pub fn due(&self, connected: bool, now: DatabaseNow) -> Option<Instant> {
        let by_database = |at| now.instant_at(at);
        let dues = [
            self.question_due(connected),
            self.stale_due(),
            self.next_expiry().map(by_database),
            self.next_let_in(now.is_read).map(by_database),
        ];
        dues.into_iter().flatten().min()
    }

    /// Returns what changes because time passed, one after the other. `present`: the peers in the kernel.
    pub fn let_time_pass(
        &mut self,
        present: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
        now: DatabaseNow,
    ) -> [Change; 3] {
        let expired = self.expire(now.time).into();
        let let_in = self.let_in_due(now.is_read, now.time);
        [expired, let_in, self.grow_stale(present, now.instant).unwrap_or_default()]
    }

    /// When the rows become stale.
    pub(super) fn stale_due(&self) -> Option<Instant> {
        self.age.due()
    }

    /// Suspends, at the moment the rows become stale, the peers that `stale.policy` suspends. `present`:
    /// the peers in the kernel.
    pub(super) fn grow_stale(
        &mut self,
        present: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
        now: Instant,
    ) -> Option<Change> {
        let (since, policy) = self.age.let_time_pass(now)?;
        let admitted = match policy {
            StalePolicy::Keep => None,
            StalePolicy::DenyNew => present(),
            StalePolicy::Down => Some(BTreeSet::new()),
        };
        let touched = admitted.and_then(|admitted| self.suspend_all_but(Some(admitted)));
        let note = Some(Note::Stale { since, policy });
        Some(match self.age.suspends() {
            true => Change::of_everything(note, touched),
            false => Change::noted(note, touched),
        })
    }

    /// When, by the database's clock, the next peer that was kept out is let in. A host's clock that is ahead
    /// would let it in too early: as long as only that is known, the peer stays out.
    pub(super) fn next_let_in(&self, knows_clock: bool) -> Option<SystemTime> {
        self.history.next_end().filter(|_| knows_clock)
    }

    /// When, by the database's clock, the next scheduled revocation comes.
    pub(super) fn next_expiry(&self) -> Option<SystemTime> {
        let rows = self.rest().into_iter().chain(&self.desired);
        rows.filter_map(DesiredState::next_expiry).min()
    }

    /// Carries out the scheduled revocations whose time has come.
    pub(super) fn expire(&mut self, database_now: SystemTime) -> Option<Touched> {
        let is_due = self.next_expiry().is_some_and(|at| at <= database_now);
        let expire = |desired: &mut DesiredState| desired.expire(database_now);
        let expired = if is_due { self.change(expire) } else { None };
        if let Some(expired) = &expired {
            self.remember_expired(&expired.departed);
        }
        expired
    }
}
