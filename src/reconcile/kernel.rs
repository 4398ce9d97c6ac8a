//! The shell's work on the kernel: one job at a time, and none for ever.

use std::time::{Duration, Instant};

use tracing::debug;

use super::database::chain;
use super::event::Event;
use super::shell::{Host, Inner, Shell};
use super::summary::clock;
use crate::dataplane::{DataplaneError, SharedObserved};
use crate::plan::Plan;

/// A job that takes longer than this will not end: bringing up 100,000 peers takes seconds, on an
/// emulated processor a minute.
const KERNEL_JOB_AT_MOST: Duration = Duration::from_secs(300);

/// Why nothing is done any more.
pub(super) const KERNEL_IS_STUCK: &str = "the kernel has not answered for five minutes";

/// Since when a job has been under way, if one is.
#[derive(Debug, Default)]
pub(super) struct KernelJob(Option<Instant>);

impl KernelJob {
    pub fn begins(&mut self, now: Instant) {
        self.0 = Some(now);
    }

    /// Learns of its end.
    pub fn hears(&mut self, event: &Event) {
        if matches!(event, Event::Observed(_) | Event::Glanced(_) | Event::Applied(_)) {
            self.0 = None;
        }
    }

    pub const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    pub fn is_stuck(&self, now: Instant) -> bool {
        self.0.is_some_and(|since| now.duration_since(since) > KERNEL_JOB_AT_MOST)
    }
}

impl<D: Host> Shell<D> {
    pub(super) fn observe(&mut self) {
        let dataplane = self.dataplane.clone();
        let reading = async move { dataplane.observe().await.map(Box::new) };
        self.spawn_kernel_job(reading, Event::Observed);
    }

    pub(super) fn glance(&mut self) {
        let dataplane = self.dataplane.clone();
        self.spawn_kernel_job(async move { dataplane.glance().await }, Event::Glanced);
    }

    pub(super) fn apply(&mut self, plan: Plan, observed: SharedObserved) {
        for step in plan.steps() {
            debug!(phase = ?step.phase(), "{step}");
        }
        let dataplane = self.dataplane.clone();
        let applied = async move { dataplane.apply(plan, observed).await };
        // After an error what the kernel holds is in doubt: it is to be read.
        let event = |applied: Result<_, _>| {
            applied.map_or_else(|error| Event::Observed(Err(error)), Event::Applied)
        };
        self.spawn_kernel_job(applied, event);
    }

    fn spawn_kernel_job<T: Send + 'static>(
        &mut self,
        job: impl Future<Output = Result<T, DataplaneError>> + Send + 'static,
        event: fn(Result<T, String>) -> Event,
    ) {
        self.kernel_job.begins(clock().instant);
        self.spawn_inner(async move {
            match job.await {
                Err(DataplaneError::ThreadGone) => Inner::DataplaneGone,
                answer => Inner::Event(event(answer.map_err(|error| chain(&error)))),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_does_not_end_is_stuck_and_a_slow_one_is_not() {
        let start = Instant::now();
        let mut job = KernelJob::default();
        assert!(!job.is_stuck(start + KERNEL_JOB_AT_MOST * 2));
        job.begins(start);
        assert!(!job.is_stuck(start + KERNEL_JOB_AT_MOST));
        job.hears(&Event::Notified);
        assert!(job.is_stuck(start + KERNEL_JOB_AT_MOST * 2));
        job.hears(&Event::Glanced(Err("interrupted".into())));
        assert!(!job.is_stuck(start + KERNEL_JOB_AT_MOST * 2));
    }
}
