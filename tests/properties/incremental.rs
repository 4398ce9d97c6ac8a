//! Any sequence of changed rows gives what building anew gives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use gatepost::model::{
    BarredBy, ChangedRows, DesiredState, DeviceId, Effect, GroupId, KeyText, MembershipRow, PeerId,
    PeerRow, PolicyId, PolicyRow, PublicKey, Standing, TargetRow, TargetType, UserId,
};
use gatepost::plan::{ModelKernel, Scope, plan};
use ipnet::IpNet;
use proptest::prelude::*;

use super::rows::{NOW_SECS, Tables, at, groups, id, local, peer_row, policy_row, support, tables};
use super::world::{quiet_tables, quiet_world};

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
                    Standing::Ineligible(why) => format!("ineligible: {why}"),
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
        marks: Vec::new(),
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

#[test]
fn a_revocation_that_came_by_the_clock_is_told_as_one() {
    let mut tables = quiet_tables(2);
    let row = tables.peers.values_mut().next().unwrap();
    row.revoked_at = Some(at(NOW_SECS + 10));
    let revoked = row.id;
    let mut state = tables.build();
    let why = |state: &DesiredState| {
        let mut rows = state.rows();
        rows.find_map(|(row, standing)| match standing {
            Standing::Ineligible(why) if row.id == revoked => Some(why.to_string()),
            _ => None,
        })
    };
    assert_eq!(why(&state), None);
    state.expire(at(NOW_SECS + 10));
    assert_eq!(why(&state).as_deref(), Some("device revoked"));
    state.suspend_all_but(Some(std::collections::BTreeSet::new()));
    let both = "device revoked, not admitted while the rows are stale";
    assert_eq!(why(&state).as_deref(), Some(both));
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
        kernel.apply_first(&first, usize::MAX).unwrap();
        for batch in &batches {
            let touched = state.apply(make(&mut tables, batch));
            let scope = Scope::Changed { peers: touched.peers, prefixes: touched.prefixes };
            let small = plan(&state, &kernel.state, &scope).unwrap();
            kernel.apply_first(&small, usize::MAX).unwrap();
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

/// Row `n` of many, in no order: some with a key or an address that another has, some barred, some
/// whose revocation lies ahead, of users with few different groups.
fn row_of_many(n: u32) -> PeerRow {
    let every = |count: u32| n.is_multiple_of(count);
    let scattered = n.wrapping_mul(2_654_435_761);
    let id = |kind: u8, number: u32| {
        uuid::Uuid::from_fields(number, kind.into(), 0, &u64::from(number).to_be_bytes())
    };
    let mut key = [7; 32];
    key[..4].copy_from_slice(&(if every(50) { n + 1 } else { n }).to_be_bytes());
    let address = Ipv4Addr::from(0x0a40_0010 + if every(70) { n + 1 } else { n });
    PeerRow {
        id: PeerId(id(2, scattered)),
        device_id: DeviceId(id(3, scattered)),
        user_id: UserId(id(4, n / 3)),
        username: "user".into(),
        public_key: KeyText::Key(PublicKey::from_bytes(key).unwrap()),
        assigned_ip: IpNet::from(IpAddr::from(address)),
        allowed_ips: Box::new(["0.0.0.0/0".parse().unwrap()]),
        dns_servers: if every(11) { Box::new(["10.0.0.54".into()]) } else { Box::new([]) },
        bars: if every(13) { BarredBy::DEVICE_STATUS } else { BarredBy::default() },
        revoked_at: every(17).then(|| at(NOW_SECS + u64::from(n))),
        created_at: at(u64::from(n % 5)),
        ..support::peer_row(1)
    }
}

#[test]
fn many_rows_at_once_are_what_they_are_one_by_one() {
    let mut world = quiet_world().tables.snapshot();
    world.gateway.vpn_cidr = "10.64.0.0/16".parse().unwrap();
    let target = |target_type, target_id| TargetRow { target_type, target_id, dangling: false };
    let policy = |number, targets| PolicyRow {
        id: PolicyId(id(6, number)),
        name: format!("policy-{number}"),
        priority: 100,
        effect: Effect::Allow,
        full_tunnel: false,
        destinations: vec![format!("172.16.{number}.0/24").parse().unwrap()],
        targets,
        beyond: None,
    };
    let rows: Vec<PeerRow> = (1..=6_000).map(row_of_many).collect();
    world.policies = vec![
        policy(1, vec![target(TargetType::Group, id(5, 1))]),
        policy(2, vec![target(TargetType::Group, id(5, 2))]),
        policy(3, vec![target(TargetType::User, rows[30].user_id.0)]),
        policy(4, vec![target(TargetType::Device, rows[60].device_id.0)]),
    ];
    let groups = |n: u8| [1, 2].into_iter().filter(move |group| n & group > 0);
    let membership = |row: &PeerRow| MembershipRow {
        user_id: row.user_id,
        group_ids: groups(row.user_id.0.as_bytes()[15]).map(|n| GroupId(id(5, n))).collect(),
    };
    world.memberships = rows.iter().step_by(3).map(membership).collect();
    let mut state = DesiredState::build(local(), world.clone()).unwrap();
    let mut devices = BTreeMap::new();
    for row in &rows {
        devices.insert(row.device_id, vec![row.clone()]);
    }
    let memberships = world.memberships.iter();
    state.apply(ChangedRows {
        marks: Vec::new(),
        peers: devices,
        memberships: memberships.map(|it| (it.user_id, it.group_ids.clone())).collect(),
        policies: BTreeMap::new(),
        taken_at: world.taken_at,
    });
    world.peers.extend(rows);
    let at_once = DesiredState::build(local(), world).unwrap();
    assert!(at_once.peers().len() > 5_000 && at_once.quarantined_count() > 100);
    let profiles: BTreeSet<_> = at_once.firewall().assignments.values().collect();
    assert!(profiles.len() >= 10, "{} profiles", profiles.len());
    assert_same(&at_once, &state);
}
