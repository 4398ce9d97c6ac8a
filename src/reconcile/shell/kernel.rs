//! The shell's work on the kernel: one job at a time.

use tracing::debug;

use super::state::{Inner, Shell};
use crate::dataplane::{Dataplane, DataplaneError, SharedObserved};
use crate::plan::Plan;
use crate::reconcile::clock;
use crate::reconcile::event::Event;

impl<D: Dataplane + 'static> Shell<D> {
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
        event: fn(Result<T, DataplaneError>) -> Event,
    ) {
        self.kernel_job.begins(clock::now().instant);
        self.spawn_inner(async move {
            match job.await {
                Err(DataplaneError::ThreadGone) => Inner::DataplaneGone,
                answer => Inner::Event(event(answer)),
            }
        });
    }
}
