//! What a reader of changes gets.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gatepost::model::ChangedRows;

use crate::rows::Tables;

/// The rows that differ.
pub fn changes(old: &Tables, new: &Tables, taken_at: SystemTime) -> ChangedRows {
    let devices = |tables: &Tables| {
        let mut devices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in tables.peers.values() {
            devices.entry(row.device_id).or_default().push(row.clone());
        }
        devices
    };
    let (had, has) = (devices(old), devices(new));
    let named = had.keys().chain(has.keys()).filter(|id| had.get(id) != has.get(id));
    ChangedRows {
        marks: Vec::new(),
        peers: named.map(|id| (*id, has.get(id).cloned().unwrap_or_default())).collect(),
        memberships: BTreeMap::new(),
        policies: old
            .policies
            .keys()
            .chain(new.policies.keys())
            .filter(|id| old.policies.get(id) != new.policies.get(id))
            .map(|id| (*id, new.policies.get(id).cloned()))
            .collect(),
        taken_at,
    }
}
