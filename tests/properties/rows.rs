//! Random databases, small enough that everything collides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::model::psk::PskKeys;
use gatepost::model::{
    Allocation, BarredBy, DesiredState, DeviceId, Effect, FailClosed, Gate, GatewayId, GatewayRow,
    GroupId, KeyText, Local, MarkBit, MembershipRow, PeerId, PeerRow, PolicyId, PolicyRow,
    SettingRow, SnapshotRows, TargetRow, TargetType, UserId,
};
use ipnet::IpNet;
use proptest::prelude::*;
use uuid::Uuid;

#[path = "../support/rows.rs"]
pub mod support;

pub use support::private_key;

pub const NOW_SECS: u64 = 1_000_000;

pub fn at(secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
}

/// A policy that allows these users one network.
pub fn allowing(number: u8, network: &str, users: impl IntoIterator<Item = u8>) -> PolicyRow {
    let target =
        |user| TargetRow { target_type: TargetType::User, target_id: id(4, user), dangling: false };
    PolicyRow {
        id: PolicyId(id(6, number)),
        name: format!("policy-{number}"),
        priority: 1,
        effect: Effect::Allow,
        full_tunnel: false,
        destinations: vec![network.parse().unwrap()],
        targets: users.into_iter().map(target).collect(),
        beyond: None,
    }
}

pub fn id(kind: u8, number: u8) -> Uuid {
    let mut bytes = [0; 16];
    bytes[0] = kind;
    bytes[15] = number;
    Uuid::from_bytes(bytes)
}

/// A host with a sealing key, which opens none of the envelopes in random rows.
pub fn local() -> Arc<Local> {
    Arc::new(local_with(psk_keys()))
}

/// A host whose packets are dropped while our table is gone.
pub fn local_with_gate() -> Arc<Local> {
    let gate = Gate::new(FailClosed::Always, MarkBit::default());
    Arc::new(Local { gate, ..local_with(psk_keys()) })
}

fn psk_keys() -> PskKeys {
    "k1 gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=".parse().unwrap()
}

/// A host that lost its sealing keys.
pub fn local_without_psk_keys() -> Arc<Local> {
    Arc::new(local_with(PskKeys::default()))
}

fn local_with(psk_keys: PskKeys) -> Local {
    let site_prefixes = ["192.168.0.0/16", "fd00:1::/32"].map(|prefix| prefix.parse().unwrap());
    Local { site_prefixes: site_prefixes.into(), psk_keys, ..support::local() }
}

pub fn gateway() -> GatewayRow {
    GatewayRow {
        id: GatewayId(id(1, 1)),
        vpn_cidr: "10.64.0.0/27".parse().unwrap(),
        dns_servers: vec!["10.0.0.53".into()],
        ..support::gateway_row()
    }
}

/// Everything the tables hold, keyed as the tables are, so that changed rows are easy to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    pub peers: BTreeMap<PeerId, PeerRow>,
    pub memberships: BTreeMap<UserId, BTreeSet<GroupId>>,
    pub policies: BTreeMap<PolicyId, PolicyRow>,
    pub settings: Vec<SettingRow>,
    /// `gateways.status` is 'active'.
    pub gateway_active: bool,
}

impl Tables {
    pub fn snapshot(&self) -> SnapshotRows {
        SnapshotRows {
            gateway: GatewayRow { active: self.gateway_active, ..gateway() },
            settings: self.settings.clone(),
            peers: self.peers.values().cloned().collect(),
            memberships: self
                .memberships
                .iter()
                .map(|(user_id, group_ids)| MembershipRow {
                    user_id: *user_id,
                    group_ids: group_ids.clone(),
                })
                .collect(),
            policies: self.policies.values().cloned().collect(),
            taken_at: at(NOW_SECS),
        }
    }

    pub fn build(&self) -> DesiredState {
        DesiredState::build(local(), self.snapshot()).unwrap()
    }
}

pub fn quiet_tables(peers: u8) -> Tables {
    let mut tables = Tables {
        peers: BTreeMap::new(),
        memberships: BTreeMap::new(),
        policies: BTreeMap::new(),
        settings: Vec::new(),
        gateway_active: true,
    };
    for number in 1..=peers {
        let row = PeerRow {
            id: PeerId(id(2, number)),
            device_id: DeviceId(id(3, number)),
            user_id: UserId(id(4, number)),
            assigned_ip: format!("10.64.0.{}/32", number + 1).parse().unwrap(),
            created_at: at(1),
            ..support::peer_row(number)
        };
        tables.peers.insert(row.id, row);
    }
    tables
}

fn key_text() -> impl Strategy<Value = KeyText> {
    prop_oneof![
        12 => (1u8..12).prop_map(|n| {
            KeyText::Key(support::public_key(n))
        }),
        1 => Just(KeyText::Key(private_key().public_key())),
        1 => Just(KeyText::parse("no key at all")),
    ]
}

fn assigned_ip() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        20 => (0u8..32).prop_map(|n| format!("10.64.0.{n}/32").parse().unwrap()),
        1 => Just("10.65.0.1/32".parse().unwrap()),
        1 => Just("10.64.0.8/29".parse().unwrap()),
        1 => Just("fd00::1/128".parse().unwrap()),
    ]
}

fn allowed_ip() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        2 => Just("0.0.0.0/0".parse().unwrap()),
        3 => (0u8..4).prop_map(|n| format!("192.168.{n}.0/24").parse().unwrap()),
        1 => Just("192.168.0.0/23".parse().unwrap()),
        1 => Just("fd00:1:2::/48".parse().unwrap()),
        1 => (0u8..4).prop_map(|n| format!("10.64.0.{n}/32").parse().unwrap()),
    ]
}

pub fn peer_row() -> impl Strategy<Value = PeerRow> {
    let who = (0u8..12, 0u8..8, 0u8..5);
    let what = (key_text(), assigned_ip(), prop::collection::vec(allowed_ip(), 0..3));
    let when = (0u64..4, prop::option::weighted(0.2, NOW_SECS - 5..NOW_SECS + 10));
    let state = (
        prop_oneof![8 => Just(0u16), 1 => 1u16..16],
        prop_oneof![
            Just(Allocation::Held),
            Just(Allocation::Missing),
            Just(Allocation::Other(DeviceId(id(3, 99)))),
        ],
        prop::option::weighted(0.05, Just("gp1.nokey.AAAA".into())),
    );
    (who, what, when, state).prop_map(
        |(
            (peer, device, user),
            (key, ip, allowed),
            (created, revoked),
            (bars, allocation, psk),
        )| {
            PeerRow {
                id: PeerId(id(2, peer)),
                device_id: DeviceId(id(3, device)),
                user_id: UserId(id(4, user)),
                device_name: format!("device-{device}").into(),
                username: format!("user-{user}").into(),
                public_key: key,
                assigned_ip: ip,
                preshared_key: psk,
                allowed_ips: allowed.into(),
                bars: BarredBy::from_bits(bars),
                revoked_at: revoked.map(at),
                allocation,
                created_at: at(created),
                ..support::peer_row(1)
            }
        },
    )
}

fn target() -> impl Strategy<Value = TargetRow> {
    prop_oneof![
        (0u8..5).prop_map(|n| (TargetType::User, id(4, n))),
        (0u8..8).prop_map(|n| (TargetType::Device, id(3, n))),
        (0u8..4).prop_map(|n| (TargetType::Group, id(5, n))),
        Just((TargetType::Unknown("planet".into()), id(9, 9))),
    ]
    .prop_map(|(target_type, target_id)| TargetRow { target_type, target_id, dangling: false })
}

fn destination() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0u8..4, 22u8..=32).prop_map(|(n, len)| {
            format!("172.16.{n}.0/{len}").parse::<IpNet>().unwrap().trunc()
        }),
        Just("10.64.0.0/27".parse().unwrap()),
        Just("fd10::/64".parse().unwrap()),
        Just("0.0.0.0/0".parse().unwrap()),
    ]
}

pub fn policy_row() -> impl Strategy<Value = PolicyRow> {
    let effect = prop_oneof![
        6 => Just(Effect::Allow),
        3 => Just(Effect::Deny),
        1 => Just(Effect::Unknown("maybe".into())),
    ];
    (
        0u8..6,
        0i32..4,
        effect,
        prop::bool::weighted(0.2),
        prop::collection::vec(destination(), 0..4),
        prop::collection::vec(target(), 0..4),
    )
        .prop_map(|(number, priority, effect, full_tunnel, destinations, targets)| PolicyRow {
            id: PolicyId(id(6, number)),
            name: format!("policy-{number}"),
            priority,
            effect,
            full_tunnel,
            destinations,
            targets,
            beyond: None,
        })
}

pub fn groups() -> impl Strategy<Value = BTreeSet<GroupId>> {
    prop::collection::btree_set((0u8..4).prop_map(|n| GroupId(id(5, n))), 0..3)
}

pub fn tables() -> impl Strategy<Value = Tables> {
    let setting = |category: &'static str, key: &'static str| {
        prop::option::weighted(0.3, Just((category.to_string(), key.to_string())))
    };
    (
        prop::collection::vec(peer_row(), 0..14),
        prop::collection::btree_map((0u8..5).prop_map(|n| UserId(id(4, n))), groups(), 0..5),
        prop::collection::vec(policy_row(), 0..6),
        setting("gateway", "strict_ip_allocations"),
        setting("gateway", "require_approval"),
    )
        .prop_map(|(peers, memberships, policies, strict, approval)| Tables {
            peers: peers.into_iter().map(|row| (row.id, row)).collect(),
            memberships,
            policies: policies.into_iter().map(|row| (row.id, row)).collect(),
            settings: [strict, approval]
                .into_iter()
                .flatten()
                .map(|(category, key)| SettingRow { category, key, value: "true".into() })
                .collect(),
            gateway_active: true,
        })
}
