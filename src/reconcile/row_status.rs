//! The rows in the status.

use super::view::status::{QuarantinedPeer, QuarantinedPolicy};
use crate::count::count;
use crate::model::DesiredState;
use crate::reconcile::name::peer_name;

/// How many quarantined or held peers are listed one by one.
pub(super) const LISTED_PEERS: usize = 100;
/// How many flaws of policies are listed one by one.
const LISTED_NOTES: usize = 100;

#[derive(Debug, Clone, Default)]
pub(super) struct RowStatus {
    /// The first [`LISTED_PEERS`] of them.
    pub quarantined: Vec<QuarantinedPeer>,
    pub quarantined_policies: Vec<QuarantinedPolicy>,
    /// [`DesiredState::quarantined_policies_version`] when they were listed.
    policies_version: u64,
    pub warnings: Vec<String>,
}

impl RowStatus {
    /// Lists what is new since the former one, which a change of rows made out of date.
    pub fn renew(&mut self, desired: &DesiredState) {
        self.warnings = row_warnings(desired);
        self.quarantined = quarantined(desired);
        let version = desired.quarantined_policies_version();
        if self.policies_version != version {
            self.quarantined_policies = quarantined_policies(desired);
            self.policies_version = version;
        }
    }
}

/// The parts of settings, policies and the gateway's row that have no effect, and peers with the address of
/// no allocation. Of many, the first are listed.
pub(super) fn row_warnings(desired: &DesiredState) -> Vec<String> {
    let settings = desired.setting_warnings().iter().map(ToString::to_string);
    let gateway = desired.gateway_dns_beyond().map(|beyond| beyond.to_string());
    let notes = desired.policy_notes();
    let (listed, more) = notes.split_at(notes.len().min(LISTED_NOTES));
    let more = (!more.is_empty())
        .then(|| format!("{} of other policies are not listed here", count(more.len(), "flaw")));
    let listed = listed.iter().map(ToString::to_string);
    settings.chain(gateway).chain(listed).chain(more).chain(unallocated(desired)).collect()
}

/// One line for all: a control plane that writes no allocations has none for any peer.
fn unallocated(desired: &DesiredState) -> Option<String> {
    const FIRST: usize = 5;
    let rows = desired.unallocated();
    let all = rows.len();
    let first: Vec<String> = rows
        .take(FIRST)
        .map(|row| format!("{} ({})", peer_name(row), row.assigned_ip.addr()))
        .collect();
    let more = all.saturating_sub(FIRST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (all > 0).then(|| {
        format!(
            "ip_allocations does not give its address to {}: {}{more}; write a row with this gateway, \
             the address, the device and status 'allocated', or another assigned_ip",
            count(all, "peer"),
            first.join(", ")
        )
    })
}

fn quarantined_policies(desired: &DesiredState) -> Vec<QuarantinedPolicy> {
    let policies = desired.quarantined_policies().into_iter();
    policies
        .map(|(policy_id, policy)| QuarantinedPolicy {
            policy_id,
            policy: policy.name.into(),
            peers: policy.peers as u64,
            reason: policy.why.into(),
            remedy: policy.remedy.into(),
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
