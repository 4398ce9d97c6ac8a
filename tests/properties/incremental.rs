//! Any sequence of changed rows gives what building anew gives.

use std::collections::BTreeMap;

use gatepost::model::{ChangedRows, DesiredState, DeviceId, PeerRow, PolicyRow, Standing, UserId};
use gatepost::plan::{ModelKernel, Scope, plan};
use proptest::prelude::*;

use super::rows::{NOW_SECS, Tables, at, groups, id, peer_row, policy_row, tables};

pub fn assert_same(one: &DesiredState, other: &DesiredState) {
    assert_eq!(one.peers(), other.peers());
    assert_eq!(one.routes(), other.routes());
    assert_eq!(one.firewall(), other.firewall());
    let standings = |state: &DesiredState| -> Vec<_> {
        state
            .rows()
            .map(|(row, standing)| {
                let standing = match standing {
                    Standing::Admitted(_) => "admitted".to_owned(),
                    Standing::Ineligible => "ineligible".to_owned(),
                    Standing::Quarantined(reason) => reason.to_string(),
                };
                (row.id, standing)
            })
            .collect()
    };
    assert_eq!(standings(one), standings(other));
    assert_eq!(one.next_expiry(), other.next_expiry());
    assert_eq!(one.quarantined_count(), other.quarantined_count());
}

#[derive(Debug, Clone)]
pub enum Change {
    PutPeer(PeerRow),
    DeletePeer(u8),
    PutPolicy(PolicyRow),
    DeletePolicy(u8),
    Groups(u8, std::collections::BTreeSet<gatepost::model::GroupId>),
}

pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        5 => peer_row().prop_map(Change::PutPeer),
        2 => (0u8..12).prop_map(Change::DeletePeer),
        2 => policy_row().prop_map(Change::PutPolicy),
        1 => (0u8..6).prop_map(Change::DeletePolicy),
        2 => (0u8..5, groups()).prop_map(|(user, groups)| Change::Groups(user, groups)),
    ]
}

/// Makes the change in the tables, and the rows a reader of changes would get for it.
pub fn make(tables: &mut Tables, changes: &[Change]) -> ChangedRows {
    let mut devices = std::collections::BTreeSet::new();
    let mut rows = ChangedRows {
        peers: BTreeMap::new(),
        memberships: BTreeMap::new(),
        policies: BTreeMap::new(),
        taken_at: at(NOW_SECS),
    };
    for change in changes {
        match change {
            Change::PutPeer(row) => {
                devices.insert(row.device_id);
                if let Some(old) = tables.peers.insert(row.id, row.clone()) {
                    devices.insert(old.device_id);
                }
            }
            Change::DeletePeer(number) => {
                let old = tables.peers.remove(&gatepost::model::PeerId(id(2, *number)));
                devices.extend(old.map(|old| old.device_id));
            }
            Change::PutPolicy(row) => {
                tables.policies.insert(row.id, row.clone());
                rows.policies.insert(row.id, Some(row.clone()));
            }
            Change::DeletePolicy(number) => {
                let id = gatepost::model::PolicyId(id(6, *number));
                tables.policies.remove(&id);
                rows.policies.insert(id, None);
            }
            Change::Groups(user, groups) => {
                let user = UserId(id(4, *user));
                tables.memberships.insert(user, groups.clone());
                rows.memberships.insert(user, groups.clone());
            }
        }
    }
    let of_device = |device: &DeviceId| -> Vec<PeerRow> {
        tables.peers.values().filter(|row| row.device_id == *device).cloned().collect()
    };
    rows.peers = devices.iter().map(|device| (*device, of_device(device))).collect();
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_sequence_of_deltas_equals_one_full_build(
        mut tables in tables(),
        batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..6),
    ) {
        let mut state = tables.build();
        for batch in &batches {
            state.apply(make(&mut tables, batch));
            assert_same(&state, &tables.build());
        }
    }

    #[test]
    fn what_was_not_touched_needs_no_look(
        mut tables in tables(),
        batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..5),
    ) {
        let mut state = tables.build();
        let mut kernel = ModelKernel::default();
        let first = plan(&state, &kernel.state, &Scope::Everything).unwrap();
        kernel.obey_prefix(&first, usize::MAX).unwrap();
        for batch in &batches {
            let touched = state.apply(make(&mut tables, batch));
            let scope = Scope::Changed { peers: touched.peers, prefixes: touched.prefixes };
            let small = plan(&state, &kernel.state, &scope).unwrap();
            kernel.obey_prefix(&small, usize::MAX).unwrap();
            let left = plan(&state, &kernel.state, &Scope::Everything).unwrap();
            prop_assert!(left.is_empty(), "left over: {:?}", left.steps());
        }
    }

    #[test]
    fn a_revocation_that_lies_ahead_comes_by_itself(tables in tables()) {
        let mut state = tables.build();
        while let Some(next) = state.next_expiry() {
            state.expire(next);
            let mut later = tables.snapshot();
            later.taken_at = next;
            let fresh = DesiredState::build(super::rows::local(), later).unwrap();
            assert_same(&state, &fresh);
        }
        let late = tables.peers.values().filter(|row| row.revoked_at.is_some());
        for row in late {
            let admitted = state.rows().any(|(other, standing)| {
                other.id == row.id && matches!(standing, Standing::Admitted(_))
            });
            prop_assert!(!admitted);
        }
    }

    #[test]
    fn suspending_and_resuming_changes_nothing(tables in tables()) {
        let mut state = tables.build();
        let before = tables.build();
        state.suspend_all_but(Some(std::collections::BTreeSet::new()));
        prop_assert!(state.peers().is_empty());
        state.suspend_all_but(None);
        assert_same(&state, &before);
    }
}
