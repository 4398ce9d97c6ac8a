//! Merges the reports of all gateways, on a connection of its own: a slow trigger of the control plane
//! delays no hint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost::model::GatewayId;
use gatepost::store::{Store, StoreError};
use tokio::sync::watch;

use super::state::{BellState, Counts};
use super::troubles::{Failure, Troubles};

const MERGE_EVERY: Duration = Duration::from_secs(1);

pub struct Merger {
    pub store: Store,
    pub state: watch::Receiver<BellState>,
    pub counts: Arc<Counts>,
}

impl Merger {
    /// Merges while this bell rings, until it is cancelled.
    pub async fn run(mut self) {
        let mut troubles = Troubles::default();
        // Fails only when the bell has ended.
        while self.state.wait_for(|state| *state == BellState::Ringing).await.is_ok() {
            if let Err(error) = self.merge_all(&mut troubles).await {
                // The bell's own look says that the database is away.
                tracing::debug!(%error, "cannot merge reports: {error}");
            }
            tokio::time::sleep(MERGE_EVERY).await;
        }
    }

    async fn merge_all(&self, troubles: &mut Troubles) -> Result<(), StoreError> {
        for gateway in self.store.unmerged().await? {
            let Some(at_most) = troubles.page(gateway, Instant::now()) else { continue };
            let began = Instant::now();
            let merged = match self.store.merge_gateway(gateway, at_most).await {
                Ok(merged) => merged,
                // It is not the reports that are at fault.
                Err(error) if error.concerns_every_statement() => return Err(error),
                Err(error) => {
                    // It must not keep those after it waiting.
                    self.failed(troubles, gateway, &error);
                    continue;
                }
            };
            Counts::add(&self.counts.merges, 1);
            if troubles.merged(gateway, began.elapsed()) {
                tracing::info!(
                    message_id = "3275278b0e464cdf9082f2da0d79968c",
                    %gateway,
                    "the reports of gateway {gateway} are merged again"
                );
            }
            for why in &merged.lost {
                tracing::warn!(%gateway, why, "a report of gateway {gateway} is lost: {why}");
            }
            if !merged.refusals.is_empty() {
                // The gateway's own agent tells its operator.
                troubles.refused(gateway, Instant::now());
            }
        }
        Ok(())
    }

    fn failed(&self, troubles: &mut Troubles, gateway: GatewayId, error: &StoreError) {
        Counts::add(&self.counts.merge_failures, 1);
        let failure = if error.took_too_long() { Failure::TookTooLong } else { Failure::Other };
        if troubles.failed(gateway, failure, Instant::now()) {
            tracing::warn!(
                message_id = "dc1aef25fc754e7fb023bf570d868ea4",
                %gateway,
                %error,
                "the reports of gateway {gateway} wait, and are tried again: {error}"
            );
        }
    }
}
