//! What time alone brings about.

use std::time::{Duration, Instant, SystemTime};

use super::event::{Action, Mode, Note, Now, ReadKind};
use super::machine::Database;
use super::timing::{TURN_INTERVAL, Timing};
use super::{Machine, Obstacle};

/// Reports are batched: at most one in this time.
const REPORT_GAP: Duration = Duration::from_millis(250);
/// The same, where a crowd shares the database: each report wakes a session whose memory the
/// processor has long forgotten, which costs more than what it writes.
const REPORT_GAP_IN_A_CROWD: Duration = Duration::from_millis(2_500);

impl Machine {
    /// When [`Machine::handle`] must be called with [`Event::Tick`](super::Event::Tick) at the
    /// latest, if nothing else happens.
    #[must_use]
    pub fn next_wakeup(&self, now: Now) -> Instant {
        let mut at = now.instant + self.options.timing.resync_interval;
        // What waits for the job under way is due when that ends, not at a time that has passed.
        if !self.jobs.any() {
            at = at.min(self.due.compare);
            if self.observe_wanted.is_some() {
                at = at.min(self.due.observe_at(now.instant));
            }
        }
        match &self.database {
            Database::Down { retry_at, .. } => at = at.min(*retry_at),
            Database::Connecting { .. } => {}
            Database::Up { .. } => {
                at = at.min(self.due.poll).min(self.due.resync);
                if self.proven.is_some() {
                    at = at.min(self.due.heartbeat);
                }
                if !self.jobs.any()
                    && self.read_wanted.is_some()
                    && let Some(retry) = self.due.retry_read
                    && retry > now.instant
                {
                    at = at.min(retry);
                }
                if !self.ledger.is_empty() && !self.reporting {
                    at = at.min(self.due.report);
                }
            }
        }
        for due in [self.due.retry_pass, self.due.suspicion].into_iter().flatten() {
            at = at.min(due);
        }
        if self.rows_in_doubt
            && !self.stale
            && let Some(stale_at) = self.rows_read_at.checked_add(self.options.stale.after)
        {
            at = at.min(stale_at);
        }
        if let Some(expiry) = self.desired.as_ref().and_then(|desired| desired.next_expiry()) {
            let wait = expiry.duration_since(self.database_now(now)).unwrap_or_default();
            at = at.min(now.instant + wait);
        }
        at
    }

    pub(super) fn check_timers(&mut self, now: Now, actions: &mut Vec<Action>) {
        let timing = self.options.timing;
        if let Database::Up { mode } = self.database {
            if now.instant >= self.due.resync {
                self.due.resync = now.instant + timing.resync_interval;
                self.want_read(ReadKind::Everything);
                self.observe_wanted = Some("resync interval".into());
            }
            if now.instant >= self.due.poll {
                self.due.poll = now.instant + until_next_question(mode, timing, &mut self.random);
                self.want_read(ReadKind::Changes);
            }
            if now.instant >= self.due.heartbeat && self.proven.is_some() {
                self.due.heartbeat = now.instant + timing.heartbeat;
                self.want_beat(now);
                self.want_read(ReadKind::Changes);
            }
        }
        if self.due.suspicion.is_some_and(|at| now.instant >= at) {
            self.due.suspicion = None;
            self.totals.notify_missed += 1;
            actions.push(Action::Say(Note::NotifyMissed));
        }
        if now.instant >= self.due.compare && !self.jobs.any() {
            self.due.compare = now.instant + timing.compare_interval();
            self.observe_wanted.get_or_insert_with(|| "compare interval".into());
        }
        if self.due.retry_pass.is_some_and(|at| now.instant >= at) {
            self.due.retry_pass = None;
            self.observe_wanted.get_or_insert_with(|| "retry".into());
        }
        let database_now = self.database_now(now);
        if let Some(desired) = &mut self.desired
            && desired.next_expiry().is_some_and(|at| at <= database_now)
        {
            let touched = desired.expire(database_now);
            self.touch(touched);
        }
        self.check_stale(now, actions);
    }

    pub(super) fn report(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Database::Up { mode } = self.database else { return };
        if !self.reporting && !self.ledger.is_empty() && now.instant >= self.due.report {
            self.due.report = now.instant
                + match mode {
                    Mode::Listen | Mode::Poll => REPORT_GAP,
                    Mode::Turns => REPORT_GAP_IN_A_CROWD,
                };
            self.reporting = true;
            actions.push(Action::Report(self.ledger.take()));
        }
    }

    /// The database's clock, as far as the last read tells: this host's may be set, and does not
    /// count from then on.
    pub(super) fn database_now(&self, now: Now) -> SystemTime {
        self.database_clock.map_or(now.wall, |(time, at)| time + now.instant.duration_since(at))
    }

    pub(super) const fn resync_interval(&self) -> Duration {
        self.options.timing.resync_interval
    }

    /// Why the kernel is left as it is although it may differ.
    #[must_use]
    pub fn obstacle(&self) -> Option<&Obstacle> {
        self.obstacles.first()
    }
}

/// Until the database is asked again though nothing was heard of it.
fn until_next_question(mode: Mode, timing: Timing, random: &mut fastrand::Rng) -> Duration {
    // Never quite alike, so that a fleet does not ask all at once.
    let nearly = |interval: Duration, chance: f64| interval.mul_f64(0.9 + chance / 5.0);
    match mode {
        Mode::Listen => nearly(timing.safety_poll_interval, random.f64()),
        Mode::Poll => nearly(timing.poll_interval, random.f64()),
        // Any time up to twice the interval: who take turns wait for each other's, and all of them
        // come back at once when the database does.
        Mode::Turns => TURN_INTERVAL.mul_f64(2.0 * random.f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_came_back_at_once_takes_turns_all_the_time() {
        let second = Duration::from_secs(1);
        let timing = Timing {
            poll_interval: second,
            safety_poll_interval: second,
            resync_interval: second,
            report_interval: second,
            heartbeat: second,
            seed: 0,
        };
        let turn = |seed| {
            let random = &mut fastrand::Rng::with_seed(seed);
            until_next_question(Mode::Turns, timing, random).as_secs()
        };
        for at in 0..TURN_INTERVAL.as_secs() * 2 {
            assert!((0..100).any(|seed| turn(seed) == at), "nobody asks after {at} s");
        }
    }
}
