//! The database may have lost commits that the agent followed: who stays out because of that.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::Machine;
use crate::model::{Absence, Mark, PublicKey};
use crate::reconcile::clock::Now;
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::Action;
use crate::reconcile::note::Note;
use crate::reconcile::notices::Trouble;

impl Machine {
    /// Everything was read from a database of this epoch, because of `why`: the rows come next.
    pub(super) fn epoch_read(
        &mut self,
        epoch: String,
        why: Option<String>,
        marks: (Vec<Mark>, SystemTime),
        now: Now,
    ) {
        self.history.hears(marks.0, marks.1);
        if self.history.follows(epoch) {
            let unasked = || "the database is another than before the restart".into();
            let why = why.unwrap_or_else(unasked);
            self.notices.say(Note::OtherEpoch { why });
        }
        self.keep_out(now);
    }

    /// The database says which of the withdrawals it has lost.
    pub(super) fn marks_answered(
        &mut self,
        answer: Result<BTreeSet<PublicKey>, DatabaseError>,
        now: Now,
    ) {
        let lost = match answer {
            Ok(lost) => lost,
            Err(error) => {
                self.history.not_answered(now.instant);
                let note = Note::ReadFailed { error: error.to_string() };
                return self.complain(Trouble::Database, note, now);
            }
        };
        let Some(desired) = self.rows.desired() else { return };
        let (gateway, admitted) = (desired.gateway().id, desired.kept_out().collect());
        let peers = self.history.answered(&lost, &admitted, self.source.clock(now));
        if let Some(peers) = peers.filter(|peers| !peers.is_empty()) {
            let held_for = self.history.holds_for();
            self.notices.say(Note::HistoryLost { gateway, peers, held_for });
        }
        self.keep_out(now);
    }

    /// Lets in again whom the rows admit although their withdrawal was lost, once their time has come.
    pub(super) fn let_in_in_time(&mut self, now: Now) {
        let by = self.source.clock(now);
        let peers = self.history.let_in(|_, lost| lost.until <= by);
        self.tell_let_in(peers, false, now);
    }

    /// An operator lets in those that were shown: kept out since this time of the database or earlier,
    /// and for no other reason.
    pub(super) fn let_in_shown(&mut self, until: SystemTime, now: Now) {
        let Some(desired) = self.rows.desired() else { return };
        let shown: BTreeSet<_> = desired.kept_out().collect();
        let peers = self.history.let_in(|key, lost| lost.since <= until && shown.contains(key));
        self.tell_let_in(peers, true, now);
    }

    fn tell_let_in(&mut self, peers: Vec<String>, confirmed: bool, now: Now) {
        if !peers.is_empty() {
            self.notices.say(Note::HistoryFollowed { peers, confirmed });
            self.keep_out(now);
        }
    }

    /// Rows were read: what they say about peers that are out already is to be remembered, too.
    pub(super) fn remember_barred(&mut self) {
        let Some(rows) = self.rows.followed() else { return };
        self.history.stay_out(|key| match rows.absence(key) {
            Absence::Barred(_, why) => !why.is_only_kept_out(),
            Absence::Gone { .. } => true,
            Absence::Quarantined => false,
        });
    }

    /// The kernel was changed: withdrawals that it has acknowledged are to be remembered.
    pub(super) fn remember_withdrawals(&mut self, now: Now) {
        let Some(observed) = self.mirror.observed() else { return };
        // Rows that cannot be used withdraw all the same, and admit no peer.
        let desired = self.rows.desired().filter(|_| self.rows.are_usable());
        self.history.applied(
            |key| observed.peers.contains_key(key),
            |key| desired.is_some_and(|desired| desired.peers().contains_key(key)),
            self.source.clock(now),
        );
    }

    pub(super) fn begin_history(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.source.is_connected() {
            actions.extend(self.history.begin_question(now.instant).map(Action::AskMarks));
        }
        actions.extend(self.history.take_changed().map(Action::Remember));
    }

    /// Keeps out the peers that the history names, and no others.
    pub(super) fn keep_out(&mut self, now: Now) {
        let touched = self.rows.keep_out(self.history.keeps_out());
        self.touch(touched, now.instant);
    }
}
