//! The channels between the loop and everything that watches it.
//!
//! The loop publishes its [`Status`], beats its [`Pulse`] and answers each [`Ask`]. The control
//! socket, the metrics and systemd only read and ask. Neither side waits for the other.

use std::time::Instant;

pub use gatepost::reconcile::Ask;
use tokio::sync::{mpsc, watch};

use crate::denied::Recent;
use crate::hindrances::Hindrances;
use crate::pulse::Pulse;
use gatepost::reconcile::status::Status;

/// The handle that the control socket, the metrics and systemd hold. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Watcher {
    pub status: watch::Receiver<Status>,
    pub asks: mpsc::Sender<Ask>,
    pub pulse: Pulse,
    pub denied: Recent,
    pub hindrances: Hindrances,
}

impl Watcher {
    /// The status as of now, with what does not concern the loop.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut status = self.status.borrow().clone();
        status.warnings.extend(self.denied.trouble());
        status.warnings.extend(self.hindrances.texts());
        status
    }
}

/// The handle that the loop holds.
#[derive(Debug)]
pub struct LoopHandle {
    pub status: watch::Sender<Status>,
    pub asks: mpsc::Receiver<Ask>,
    pub pulse: Pulse,
    /// Looked for again when the kernel announces a change.
    pub hindrances: Hindrances,
    /// Becomes true when the loop is to finish its pass and return.
    pub stop: watch::Receiver<bool>,
}

/// Makes both, and the sender that tells the loop to stop.
#[must_use]
pub fn channels(initial: Status, now: Instant) -> (Watcher, LoopHandle, watch::Sender<bool>) {
    /// Unanswered requests that the channel holds; a further one waits outside.
    const ASKS: usize = 16;
    let (status_tx, status_rx) = watch::channel(initial);
    let (asks_tx, asks_rx) = mpsc::channel(ASKS);
    let (stop_tx, stop_rx) = watch::channel(false);
    let pulse = Pulse::new(now);
    let hindrances = Hindrances::default();
    let watcher = Watcher {
        status: status_rx,
        asks: asks_tx,
        pulse: pulse.clone(),
        denied: Recent::new(false),
        hindrances: hindrances.clone(),
    };
    let handle = LoopHandle { status: status_tx, asks: asks_rx, pulse, hindrances, stop: stop_rx };
    (watcher, handle, stop_tx)
}
