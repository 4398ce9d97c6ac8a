//! Which of the jobs that wait begins next.

use super::Machine;
use super::event::{Action, Now};
use super::machine::Database;

impl Machine {
    /// What to do next, if nothing is under way.
    ///
    /// What was read is carried out before more is read, and a look at the kernel that is wanted
    /// waits for one read at most: a storm of notifications must not starve either.
    pub(super) fn advance(&mut self, now: Now, actions: &mut Vec<Action>) {
        if let Database::Down { since, retry_at, .. } = self.database
            && retry_at <= now.instant
        {
            self.database = Database::Connecting { since };
            actions.push(Action::Connect);
        }
        self.report(now, actions);
        // The first reading of the kernel and the first of the database need nothing of each other.
        let first = self.observed.is_none() && self.desired.is_none();
        let turns: [fn(&mut Self, Now, &mut Vec<Action>); 6] = [
            Self::begin_read_in_turn,
            Self::begin_look,
            Self::next_step,
            Self::begin_read_in_turn,
            Self::begin_glance,
            Self::begin_read,
        ];
        for begin in turns {
            if !self.jobs.any() {
                begin(self, now, actions);
            }
        }
        if first && self.jobs.reading.is_none() {
            self.begin_read(now, actions);
        }
    }

    fn begin_read_in_turn(&mut self, now: Now, actions: &mut Vec<Action>) {
        if !self.look_waited {
            self.begin_read(now, actions);
        }
    }

    fn begin_read(&mut self, now: Now, actions: &mut Vec<Action>) {
        let connected = matches!(self.database, Database::Up { .. });
        let may_read = self.due.retry_read.is_none_or(|at| at <= now.instant);
        if !connected || !may_read || self.is_to_plan(now) {
            return;
        }
        let Some(kind) = self.read_wanted.take() else { return };
        self.due.retry_read = None;
        self.read_notified = std::mem::take(&mut self.notified_since_read);
        self.found_since = self.heard_at.take().unwrap_or(now.instant);
        self.look_waited = self.observe_wanted.is_some() || self.glance_wanted;
        self.begin(Action::Read(self.possible_read(kind)), actions);
    }

    fn begin_look(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.due.may_observe(now.instant)
            && let Some(why) = self.observe_wanted.take()
        {
            self.observing = why;
            self.due.compare = now.instant + self.options.timing.compare_interval();
            self.due.observing_since = now.instant;
            self.glance_wanted = false;
            self.look_waited = false;
            self.totals.observations += 1;
            self.begin(Action::Observe, actions);
        }
    }

    fn begin_glance(&mut self, _: Now, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.glance_wanted) {
            self.look_waited = false;
            self.begin(Action::Glance, actions);
        }
    }

    pub(super) fn begin(&mut self, action: Action, actions: &mut Vec<Action>) {
        self.resyncs.begins(&action);
        match action {
            Action::Read(kind) => self.jobs.reading = Some(kind),
            _ => self.jobs.kernel = true,
        }
        actions.push(action);
    }
}
