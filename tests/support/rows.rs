//! Rows and a host for tests: all valid and alike. A test writes only the columns that it is about.
//! Test crates share this file by `#[path]`, and the library's own tests too.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use gatepost::model::psk::PskKeys;
use gatepost::model::{
    Allocation, BarredBy, ChangedRows, DeviceId, Effect, GatewayId, GatewayRow, KeyText, Local,
    Masquerade, PeerId, PeerRow, PolicyId, PolicyRow, PrivateKey, PublicKey, SnapshotRows,
    TargetRow, TargetType, UserId,
};
use uuid::Uuid;

/// The gateway's key.
pub fn private_key() -> PrivateKey {
    PrivateKey::from_random([7; 32])
}

/// A peer's key.
pub fn public_key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

pub fn id(number: impl Into<u128>) -> Uuid {
    Uuid::from_u128(number.into())
}

/// What the configuration of the gateway says.
pub fn local() -> Local {
    Local {
        interface: "gatepost0".parse().unwrap(),
        private_key: private_key(),
        mtu_bytes: 1420,
        addresses: BTreeSet::new(),
        fwmark: 0,
        site_prefixes: BTreeSet::new(),
        masquerade: Masquerade::All,
        deny_log: Some(gatepost::model::NflogGroup::DEFAULT),
        gateway_opens: Some(Default::default()),
        flush_conntrack: true,
        flows_per_address: None,
        gate: None,
        psk_keys: PskKeys::default(),
    }
}

/// The gateway `fra-1` with the key of [`local`].
pub fn gateway_row() -> GatewayRow {
    GatewayRow {
        id: GatewayId(id(1u8)),
        name: "fra-1".into(),
        public_key: KeyText::Key(private_key().public_key()),
        listen_port: 51820,
        vpn_cidr: "10.64.0.0/24".parse().unwrap(),
        dns_servers: Vec::new(),
        active: true,
        allocated_address: None,
    }
}

/// The laptop of this number, of the user of this number, with an address of the gateway's pool.
pub fn peer_row(number: u8) -> PeerRow {
    PeerRow {
        id: PeerId(id(number)),
        device_id: DeviceId(id(number)),
        user_id: UserId(id(number)),
        device_name: "laptop".into(),
        username: format!("user-{number}").into(),
        public_key: KeyText::Key(public_key(number)),
        assigned_ip: format!("10.64.0.{number}/32").parse().unwrap(),
        preshared_key: None,
        allowed_ips: Box::new([]),
        dns_servers: Box::new([]),
        bars: BarredBy::default(),
        revoked_at: None,
        allocation: Allocation::Held,
        created_at: SystemTime::UNIX_EPOCH,
        beyond: None,
    }
}

/// The policy of this number, which allows nothing yet and applies to no device.
pub fn policy_row(number: u8) -> PolicyRow {
    PolicyRow {
        id: PolicyId(id(number)),
        name: format!("policy-{number}"),
        priority: 100,
        effect: Effect::Allow,
        full_tunnel: false,
        destinations: Vec::new(),
        targets: Vec::new(),
        beyond: None,
    }
}

pub const fn target(target_type: TargetType, target_id: Uuid) -> TargetRow {
    TargetRow { target_type, target_id, dangling: false }
}

/// The tables with these peers, and nothing else but the gateway.
pub fn snapshot(peers: Vec<PeerRow>) -> SnapshotRows {
    SnapshotRows {
        gateway: gateway_row(),
        settings: Vec::new(),
        peers,
        memberships: Vec::new(),
        policies: Vec::new(),
        taken_at: SystemTime::UNIX_EPOCH,
    }
}

/// No row changed.
pub fn no_changes(taken_at: SystemTime) -> ChangedRows {
    ChangedRows {
        peers: BTreeMap::new(),
        memberships: BTreeMap::new(),
        policies: BTreeMap::new(),
        marks: Vec::new(),
        taken_at,
    }
}
