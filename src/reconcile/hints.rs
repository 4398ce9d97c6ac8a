//! Hints: what an agent hears of changes from a broker instead of its database.
//!
//! A hint says *look again* and nothing else, so it may be lost, doubled or forged. However many
//! come, the loop finds one.

use tokio::sync::watch;

use crate::model::GatewayId;

/// The loop's end.
#[derive(Debug)]
pub struct Hints {
    /// The last news. The task that listens changes it.
    pub heard: watch::Receiver<Heard>,
    /// For which gateway to listen; `None` until the database has said it.
    pub gateway: watch::Sender<Option<GatewayId>>,
}

/// The end of the task that hears.
#[derive(Debug)]
pub struct Hearing {
    pub heard: watch::Sender<Heard>,
    pub gateway: watch::Receiver<Option<GatewayId>>,
}

/// The news so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Hints for this gateway or all.
    pub hints: u64,
    /// The bell's signs of life.
    pub signs_of_life: u64,
    /// Why nothing can be heard; `None`: as far as is known, everything can.
    pub trouble: Option<String>,
}

/// Both ends.
#[must_use]
pub fn hints() -> (Hints, Hearing) {
    let (heard_tx, heard) = watch::channel(Heard::default());
    let (gateway, gateway_rx) = watch::channel(None);
    (Hints { heard, gateway }, Hearing { heard: heard_tx, gateway: gateway_rx })
}
