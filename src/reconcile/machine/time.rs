//! Carries out the deadlines that have come, and says when the next one comes. Each deadline stands in one
//! part, whose `due` also decides whether the part acts.

use std::time::{Instant, SystemTime};

use super::Machine;
use crate::reconcile::clock::Now;
use crate::reconcile::event::ReadKind;
use crate::reconcile::note::Note;

impl Machine {
    /// When [`Machine::handle`] must be called with [`Event::Tick`](crate::reconcile::Event::Tick) at the
    /// latest, if nothing else happens.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Instant {
        let connected = self.source.is_connected();
        let by_database = |at: SystemTime| {
            now.instant + at.duration_since(self.source.clock(now)).unwrap_or_default()
        };
        let dues = [
            self.source.due(now),
            self.mirror.due(now),
            self.passes.due(),
            self.proof.due(connected),
            self.outbox.due(connected),
            self.rows.question_due(connected),
            self.hold.question_due(connected),
            self.rows.stale_due(),
            self.rows.next_expiry().map(by_database),
            self.rows.next_let_in(self.source.knows_clock()).map(by_database),
        ];
        let latest = now.instant + self.source.view().resync_interval;
        dues.into_iter().flatten().min().map_or(latest, |at| at.min(latest))
    }

    pub(super) fn let_time_pass(&mut self, now: Now) {
        let elapsed = self.source.let_time_pass(now);
        if elapsed.resync {
            self.mirror.want_reading_for("resync interval");
        }
        self.notices.say_all(elapsed.bell);
        self.notices.say_all(elapsed.notify_missed.then_some(Note::NotifyMissed));
        if self.proof.let_time_pass(self.source.is_connected(), now.instant) {
            self.mirror.want_beat(now.instant);
            self.source.want(ReadKind::Check);
        }
        self.mirror.let_time_pass(now.instant);
        if self.passes.let_time_pass(now.instant) {
            self.mirror.want_reading("retry");
        }
        let database_now = self.source.clock(now);
        let expired = self.rows.let_time_pass(database_now);
        self.touch(expired, now.instant);
        let change = self.rows.let_in_due(self.source.knows_clock(), database_now);
        self.changed(change, now);
        // A peer that connected since the last reading has a live session, too: none is removed before
        // the next reading, and until then none is added.
        let present = || self.mirror.recheck_sessions("stale rows");
        if let Some(change) = self.rows.grow_stale(present, now.instant) {
            self.changed(change, now);
            if self.rows.are_suspended() {
                self.compare_on_purpose(now);
            }
        }
    }
}
