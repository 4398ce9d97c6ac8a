//! Guards the fields of `gatepost explain --json`: see `tests/golden/surface.txt`.

#[path = "../../../../tests/support/surface.rs"]
mod golden;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::explain;
use crate::dataplane::nft::ProfileCounters;
use crate::model::{
    BarredBy, DesiredState, Effect, GroupId, MembershipRow, PeerRow, PolicyRow, SnapshotRows,
    TargetType, UserId,
};
use crate::test_rows::{self, id, local, peer_row, policy_row, snapshot};

const INSIDE: &str = "172.16.1.20";
const INTERNET: &str = "1.1.1.1";

fn policy(number: u8, priority: i32, effect: Effect, destination: &str) -> PolicyRow {
    let target = |target_type| test_rows::target(target_type, id(1u8));
    PolicyRow {
        priority,
        effect,
        full_tunnel: destination.is_empty(),
        destinations: destination.parse().into_iter().collect(),
        targets: [TargetType::User, TargetType::Device, TargetType::Group].map(target).into(),
        ..policy_row(number)
    }
}

fn for_others(policy: PolicyRow) -> PolicyRow {
    let targets = policy.targets.into_iter();
    let targets = targets.map(|it| test_rows::target(it.target_type, id(2u8))).collect();
    PolicyRow { targets, ..policy }
}

/// One peer, and for an address inside a policy of each kind: one decides, the others do not.
fn desired() -> DesiredState {
    // A peer that is left out has a value in `left_out`.
    let bars = BarredBy::DEVICE_STATUS;
    let peer = PeerRow { username: "alice".into(), bars, ..peer_row(1) };
    let rows = SnapshotRows {
        memberships: vec![MembershipRow {
            user_id: UserId(id(1u8)),
            group_ids: BTreeSet::from([GroupId(id(1u8))]),
        }],
        policies: vec![
            policy(1, 10, Effect::Deny, "172.16.1.0/24"),
            policy(2, 10, Effect::Deny, "172.16.1.0/24"),
            policy(3, 10, Effect::Allow, "172.16.1.0/24"),
            policy(4, 20, Effect::Allow, "172.16.1.0/24"),
            policy(5, 30, Effect::Allow, ""),
            policy(6, 40, Effect::Allow, "10.0.0.0/8"),
            for_others(policy(7, 50, Effect::Allow, "172.16.1.0/24")),
        ],
        ..snapshot(vec![peer])
    };
    DesiredState::build(Arc::new(local()), rows).unwrap()
}

#[test]
fn explain_json_surface() {
    let desired = desired();
    let mut lines = Vec::new();
    for destination in [INSIDE, INTERNET] {
        let mut answers = explain(
            (&desired, &crate::plan::Held::default()),
            &Default::default(),
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
