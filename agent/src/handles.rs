//! The two ends of what lies between the loop and everything that watches it.
//!
//! The loop publishes its [`Status`], beats its [`Pulse`] and answers an [`Ask`]; the control
//! socket, the metrics and systemd only read and ask. Neither end waits for the other.

use std::time::Instant;

pub use gatepost::reconcile::Ask;
use tokio::sync::{mpsc, watch};

use crate::pulse::Pulse;
use gatepost::reconcile::status::Status;

/// The end of those who watch. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Watcher {
    pub status: watch::Receiver<Status>,
    pub asks: mpsc::Sender<Ask>,
    pub pulse: Pulse,
}

/// The loop's end.
#[derive(Debug)]
pub struct LoopEnd {
    pub status: watch::Sender<Status>,
    pub asks: mpsc::Receiver<Ask>,
    pub pulse: Pulse,
    /// Becomes true when the loop should finish its pass and return.
    pub stop: watch::Receiver<bool>,
}

/// Makes both ends, and the sender that tells the loop to stop.
#[must_use]
pub fn pair(initial: Status, now: Instant) -> (Watcher, LoopEnd, watch::Sender<bool>) {
    /// More unanswered questions than this wait outside.
    const ASKS: usize = 16;
    let (status_tx, status_rx) = watch::channel(initial);
    let (asks_tx, asks_rx) = mpsc::channel(ASKS);
    let (stop_tx, stop_rx) = watch::channel(false);
    let pulse = Pulse::new(now);
    let watcher = Watcher { status: status_rx, asks: asks_tx, pulse: pulse.clone() };
    (watcher, LoopEnd { status: status_tx, asks: asks_rx, pulse, stop: stop_rx }, stop_tx)
}
