//! Withdrawals that the database may have lost: which rows stay out because of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use super::{Change, Compared, Refused, Rows};
use crate::model::{Absence, Departed, DesiredState, ObservedState, PublicKey, Touched};
use crate::plan::Held;
use crate::plan::guard::Guard;
use crate::reconcile::clock::DatabaseNow;
use crate::reconcile::event::{Action, EpochRead};
use crate::reconcile::history::KeptWithoutRow;
use crate::reconcile::note::Note;

impl Rows {
    /// Everything was read: the rows come next. `clock`: the time of the database read before, if it is known, at
    /// which this one showed `read_at`. The `guard` says whose removal waits by the rows read before.
    pub fn epoch_read<'a>(
        &mut self,
        read: EpochRead,
        clock: Option<SystemTime>,
        observed: Option<&ObservedState>,
        guard: impl FnOnce() -> Guard<'a>,
    ) -> Change {
        let EpochRead { epoch, why, marks, read_at } = read;
        let is_other = self.history.is_other(&epoch);
        let held = if is_other { self.held(observed, guard()) } else { Held::default() };
        let Self { history, refused, desired, .. } = self;
        history.marks_read(marks, read_at);
        let unasked =
            || "the database server was restarted, restored or replaced since the last read".into();
        let rows = read_last(refused.as_ref(), desired.as_ref());
        let stays = |key: &PublicKey, device| {
            let is_held = held.peers().contains_key(key);
            is_held || rows.is_some_and(|rows| rows.rows_admit(key, device))
        };
        let is_other = history.follow(epoch, stays);
        if is_other {
            history.goes_by_another_clock(clock, read_at);
        }
        let note = is_other.then(|| Note::OtherEpoch { why: why.unwrap_or_else(unasked) });
        Change::noted(note, self.keep_out())
    }

    /// The database of this epoch was asked which withdrawals it lost; `None`: in vain.
    pub fn marks_answered(
        &mut self,
        epoch: &str,
        lost: Option<&BTreeSet<PublicKey>>,
        now: DatabaseNow,
    ) -> Change {
        if let Some(lost) = lost {
            return self.withdrawals_lost(epoch, lost, now.time);
        }
        self.history.not_answered(epoch, now.instant);
        Change::default()
    }

    /// The database of this epoch lost these withdrawals, and no others.
    fn withdrawals_lost(
        &mut self,
        epoch: &str,
        lost: &BTreeSet<PublicKey>,
        database_now: SystemTime,
    ) -> Change {
        let Some(desired) = &self.desired else { return Change::default() };
        let entitled = desired.kept_out_and_entitled().collect();
        let peers = self.history.answered(epoch, lost, &entitled, database_now);
        let (gateway, held_for) = (desired.gateway().id, self.history.hold_for());
        let peers = peers.filter(|peers| !peers.is_empty());
        let note = peers.map(|peers| Note::HistoryLost { gateway, peers, held_for });
        Change::noted(note, self.keep_out())
    }

    /// Lets in again the peers whose time has come by the database's own clock.
    pub(super) fn let_in_due(&mut self, knows_clock: bool, database_now: SystemTime) -> Change {
        if self.next_let_in(knows_clock).is_none_or(|at| at > database_now) {
            return Change::default();
        }
        let peers = self.history.let_in(|_, lost| lost.until <= database_now);
        self.let_in(peers, false)
    }

    /// An operator confirms what was shown, and lets in the peers that are kept out since `let_in_until` or earlier;
    /// `None`: no peer.
    pub fn confirmed(&mut self, let_in_until: Option<SystemTime>) -> Change {
        let let_in = let_in_until.map(|until| self.let_in_shown(until)).unwrap_or_default();
        Change { compared: Compared::Everything, ..let_in }
    }

    /// Lets in the peers that were shown: kept out since this time of the database or earlier, and for no other
    /// reason.
    fn let_in_shown(&mut self, until: SystemTime) -> Change {
        let Some(desired) = &self.desired else { return Change::default() };
        let shown: BTreeSet<_> = desired.kept_out().collect();
        let peers = self.history.let_in(|key, lost| lost.since <= until && shown.contains(key));
        self.let_in(peers, true)
    }

    fn let_in(&mut self, peers: Vec<String>, confirmed: bool) -> Change {
        if peers.is_empty() {
            return Change::default();
        }
        Change::noted(Some(Note::HistoryFollowed { peers, confirmed }), self.keep_out())
    }

    /// Rows were read that withdraw these peers. What they say about peers that are out already is
    /// remembered, too.
    pub(super) fn remember_withdrawn(&mut self, departed: &BTreeMap<PublicKey, Departed>) {
        let Self { history, refused, desired, .. } = self;
        let rows = read_last(refused.as_ref(), desired.as_ref());
        history.departed(by_rows(rows, departed));
        let Some(rows) = rows else { return };
        history.stay_out(|key| match rows.absence(key) {
            Absence::Barred(_, why) => !why.is_by_host_alone(),
            Absence::Gone { .. } => true,
            Absence::Quarantined(..) | Absence::Admitted => false,
        });
        self.remember_expired(departed);
    }

    /// These peers have no right to a tunnel any more: some of them, because the time has come from which
    /// on their rows revoke them.
    pub(super) fn remember_expired(&mut self, departed: &BTreeMap<PublicKey, Departed>) {
        let Self { history, refused, desired, .. } = self;
        let Some(rows) = read_last(refused.as_ref(), desired.as_ref()) else { return };
        let is_revoked =
            |key: &PublicKey| matches!(rows.absence(key), Absence::Barred(_, why) if why.revoked);
        history.expired(departed.iter().filter(|(key, _)| is_revoked(key)));
    }

    /// The first rows of the database were read. A peer that was out already, because it was blocked for
    /// example, may have been revoked while no agent read.
    pub(super) fn remember_who_is_out(&mut self) {
        let Self { history, refused, desired, .. } = self;
        let Some(rows) = read_last(refused.as_ref(), desired.as_ref()) else { return };
        history.are_out(&rows.withdrawn(&history.listed()));
    }

    /// A plan that removes these peers is about to be applied.
    pub fn removing(&mut self, departed: &BTreeMap<PublicKey, Departed>) {
        let Self { history, refused, desired, .. } = self;
        let rows = read_last(refused.as_ref(), desired.as_ref());
        history.departed(by_rows(rows, departed));
        history.withdrawing(by_rows(rows, departed).map(|(key, _)| key));
    }

    /// The database said, asked about their devices, that these peers go.
    pub fn taken_out(&mut self, peers: &BTreeMap<PublicKey, Departed>, database_now: SystemTime) {
        self.history.taken_out(peers, database_now);
    }

    /// The kernel was changed, or is as it should be: the withdrawals that are in force are remembered.
    /// Rows that cannot be used withdraw all the same, and admit no peer. `clock`: the database's time, if it is known.
    pub fn applied(&mut self, observed: &ObservedState, clock: Option<SystemTime>) {
        let usable = self.are_usable();
        let admitted = self.desired.as_ref().filter(|_| usable);
        self.history.applied(
            |key| observed.peers.contains_key(key),
            |key, device| admitted.is_some_and(|desired| desired.rows_admit(key, device)),
            clock.unwrap_or(SystemTime::UNIX_EPOCH),
        );
    }

    /// The rows as a whole are the last good ones now.
    pub(super) fn are_kept(&mut self) {
        if let Some(desired) = &self.desired {
            self.history.rows_are_kept(desired.as_of());
        }
    }

    /// When to ask the database which withdrawals it lost, if it is `connected`.
    pub(super) fn question_due(&self, connected: bool) -> Option<Instant> {
        self.history.question_due().filter(|_| connected)
    }

    /// Asks the database which withdrawals it lost, if that is due.
    pub fn begin_question(&mut self, connected: bool, now: Instant) -> Option<Action> {
        self.question_due(connected)?;
        let (epoch, withdrawals) = self.history.begin_question(now)?;
        Some(Action::AskMarks { epoch, withdrawals })
    }

    /// Writes the withdrawals to the disk if they changed, and the peers whose removal waits if these did
    /// (`held`, and what is kept of those without a row), with their names as far as these are known.
    pub fn begin_remember(
        &mut self,
        held: Option<(BTreeMap<PublicKey, SystemTime>, KeptWithoutRow)>,
        names: &BTreeMap<PublicKey, Departed>,
    ) -> Option<Action> {
        if let Some((held, kept)) = held {
            let named = held.keys().filter_map(|key| names.get_key_value(key));
            let named = named.map(|(key, who)| (*key, who.clone())).collect();
            self.history.remember_held(held, kept, named);
        }
        self.history.take_changed().map(Action::Remember)
    }

    /// Keeps out the peers that the history names, and no others, as if they were not eligible.
    pub(super) fn keep_out(&mut self) -> Option<Touched> {
        let keys = self.history.keeps_out();
        if keys == self.kept_out {
            return None;
        }
        self.kept_out.clone_from(&keys);
        self.change(|desired| desired.keep_out(keys.clone()))
    }
}

/// Those of these peers that a commit withdrew. Whom this host alone bars comes back by itself.
fn by_rows<'a>(
    rows: Option<&'a DesiredState>,
    departed: &'a BTreeMap<PublicKey, Departed>,
) -> impl Iterator<Item = (&'a PublicKey, &'a Departed)> {
    let by_host_alone = move |key: &PublicKey, who: &Departed| {
        rows.is_some_and(|rows| rows.is_barred_by_host_alone(key, who.peer_id))
    };
    departed.iter().filter(move |(key, who)| !by_host_alone(key, who))
}

/// The rows that were read last, as far as they can be used.
fn read_last<'a>(
    refused: Option<&'a Refused>,
    desired: Option<&'a DesiredState>,
) -> Option<&'a DesiredState> {
    refused.and_then(|refused| refused.rest.as_ref()).or(desired)
}
