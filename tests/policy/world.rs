//! Random policies over a few users, devices, groups and many overlapping prefixes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gatepost::model::policy::{SPECIAL_BLOCKS, reference::Sender};
use gatepost::model::{
    DeviceId, Effect, GroupId, PolicyId, PolicyRow, TargetRow, TargetType, UserId,
};
use ipnet::IpNet;
use proptest::prelude::*;
use uuid::Uuid;

pub const USERS: u128 = 3;
pub const GROUPS: u128 = 3;

pub fn user(n: u128) -> UserId {
    Uuid::from_u128(0x100 + n).into()
}

/// Every user has two devices.
pub fn device(user: u128, n: u128) -> DeviceId {
    Uuid::from_u128(0x200 + user * 2 + n).into()
}

pub fn group(n: u128) -> GroupId {
    Uuid::from_u128(0x300 + n).into()
}

pub fn policy_id(n: u128) -> PolicyId {
    Uuid::from_u128(0x400 + n).into()
}

/// The groups of each user.
pub fn memberships() -> impl Strategy<Value = Vec<BTreeSet<GroupId>>> {
    let groups = proptest::collection::btree_set((0..GROUPS).prop_map(group), 0..3);
    proptest::collection::vec(groups, USERS as usize)
}

pub fn senders(memberships: &[BTreeSet<GroupId>]) -> Vec<Sender> {
    let of_user = |n: u128, group_ids: &BTreeSet<GroupId>| {
        let sender =
            |d| Sender { user_id: user(n), device_id: device(n, d), group_ids: group_ids.clone() };
        [sender(0), sender(1)]
    };
    (0..USERS).zip(memberships).flat_map(|(n, groups)| of_user(n, groups)).collect()
}

/// A prefix that likely overlaps others, touches one, or lies at an end of the space.
fn prefix() -> impl Strategy<Value = IpNet> {
    let near4 = (0u32..1024, 20u8..=32)
        .prop_map(|(low, len)| IpNet::new_assert(Ipv4Addr::from(0x0a00_0000 | low).into(), len));
    let any4 = (any::<u32>(), 0u8..=32)
        .prop_map(|(address, len)| IpNet::new_assert(Ipv4Addr::from(address).into(), len));
    let near6 = (0u128..1024, 116u8..=128).prop_map(|(low, len)| {
        IpNet::new_assert(Ipv6Addr::from((0xfd64 << 112) | low).into(), len)
    });
    let any6 = (any::<u128>(), 0u8..=128)
        .prop_map(|(address, len)| IpNet::new_assert(Ipv6Addr::from(address).into(), len));
    let end = prop_oneof![
        Just("0.0.0.0/0"),
        Just("0.0.0.0/32"),
        Just("255.255.255.255/32"),
        Just("128.0.0.0/1"),
        Just("::/0"),
        Just("::/128"),
        Just("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"),
    ];
    let end = end.prop_map(|text| text.parse().unwrap());
    let special = (0..SPECIAL_BLOCKS.len()).prop_map(|n| SPECIAL_BLOCKS[n].prefix);
    prop_oneof![4 => near4, 1 => any4, 3 => near6, 1 => any6, 1 => end, 1 => special]
        .prop_map(|prefix| prefix.trunc())
}

fn target() -> impl Strategy<Value = TargetRow> {
    let kind = prop_oneof![
        (0..USERS).prop_map(|n| (TargetType::User, user(n).0)),
        (0..USERS, 0u128..2).prop_map(|(n, d)| (TargetType::Device, device(n, d).0)),
        (0..GROUPS).prop_map(|n| (TargetType::Group, group(n).0)),
        (0..USERS).prop_map(|n| (TargetType::Unknown("role".into()), user(n).0)),
    ];
    (kind, proptest::bool::weighted(0.1)).prop_map(|((target_type, target_id), dangling)| {
        TargetRow { target_type, target_id, dangling }
    })
}

pub fn row(id: PolicyId) -> impl Strategy<Value = PolicyRow> {
    let effect = prop_oneof![
        4 => Just(Effect::Allow),
        3 => Just(Effect::Deny),
        1 => Just(Effect::Unknown("ALLOW".into())),
    ];
    let destinations = proptest::collection::vec(prefix(), 0..6);
    let targets = proptest::collection::vec(target(), 0..4);
    let priority = prop_oneof![4 => 0i32..3, 1 => any::<i32>()];
    (priority, effect, proptest::bool::weighted(0.2), destinations, targets).prop_map(
        move |(priority, effect, full_tunnel, destinations, targets)| PolicyRow {
            id,
            name: format!("policy {id}"),
            priority,
            effect,
            full_tunnel,
            destinations,
            targets,
            beyond: None,
        },
    )
}

pub fn rows() -> impl Strategy<Value = Vec<PolicyRow>> {
    (0usize..7).prop_flat_map(|n| (0..n).map(|n| row(policy_id(n as u128))).collect::<Vec<_>>())
}

/// First and last address of every prefix in play, and the one before and after it.
pub fn boundaries(rows: &[PolicyRow]) -> BTreeSet<IpAddr> {
    let prefixes = rows.iter().flat_map(|row| &row.destinations);
    let special = SPECIAL_BLOCKS.iter().map(|block| &block.prefix);
    prefixes.chain(special).flat_map(|prefix| around(*prefix)).collect()
}

fn around(prefix: IpNet) -> Vec<IpAddr> {
    match prefix {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            let edges = [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)];
            edges.into_iter().flatten().map(|at| Ipv4Addr::from(at).into()).collect()
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            let edges = [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)];
            edges.into_iter().flatten().map(|at| Ipv6Addr::from(at).into()).collect()
        }
    }
}
