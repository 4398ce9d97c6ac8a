//! Asks the database for the names that an answer uses.

use std::collections::BTreeSet;
use std::time::Duration;

use super::status::{PeerState, PeerStatus};
use crate::model::policy::Plain;
use crate::model::{DEVICE_NOT_ACTIVE as NOT_ACTIVE, DeviceId, GroupId};
use crate::store::{Store, Words};

/// Words are worth no longer wait.
const WITHIN: Duration = Duration::from_secs(2);
/// A list of more devices is too long to read each one's status.
const DEVICES_AT_MOST: usize = 1_000;

/// The names of these groups and the statuses of these devices, as far as the database says so in time.
pub(super) async fn words(
    store: &Store,
    groups: &BTreeSet<GroupId>,
    devices: &BTreeSet<DeviceId>,
) -> Words {
    if groups.is_empty() && devices.is_empty() {
        return Words::default();
    }
    let asked = tokio::time::timeout(WITHIN, store.words(groups, devices)).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

/// Whether this is why a peer is left out: its device has a status that the reason does not name.
pub(super) fn is_for_its_status(reason: &str) -> bool {
    reason.contains(NOT_ACTIVE)
}

/// Names the device's status.
pub(super) fn tell_status(reason: &mut String, status: &str) {
    *reason =
        reason.replace(NOT_ACTIVE, &format!("{NOT_ACTIVE} (its status is {})", Plain(status)));
}

/// Which peers a list has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) enum Listed {
    All,
    /// Those of one user: each is told completely, however many there are.
    OfUser,
}

/// Names the statuses of the devices that are not active.
pub(in crate::reconcile) async fn peers_in_words(
    mut peers: Vec<PeerStatus>,
    listed: Listed,
    store: &Store,
) -> Vec<PeerStatus> {
    let most = match listed {
        Listed::All => DEVICES_AT_MOST,
        Listed::OfUser => usize::MAX,
    };
    let devices: BTreeSet<_> = inactive(&mut peers).map(|(id, _)| id).take(most).collect();
    let Words { statuses, .. } = words(store, &BTreeSet::new(), &devices).await;
    for (id, reason) in inactive(&mut peers) {
        if let Some(status) = statuses.get(&id) {
            tell_status(reason, status);
        }
    }
    peers
}

/// The devices that are left out for their status, and the reasons to complete.
fn inactive(peers: &mut [PeerStatus]) -> impl Iterator<Item = (DeviceId, &mut String)> {
    peers.iter_mut().filter_map(|peer| match (&mut peer.state, peer.device_id) {
        (PeerState::Ineligible { reason } | PeerState::Blocked { reason }, Some(id)) => {
            is_for_its_status(reason).then_some((id, reason))
        }
        _ => None,
    })
}
