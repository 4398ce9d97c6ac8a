//! What the status says about the rows.

use super::view::status::{QuarantinedPeer, QuarantinedPolicy};
use crate::count::count;
use crate::model::DesiredState;

/// So many quarantined or held peers are listed one by one.
pub(super) const LISTED_PEERS: usize = 100;

#[derive(Debug, Clone, Default)]
pub(super) struct RowStatus {
    /// The first [`LISTED_PEERS`] of them.
    pub quarantined: Vec<QuarantinedPeer>,
    pub quarantined_policies: Vec<QuarantinedPolicy>,
    pub warnings: Vec<String>,
}

impl RowStatus {
    pub fn of(desired: &DesiredState) -> Self {
        let mut warnings = row_warnings(desired);
        let unallocated = desired.unallocated_count();
        if unallocated > 0 {
            let peers = count(unallocated, "peer");
            warnings.push(format!("ip_allocations does not give its address to {peers}"));
        }
        let quarantined_policies = quarantined_policies(desired);
        Self { quarantined: quarantined(desired), quarantined_policies, warnings }
    }
}

/// The parts of settings and policies that have no effect.
pub(super) fn row_warnings(desired: &DesiredState) -> Vec<String> {
    let settings = desired.setting_warnings().iter().map(ToString::to_string);
    settings.chain(desired.policy_notes().iter().map(ToString::to_string)).collect()
}

fn quarantined_policies(desired: &DesiredState) -> Vec<QuarantinedPolicy> {
    let policies = desired.quarantined_policies().into_iter();
    policies
        .map(|(policy_id, policy)| QuarantinedPolicy {
            policy_id,
            policy: policy.name.into(),
            peers: policy.peers as u64,
            reason: policy.why.into(),
        })
        .collect()
}

pub(super) fn quarantined(desired: &DesiredState) -> Vec<QuarantinedPeer> {
    let listed = desired.quarantined().take(LISTED_PEERS);
    listed
        .map(|(row, reason)| QuarantinedPeer {
            peer_id: row.id,
            user: row.username.to_string(),
            device: row.device_name.to_string(),
            reason: reason.to_string(),
        })
        .collect()
}
