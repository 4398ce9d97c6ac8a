//! The loop of an agent, as it runs in a test.

use std::time::Duration;

use gatepost::reconcile::status::Status;
use gatepost::reconcile::{Ask, Options, RunError, run};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::agent::Memory;

/// Some things are tried once a minute.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// An agent that runs.
pub struct Running {
    pub status: watch::Receiver<Status>,
    pub stop: watch::Sender<bool>,
    pub ends: JoinHandle<Result<(), RunError>>,
    _asks: mpsc::Sender<Ask>,
}

impl Running {
    pub fn start(options: Options<Memory>) -> Self {
        let (say, status) = watch::channel(Status::default());
        let (stop, stopped) = watch::channel(false);
        let (asks, questions) = mpsc::channel(1);
        let ends = tokio::spawn(run(options, questions, say, stopped, || ()));
        Self { status, stop, ends, _asks: asks }
    }

    pub async fn waits_for(&mut self, what: &str, holds: impl Fn(&Status) -> bool) {
        let waited = timeout(PATIENCE, self.status.wait_for(|status| holds(status))).await.is_ok();
        assert!(waited, "never {what}: {:?}", self.status.borrow());
    }

    pub async fn stop(self) {
        self.stop.send(true).unwrap();
        self.ends.await.unwrap().unwrap();
    }
}
