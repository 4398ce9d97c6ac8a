//! The data plane on a thread of its own, for async callers.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use tokio::sync::oneshot;

use super::nft::ProfileCounters;
use super::{Dataplane, DataplaneError, Glance, Outcome, Reading, SharedObserved};
use crate::model::ProfileId;
use crate::plan::Plan;

type Job<D> = Box<dyn FnOnce(&mut D) + Send>;

/// Sends jobs to the thread that owns a data plane, in order, and awaits their results. Dropping
/// the last handle ends the thread after the work it has.
pub struct DataplaneHandle<D> {
    jobs: Sender<Job<D>>,
}

impl<D> Clone for DataplaneHandle<D> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

impl<D: Dataplane + 'static> DataplaneHandle<D> {
    /// Starts the thread, in the network namespace of the calling thread, and makes the data plane
    /// in it.
    ///
    /// # Errors
    /// When the thread cannot be started or `make` fails.
    pub fn spawn(
        make: impl FnOnce() -> Result<D, DataplaneError> + Send + 'static,
    ) -> Result<Self, DataplaneError> {
        let (jobs, incoming) = channel::<Job<D>>();
        let (made, outcome) = channel();
        let run = move || match make() {
            Ok(mut dataplane) => {
                let _ = made.send(Ok(()));
                incoming.iter().for_each(|job| job(&mut dataplane));
            }
            Err(error) => {
                let _ = made.send(Err(error));
            }
        };
        thread::Builder::new()
            .name("dataplane".to_owned())
            .spawn(run)
            .map_err(DataplaneError::Thread)?;
        outcome.recv().map_err(|_| DataplaneError::ThreadGone)??;
        Ok(Self { jobs })
    }

    /// Reads everything back.
    ///
    /// # Errors
    /// When something of ours cannot be read whole: then nothing is known.
    pub async fn observe(&self) -> Result<Reading, DataplaneError> {
        self.run(Dataplane::observe).await?
    }

    /// Reads back what does not grow with the peers.
    ///
    /// # Errors
    /// When something of ours cannot be read.
    pub async fn glance(&self) -> Result<Glance, DataplaneError> {
        self.run(Dataplane::glance).await?
    }

    /// Applies a plan, and updates `observed` with each acknowledged step.
    ///
    /// # Errors
    /// [`DataplaneError::ThreadGone`]
    pub async fn apply(
        &self,
        plan: Plan,
        observed: SharedObserved,
    ) -> Result<Outcome, DataplaneError> {
        self.run(move |dataplane| dataplane.apply(&plan, &observed)).await
    }

    /// What a profile's rules counted since they were loaded; `None`: there is no such profile.
    ///
    /// # Errors
    /// When the rules cannot be read.
    pub async fn counters_of(
        &self,
        id: ProfileId,
    ) -> Result<Option<ProfileCounters>, DataplaneError> {
        self.run(move |dataplane| dataplane.counters_of(id)).await?
    }

    /// Runs anything else on the thread.
    ///
    /// # Errors
    /// [`DataplaneError::ThreadGone`]
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut D) -> T + Send + 'static,
    ) -> Result<T, DataplaneError> {
        let (answer, answered) = oneshot::channel();
        let job: Job<D> = Box::new(move |dataplane| {
            // The caller may have stopped waiting.
            let _ = answer.send(job(dataplane));
        });
        self.jobs.send(job).map_err(|_| DataplaneError::ThreadGone)?;
        answered.await.map_err(|_| DataplaneError::ThreadGone)
    }
}
