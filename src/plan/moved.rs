//! The prefixes that a step takes from its peer, and those that it gives to it.

use ipnet::IpNet;

use super::Step;
use crate::model::{AllowedIps, ObservedState};

/// The prefixes that a step withdraws from its peer.
pub(super) fn withdrawn_by(step: &Step, observed: &ObservedState) -> AllowedIps {
    let had = |key| observed.peers.get(key).map(|peer| &peer.allowed_ips);
    match step {
        Step::RemovePeer { key } => had(key).cloned().unwrap_or_default(),
        Step::NarrowPeer { key, allowed_ips } => {
            had(key).map(|had| had.difference(allowed_ips)).unwrap_or_default()
        }
        _ => AllowedIps::default(),
    }
}

/// The prefixes that a step gives to its peer.
pub(super) fn given_by(step: &Step) -> impl Iterator<Item = IpNet> {
    let given = match step {
        Step::AddPeer { peer, .. } => Some(&peer.allowed_ips),
        Step::WidenPeer { allowed_ips, .. } => Some(allowed_ips),
        _ => None,
    };
    given.into_iter().flat_map(AllowedIps::iter)
}
