//! Finds the rows that take something away, in the shortest form. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    ChangedRows, DeviceId, GroupId, PeerRow, PolicyId, PolicyRow, SnapshotRows, UserId,
};
use crate::reconcile::event::LastGood;

/// A change without what it may grant: the devices that it concerns have no peer.
pub(super) fn of(rows: &ChangedRows) -> ChangedRows {
    ChangedRows {
        peers: rows.peers.keys().map(|device_id| (*device_id, Vec::new())).collect(),
        ..rows.clone()
    }
}

/// What `new` takes away from the old rows. `None`: that is not a matter of peers and policies.
pub(super) fn between(old: LastGood, new: &SnapshotRows) -> Option<ChangedRows> {
    let is_same = old.rows.gateway == new.gateway && old.rows.settings == new.settings;
    let (old, new_tables) = (Tables::after(old), Tables::of(new));
    let peers = old.peers.iter().filter(|(id, rows)| new_tables.peers.get(id) != Some(rows));
    let peers = peers.map(|(id, _)| (*id, Vec::new())).collect();
    let users = old.memberships.keys().chain(new_tables.memberships.keys());
    let groups = |tables: &Tables, id| tables.memberships.get(id).cloned().unwrap_or_default();
    let memberships = users
        .filter(|id| groups(&old, id) != groups(&new_tables, id))
        .map(|id| (*id, groups(&new_tables, id)))
        .collect();
    let ids = old.policies.keys().chain(new_tables.policies.keys());
    let policies = ids
        .filter(|id| old.policies.get(id) != new_tables.policies.get(id))
        .map(|id| (*id, new_tables.policies.get(id).cloned()))
        .collect();
    let withdrawn =
        ChangedRows { marks: Vec::new(), peers, memberships, policies, taken_at: new.taken_at };
    is_same.then_some(withdrawn)
}

/// Rows by what they are of.
pub(super) struct Tables {
    pub peers: BTreeMap<DeviceId, Vec<PeerRow>>,
    pub memberships: BTreeMap<UserId, BTreeSet<GroupId>>,
    pub policies: BTreeMap<PolicyId, PolicyRow>,
}

impl Tables {
    /// The rows with all that changed since.
    pub fn after(LastGood { rows, changes, .. }: LastGood) -> Self {
        let mut tables = Self::of(&rows);
        for change in changes {
            tables.peers.extend(change.peers);
            tables.memberships.extend(change.memberships);
            for (id, policy) in change.policies {
                match policy {
                    Some(policy) => drop(tables.policies.insert(id, policy)),
                    None => drop(tables.policies.remove(&id)),
                }
            }
        }
        tables
    }

    pub fn of(rows: &SnapshotRows) -> Self {
        let mut peers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in &rows.peers {
            peers.entry(row.device_id).or_default().push(row.clone());
        }
        let memberships = rows.memberships.iter().map(|it| (it.user_id, it.group_ids.clone()));
        let policies = rows.policies.iter().map(|policy| (policy.id, policy.clone()));
        Self { peers, memberships: memberships.collect(), policies: policies.collect() }
    }
}
