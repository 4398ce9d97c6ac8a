//! `[stale]`: how old the rows are, and what that asks for.

use std::time::{Duration, Instant};

use super::options::{StaleOptions, StalePolicy};

/// The age of the rows.
#[derive(Debug)]
pub(super) struct Staleness {
    options: StaleOptions,
    age: Age,
    /// When rows were last read and could be used; before that, the start.
    read_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// The last read succeeded.
    Current,
    /// The database cannot be read, or its rows cannot be used: the rows age.
    Aging,
    /// They have aged for longer than `stale.after`.
    Stale,
}

impl Staleness {
    pub const fn new(options: StaleOptions, now: Instant) -> Self {
        Self { options, age: Age::Aging, read_at: now }
    }

    /// Follows other options from now on, also about rows that are stale already. Says whether peers
    /// were suspended until now.
    pub fn set_options(&mut self, options: StaleOptions) -> bool {
        let suspended = self.suspends();
        self.options = options;
        if self.age == Age::Stale {
            self.age = Age::Aging;
        }
        suspended
    }

    /// Rows could not be read or used.
    pub const fn doubt(&mut self) {
        if matches!(self.age, Age::Current) {
            self.age = Age::Aging;
        }
    }

    /// Rows were read and can be used. Says whether peers were suspended until now.
    pub fn renew(&mut self, now: Instant) -> bool {
        let suspended = self.suspends();
        self.age = Age::Current;
        self.read_at = now;
        suspended
    }

    /// The last good rows were restored. If their time is up already, they become stale again, because
    /// before there was no peer to suspend.
    pub fn restored(&mut self) {
        if self.age == Age::Stale {
            self.age = Age::Aging;
        }
    }

    /// Whether the last attempt to read failed.
    pub fn in_doubt(&self) -> bool {
        self.age != Age::Current
    }

    pub fn is_stale(&self) -> bool {
        self.age == Age::Stale
    }

    /// Whether the kernel is to hold less than the rows say, and by which policy.
    pub fn suspending(&self) -> Option<StalePolicy> {
        let policy = self.options.policy;
        (self.is_stale() && policy != StalePolicy::Keep).then_some(policy)
    }

    pub fn suspends(&self) -> bool {
        self.suspending().is_some()
    }

    pub const fn read_at(&self) -> Instant {
        self.read_at
    }

    /// When the rows become stale.
    pub fn due(&self) -> Option<Instant> {
        if self.age == Age::Aging { self.read_at.checked_add(self.options.after) } else { None }
    }

    /// Returns for how long the rows have aged, and what to do, at the moment they become stale.
    pub fn let_time_pass(&mut self, now: Instant) -> Option<(Duration, StalePolicy)> {
        self.due().filter(|at| *at <= now)?;
        self.age = Age::Stale;
        Some((now.duration_since(self.read_at), self.options.policy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn staleness(policy: StalePolicy) -> (Staleness, Instant) {
        let start = Instant::now();
        (Staleness::new(StaleOptions { policy, after: HOUR }, start), start)
    }

    #[test]
    fn rows_that_cannot_be_read_become_stale_once() {
        let (mut rows, start) = staleness(StalePolicy::Down);
        assert_eq!(rows.due(), Some(start + HOUR));
        assert_eq!(rows.let_time_pass(start + HOUR / 2), None);
        assert_eq!(rows.let_time_pass(start + HOUR), Some((HOUR, StalePolicy::Down)));
        assert_eq!(rows.let_time_pass(start + HOUR * 2), None);
        assert!(rows.suspends() && rows.in_doubt());
        assert!(rows.renew(start + HOUR * 2));
        assert!(!rows.suspends() && !rows.in_doubt());
        assert_eq!(rows.due(), None, "rows that are read do not age");
    }

    #[test]
    fn another_failure_does_not_make_stale_rows_younger() {
        let (mut rows, start) = staleness(StalePolicy::DenyNew);
        rows.let_time_pass(start + HOUR);
        rows.doubt();
        assert!(rows.is_stale());
        rows.restored();
        assert_eq!(rows.let_time_pass(start + HOUR), Some((HOUR, StalePolicy::DenyNew)));
    }

    #[test]
    fn other_options_decide_anew_about_stale_rows() {
        let (mut rows, start) = staleness(StalePolicy::Down);
        rows.let_time_pass(start + HOUR);
        let patient = StaleOptions { policy: StalePolicy::Down, after: HOUR * 3 };
        assert!(rows.set_options(patient));
        assert_eq!(rows.let_time_pass(start + HOUR * 2), None);
        assert!(!rows.suspends());
        assert_eq!(rows.let_time_pass(start + HOUR * 3), Some((HOUR * 3, StalePolicy::Down)));
        assert!(rows.set_options(StaleOptions { policy: StalePolicy::Keep, after: HOUR }));
        assert_eq!(rows.let_time_pass(start + HOUR * 3), Some((HOUR * 3, StalePolicy::Keep)));
        assert!(!rows.suspends());
    }

    #[test]
    fn policy_keep_suspends_no_peer() {
        let (mut rows, start) = staleness(StalePolicy::Keep);
        rows.let_time_pass(start + HOUR);
        assert!(rows.is_stale() && !rows.suspends());
    }
}
