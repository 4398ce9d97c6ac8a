//! What of rows is in force although the removal of some peers waits for an operator. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::withdrawn::Tables;
use crate::model::{ChangedRows, DeviceId, GatewayRow, KeyText, PeerRow, PublicKey, SnapshotRows};

/// The new rows, but for `devices` of held peers, which keep their old rows as far as the new ones do
/// not narrow them. The gateway keeps its network: a mistake in it may be why they are held.
pub(super) fn snapshot(
    mut old: Tables,
    vpn_cidr: IpNet,
    new: &SnapshotRows,
    devices: &BTreeSet<DeviceId>,
) -> SnapshotRows {
    let by_device = Tables::of(new).peers;
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

/// The change, but for `devices` of held peers, which keep their old rows as far as the change does not narrow
/// them. One that it does not narrow is no part of it: where there is room for withdrawals alone, all devices
/// of a change lose their peers.
pub(super) fn changed(
    mut old: Tables,
    new: &ChangedRows,
    devices: &BTreeSet<DeviceId>,
) -> ChangedRows {
    let mut around = new.clone();
    around.peers.retain(|id, rows| {
        let kept = devices.contains(id).then(|| old.peers.remove(id).unwrap_or_default());
        let Some(kept) = kept else { return true };
        *rows = kept.iter().map(|row| narrowed(row.clone(), rows)).collect();
        *rows != kept
    });
    around
}

/// The devices of these peers, by old and new rows.
pub(super) fn devices_of(
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

/// An old row without the networks that its new version does not have, revoked as soon as either says.
fn narrowed(row: PeerRow, new: &[PeerRow]) -> PeerRow {
    let Some(new) = new.iter().find(|new| new.id == row.id) else { return row };
    let still = row.allowed_ips.iter().filter(|network| new.allowed_ips.contains(network));
    let revoked_at = row.revoked_at.into_iter().chain(new.revoked_at).min();
    PeerRow { allowed_ips: still.copied().collect(), revoked_at, ..row }
}
