//! Merges the reports of all gateways, on a connection of its own: a slow trigger of the control plane
//! delays no hint.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost::model::GatewayId;
use gatepost::store::{Store, StoreError};
use tokio::sync::watch;

use super::state::{BellState, Counts};

const MERGE_EVERY: Duration = Duration::from_secs(1);
/// Before reports that a table refuses are tried again.
const REFUSED_FOR: Duration = Duration::from_mins(1);

pub struct Merger {
    pub store: Store,
    pub state: watch::Receiver<BellState>,
    pub counts: Arc<Counts>,
}

impl Merger {
    /// Merges while this bell rings, until it is cancelled.
    pub async fn run(mut self) {
        let mut refused = BTreeMap::new();
        // Fails only when the bell has ended.
        while self.state.wait_for(|state| *state == BellState::Ringing).await.is_ok() {
            if let Err(error) = self.merge_all(&mut refused).await {
                // The bell's own look says that the database is away.
                tracing::debug!(%error, "cannot merge reports: {error}");
            }
            tokio::time::sleep(MERGE_EVERY).await;
        }
    }

    async fn merge_all(
        &self,
        refused: &mut BTreeMap<GatewayId, Instant>,
    ) -> Result<(), StoreError> {
        let now = Instant::now();
        refused.retain(|_, since| now.saturating_duration_since(*since) < REFUSED_FOR);
        for gateway in self.store.unmerged().await? {
            if refused.contains_key(&gateway) {
                continue;
            }
            let merged = match self.store.merge_gateway(gateway).await {
                Ok(merged) => merged,
                Err(error) => {
                    // It must not keep those after it waiting.
                    tracing::debug!(%gateway, %error, "cannot merge reports: {error}");
                    refused.insert(gateway, now);
                    continue;
                }
            };
            Counts::add(&self.counts.merges, 1);
            for why in &merged.lost {
                tracing::warn!(%gateway, why, "a report of gateway {gateway} is lost: {why}");
            }
            if !merged.refusals.is_empty() {
                // The gateway's own agent tells its operator.
                refused.insert(gateway, now);
            }
        }
        Ok(())
    }
}
