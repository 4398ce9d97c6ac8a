//! Merges the reports of all gateways, on a connection of its own: a slow trigger of the control plane
//! delays no hint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost::model::GatewayId;
use gatepost::store::{Store, StoreError, Together};
use tokio::sync::watch;

use super::state::{BellState, Counts};
use super::troubles::{Failure, Troubles};

const MERGE_EVERY: Duration = Duration::from_secs(1);
/// How many reports of all gateways a transaction merges at first, and at most.
const FIRST_TOGETHER: u32 = 16;
const MOST_TOGETHER: u32 = 256;
/// A writer of the control plane may wait about so long for a row of a gateway.
const HELD_FOR: Duration = Duration::from_millis(20);

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
        if self.store.merges_together().await? {
            self.store.look_for_unwatched().await?;
            for kind in [Together::Proofs, Together::AuditEntries] {
                self.merge_together(kind).await;
            }
        }
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

    /// Merges reports of this kind that nothing refuses, of all gateways.
    async fn merge_together(&self, kind: Together) {
        let mut at_most = FIRST_TOGETHER;
        let round = Instant::now();
        // A trigger of the control plane that undoes each write must not keep all else waiting.
        while round.elapsed() < MERGE_EVERY {
            let began = Instant::now();
            match self.store.merge_together(kind, at_most).await {
                Ok(count) if count >= at_most => at_most = next_page(at_most, began.elapsed()),
                Ok(_) => return,
                Err(error) => {
                    // They are merged with their gateways' other reports.
                    tracing::debug!(?kind, %error, "cannot merge together: {error}");
                    return;
                }
            }
        }
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

/// How many reports to merge after so many took so long: a trigger of the control plane may be slow.
fn next_page(before: u32, took: Duration) -> u32 {
    if took < HELD_FOR / 2 {
        (before * 2).min(MOST_TOGETHER)
    } else if took > HELD_FOR {
        (before / 2).max(1)
    } else {
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_reports_are_merged_at_once_while_that_is_quick_and_fewer_where_a_trigger_is_slow() {
        let quick = Duration::from_millis(1);
        let pages = std::iter::successors(Some(FIRST_TOGETHER), |it| Some(next_page(*it, quick)));
        assert_eq!(pages.take(6).collect::<Vec<_>>(), [16, 32, 64, 128, 256, 256]);
        let slow = Duration::from_secs(1);
        let pages = std::iter::successors(Some(4), |it| Some(next_page(*it, slow)));
        assert_eq!(pages.take(4).collect::<Vec<_>>(), [4, 2, 1, 1]);
        assert_eq!(next_page(8, Duration::from_millis(15)), 8);
    }
}
