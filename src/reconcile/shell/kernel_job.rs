//! How long the job on the kernel has been under way.

use std::time::{Duration, Instant};

use crate::reconcile::event::Event;

/// A job that takes longer than this will not end: bringing up 100,000 peers takes seconds, on an
/// emulated processor a minute.
const KERNEL_JOB_AT_MOST: Duration = Duration::from_secs(300);

/// Why no work is done any more.
pub(super) const KERNEL_IS_STUCK: &str = "the kernel has not answered for five minutes";

/// A job that takes longer than this is told of, again and again.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// When the job under way began; `None`: there is no job.
#[derive(Debug, Default)]
pub(super) struct KernelJob {
    since: Option<Instant>,
    told_at: Option<Instant>,
}

impl KernelJob {
    pub fn begins(&mut self, now: Instant) {
        self.since = Some(now);
        self.told_at = Some(now);
    }

    /// Whether an operator who waits should hear how far it is.
    pub fn tells(&mut self, now: Instant) -> bool {
        let told_at = self.told_at.filter(|_| self.since.is_some());
        let tells = told_at.is_some_and(|at| now.duration_since(at) >= TELL_EVERY);
        if tells {
            self.told_at = Some(now);
        }
        tells
    }

    /// Learns of its end.
    pub fn hears(&mut self, event: &Event) {
        if matches!(event, Event::Observed(_) | Event::Glanced(_) | Event::Applied(_)) {
            self.since = None;
        }
    }

    pub const fn is_under_way(&self) -> bool {
        self.since.is_some()
    }

    pub fn is_stuck(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) > KERNEL_JOB_AT_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::DataplaneError;

    #[test]
    fn progress_of_a_long_job_is_told_now_and_then() {
        let start = Instant::now();
        let mut job = KernelJob::default();
        assert!(!job.tells(start));
        job.begins(start);
        assert!(!job.tells(start + TELL_EVERY / 2));
        assert!(job.tells(start + TELL_EVERY));
        assert!(!job.tells(start + TELL_EVERY));
        assert!(job.tells(start + TELL_EVERY * 2));
        job.hears(&Event::Glanced(Err(DataplaneError::ThreadGone)));
        assert!(!job.tells(start + TELL_EVERY * 9), "it has ended");
    }

    #[test]
    fn a_job_that_does_not_end_is_stuck_and_a_slow_one_is_not() {
        let start = Instant::now();
        let mut job = KernelJob::default();
        assert!(!job.is_stuck(start + KERNEL_JOB_AT_MOST * 2));
        job.begins(start);
        assert!(!job.is_stuck(start + KERNEL_JOB_AT_MOST));
        job.hears(&Event::Notified);
        assert!(job.is_stuck(start + KERNEL_JOB_AT_MOST * 2));
        job.hears(&Event::Glanced(Err(DataplaneError::ThreadGone)));
        assert!(!job.is_stuck(start + KERNEL_JOB_AT_MOST * 2));
    }
}
