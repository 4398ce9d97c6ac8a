//! Figures that grow since the agent started.

use serde::{Deserialize, Serialize};

use crate::reconcile::lags::{BOUNDS_MS, Lags};
use crate::reconcile::volume::Volume;

/// Bytes that the gateway received from and sent to all peers, as of the last complete reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrafficStatus {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// A histogram of [`lag_ms`](super::SyncStatus::lag_ms).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LagsStatus {
    pub count: u64,
    pub sum_ms: u64,
    pub at_most: Vec<LagClass>,
}

/// How many passes took at most so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LagClass {
    pub ms: u64,
    pub count: u64,
}

impl From<Volume> for TrafficStatus {
    fn from(Volume { rx_bytes, tx_bytes }: Volume) -> Self {
        Self { rx_bytes, tx_bytes }
    }
}

impl From<Lags> for LagsStatus {
    fn from(lags: Lags) -> Self {
        let classes = BOUNDS_MS.into_iter().zip(lags.at_most);
        Self {
            count: lags.count,
            sum_ms: u64::try_from(lags.sum.as_millis()).unwrap_or(u64::MAX),
            at_most: classes.map(|(ms, count)| LagClass { ms, count }).collect(),
        }
    }
}
