//! What of rows is in force although the removal of some peers waits for an operator. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::withdrawn::Tables;
use crate::model::{ChangedRows, DeviceId, GatewayRow, KeyText, PeerRow, PublicKey, SnapshotRows};
use crate::reconcile::event::LastGood;

/// The new rows, but for the devices of the `held` peers, which keep their old rows as far as the new ones do
/// not narrow them. The gateway keeps its network: a mistake in it may be why they are held.
pub(super) fn snapshot(
    old: LastGood,
    new: &SnapshotRows,
    held: &BTreeSet<PublicKey>,
) -> SnapshotRows {
    let vpn_cidr = old.rows.gateway.vpn_cidr;
    let (mut old, by_device) = (Tables::after(old), Tables::of(new).peers);
    let devices = devices_of(held, [&old.peers, &by_device]);
    let kept = devices.iter().flat_map(|id| {
        let new_rows = by_device.get(id).map_or(&[][..], Vec::as_slice);
        let rows = old.peers.remove(id).unwrap_or_default();
        rows.into_iter().map(|row| narrowed(row, new_rows))
    });
    let kept: Vec<_> = kept.collect();
    let others = new.peers.iter().filter(|row| !devices.contains(&row.device_id)).cloned();
    SnapshotRows {
        gateway: GatewayRow { vpn_cidr, ..new.gateway.clone() },
        settings: new.settings.clone(),
        peers: others.chain(kept).collect(),
        memberships: new.memberships.clone(),
        policies: new.policies.clone(),
        taken_at: new.taken_at,
    }
}

/// The change, but for the devices of the `held` peers.
pub(super) fn changed(old: LastGood, new: &ChangedRows, held: &BTreeSet<PublicKey>) -> ChangedRows {
    let devices = devices_of(held, [&Tables::after(old).peers, &new.peers]);
    let mut around = new.clone();
    around.peers.retain(|id, _| !devices.contains(id));
    around
}

fn devices_of(
    held: &BTreeSet<PublicKey>,
    peers: [&BTreeMap<DeviceId, Vec<PeerRow>>; 2],
) -> BTreeSet<DeviceId> {
    let is_held = |row: &&PeerRow| match row.public_key {
        KeyText::Key(key) => held.contains(&key),
        KeyText::Bad { .. } => false,
    };
    let rows = peers.into_iter().flat_map(BTreeMap::values).flatten();
    rows.filter(is_held).map(|row| row.device_id).collect()
}

/// An old row without the networks that its new version does not have.
fn narrowed(row: PeerRow, new: &[PeerRow]) -> PeerRow {
    let Some(new) = new.iter().find(|new| new.id == row.id) else { return row };
    let still = row.allowed_ips.iter().filter(|network| new.allowed_ips.contains(network));
    PeerRow { allowed_ips: still.copied().collect(), ..row }
}
