//! Guards the fields of `gatepost explain --json`: see `tests/golden/surface.txt`.

#[path = "../../../../tests/support/surface.rs"]
mod golden;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::explain;
use crate::dataplane::nft::ProfileCounters;
use crate::model::psk::PskKeys;
use crate::model::{
    Allocation, Bars, DesiredState, DeviceId, Effect, GatewayId, GatewayRow, GroupId, KeyText,
    Local, Masquerade, MembershipRow, PeerId, PeerRow, PolicyId, PolicyRow, PrivateKey, PublicKey,
    SnapshotRows, TargetRow, TargetType, UserId,
};

const ID: Uuid = Uuid::from_u128(1);
const INSIDE: &str = "172.16.1.20";
const INTERNET: &str = "1.1.1.1";

fn policy(number: u8, priority: i32, effect: Effect, destination: &str) -> PolicyRow {
    let target = |target_type| TargetRow { target_type, target_id: ID, dangling: false };
    PolicyRow {
        id: PolicyId(Uuid::from_u128(number.into())),
        name: format!("policy-{number}"),
        priority,
        effect,
        full_tunnel: destination.is_empty(),
        destinations: destination.parse().into_iter().collect(),
        targets: [TargetType::User, TargetType::Device, TargetType::Group].map(target).into(),
    }
}

/// One peer, and for an address inside a policy of each kind: one decides, the others do not.
fn desired() -> DesiredState {
    let private_key = PrivateKey::from_random([7; 32]);
    let peer = PeerRow {
        id: PeerId(ID),
        device_id: DeviceId(ID),
        user_id: UserId(ID),
        device_name: "laptop".into(),
        username: "alice".into(),
        public_key: KeyText::Key(PublicKey::from_bytes([1; 32]).unwrap()),
        assigned_ip: "10.64.0.2/32".parse().unwrap(),
        preshared_key: None,
        allowed_ips: Box::new([]),
        dns_servers: Box::new([]),
        // A peer that is left out has a value in `left_out`.
        bars: Bars::DEVICE_STATUS,
        revoked_at: None,
        allocation: Allocation::Held,
        created_at: SystemTime::UNIX_EPOCH,
    };
    let rows = SnapshotRows {
        gateway: GatewayRow {
            id: GatewayId(ID),
            name: "fra-1".into(),
            public_key: KeyText::Key(private_key.public_key()),
            listen_port: 51820,
            vpn_cidr: "10.64.0.0/24".parse().unwrap(),
            dns_servers: Vec::new(),
            active: true,
            allocated_address: None,
        },
        settings: Vec::new(),
        peers: vec![peer],
        memberships: vec![MembershipRow {
            user_id: UserId(ID),
            group_ids: BTreeSet::from([GroupId(ID)]),
        }],
        policies: vec![
            policy(1, 10, Effect::Deny, "172.16.1.0/24"),
            policy(2, 10, Effect::Deny, "172.16.1.0/24"),
            policy(3, 10, Effect::Allow, "172.16.1.0/24"),
            policy(4, 20, Effect::Allow, "172.16.1.0/24"),
            policy(5, 30, Effect::Allow, ""),
            policy(6, 40, Effect::Allow, "10.0.0.0/8"),
        ],
        taken_at: SystemTime::UNIX_EPOCH,
    };
    let local = Local {
        interface: "gatepost0".parse().unwrap(),
        private_key,
        mtu_bytes: 1420,
        addresses: BTreeSet::new(),
        fwmark: 0,
        site_prefixes: BTreeSet::new(),
        masquerade: Masquerade::All,
        deny_log: true,
        gateway_opens: Some(Default::default()),
        flush_conntrack: true,
        flows_per_address: None,
        gate: None,
        psk_keys: PskKeys::default(),
    };
    DesiredState::build(Arc::new(local), rows).unwrap()
}

#[test]
fn explain_json_surface() {
    let desired = desired();
    let mut lines = Vec::new();
    for destination in [INSIDE, INTERNET] {
        let mut answers = explain(
            &desired,
            &crate::plan::Held::default(),
            Some(&Default::default()),
            "alice",
            destination,
        )
        .unwrap();
        answers.0[0].count(Ok(Some(ProfileCounters::default())), 1);
        let details = answers.whole().details;
        let other = &details[0]["explanation"]["others"];
        for why in other.as_array().unwrap().iter().filter_map(|other| other["why"].as_str()) {
            lines.push(format!("[].explanation.others[].why: {why}"));
        }
        lines.extend(golden::fields(&details));
    }
    lines.sort();
    lines.dedup();
    golden::check("json of explain", &lines);
}
