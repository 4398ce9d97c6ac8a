//! What the status says about the rows.

use super::view::status::QuarantinedPeer;
use crate::model::DesiredState;

/// So many quarantined peers are listed one by one.
pub(super) const LISTED_QUARANTINED: usize = 100;

#[derive(Debug, Clone, Default)]
pub(super) struct RowStatus {
    /// The first [`LISTED_QUARANTINED`] of them.
    pub quarantined: Vec<QuarantinedPeer>,
    pub warnings: Vec<String>,
}

impl RowStatus {
    pub fn of(desired: &DesiredState) -> Self {
        let mut warnings = row_warnings(desired);
        let unallocated = desired.unallocated_count();
        if unallocated > 0 {
            warnings.push(format!(
                "{unallocated} peers have an address that ip_allocations does not give them"
            ));
        }
        Self { quarantined: quarantined(desired), warnings }
    }
}

/// The parts of settings and policies that have no effect.
pub(super) fn row_warnings(desired: &DesiredState) -> Vec<String> {
    let settings = desired.setting_warnings().iter().map(ToString::to_string);
    settings.chain(desired.policy_notes().iter().map(ToString::to_string)).collect()
}

pub(super) fn quarantined(desired: &DesiredState) -> Vec<QuarantinedPeer> {
    let listed = desired.quarantined().take(LISTED_QUARANTINED);
    listed
        .map(|(row, reason)| QuarantinedPeer {
            peer_id: row.id,
            user: row.username.to_string(),
            device: row.device_name.to_string(),
            reason: reason.to_string(),
        })
        .collect()
}
