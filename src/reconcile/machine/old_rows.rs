//! Rows that are old: the last good rows of an earlier run, and rows that became stale.

use std::collections::BTreeSet;

use super::Machine;
use crate::reconcile::clock::Now;
use crate::reconcile::event::LastGood;
use crate::reconcile::note::Note;
use crate::reconcile::options::StalePolicy;

impl Machine {
    /// Starts from the last good rows, unless the database answered first.
    pub(super) fn rows_restored(&mut self, rows: LastGood, now: Now) {
        match self.rows.restore(rows) {
            Some(Ok(as_of)) => {
                self.notices.say(Note::Restored { as_of });
                self.compare_on_purpose(now);
            }
            Some(Err(error)) => self.notices.say(Note::CannotBuild(error)),
            None => {}
        }
    }

    /// The rows became stale by `[stale]`.
    pub(super) fn rows_are_stale(&mut self, policy: StalePolicy, now: Now) {
        let admitted = match policy {
            StalePolicy::Keep => return,
            StalePolicy::DenyNew => {
                // A peer that connected since the last reading has a live session, too: none is
                // removed before the next reading, and until then none is added.
                self.mirror.want_reading_for("stale rows");
                self.mirror.not_fresh();
                self.mirror.present()
            }
            StalePolicy::Down => Some(BTreeSet::new()),
        };
        if let Some(admitted) = admitted {
            let touched = self.rows.suspend_all_but(Some(admitted));
            self.touch(touched, now.instant);
        }
        self.compare_on_purpose(now);
    }
}
