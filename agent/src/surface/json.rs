//! The fields that `--json` prints, from values in which no field is missing.

use std::time::SystemTime;

use gatepost::model::{DeviceId, GatewayId, PeerId, PolicyId, PublicKey, UserId};
use gatepost::reconcile::status::{
    AgentStatus, BackendInUse, BlockStatus, DatabaseStatus, FirewallStatus, GatewayStatus,
    HeldBack, HeldPeer, InterfaceStatus, LagClass, LagsStatus, LastGoodStatus, Mode, PassStatus,
    PeerCounts, PeerState, PeerStatus, PlanReport, PlannedStep, QuarantinedPeer, QuarantinedPolicy,
    ReportsStatus, State, Status, SyncStatus, Timestamp, TrafficStatus, Unavailable,
};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::golden;
use super::golden::fields;
use crate::command::check::{Finding, Level};
use crate::command::plan::{SqlReport, TableLock};

const NOW: Timestamp = Timestamp(SystemTime::UNIX_EPOCH);

fn text() -> String {
    "text".to_owned()
}

/// A status in which every field has a value.
pub fn status() -> Status {
    Status {
        state: State::NotReady { why: text() },
        gateway: GatewayStatus { name: text(), id: Some(GatewayId(Uuid::nil())) },
        interface: InterfaceStatus {
            name: text(),
            backend: Some(BackendInUse::Kernel),
            public_key: Some(PublicKey::from_bytes([1; 32]).unwrap()),
            listen_port: Some(51820),
            addresses: vec!["10.8.0.1/24".parse().unwrap()],
        },
        firewall: FirewallStatus { table_owned: true, gate: true, gate_why: Some(text()) },
        sync: SyncStatus {
            mode: Some(Mode::Listen),
            mode_why: text(),
            poll_interval_ms: Some(1),
            last_sync_at: Some(NOW),
            lag_ms: Some(1),
            last_pass: Some(PassStatus { at: NOW, duration_ms: 1, steps: 1, refused: 1 }),
            passes: 1,
            drift_repaired: 1,
            notify_missed: 1,
            refused_steps: 1,
            flows_cut: 1,
            lags: LagsStatus { count: 1, sum_ms: 1, at_most: vec![LagClass { ms: 1, count: 1 }] },
        },
        traffic: TrafficStatus { rx_bytes: 1, tx_bytes: 1 },
        database: DatabaseStatus {
            connected: true,
            unavailable: Some(Unavailable::Unreachable),
            since: Some(NOW),
            last_error: Some(text()),
            schema_version: Some(1),
        },
        peers: PeerCounts {
            desired: 1,
            in_kernel: 1,
            connected: 1,
            held: 1,
            ineligible: 1,
            quarantined: 1,
            read_at: Some(NOW),
        },
        quarantined: vec![QuarantinedPeer {
            peer_id: PeerId(Uuid::nil()),
            user: text(),
            device: text(),
            reason: text(),
        }],
        quarantined_policies: vec![QuarantinedPolicy {
            policy_id: PolicyId(Uuid::nil()),
            policy: text(),
            peers: 1,
            reason: text(),
            remedy: text(),
        }],
        warnings: vec![text()],
        held_back: Some(HeldBack { removals: 1, of: 1 }),
        last_good: LastGoodStatus::Missing { why: text() },
        blocked: vec![BlockStatus { kind: text(), id: text(), name: text(), since: NOW }],
        held: vec![held()],
        reports: ReportsStatus {
            refused_since: Some(NOW),
            refused_by: vec![text()],
            led_by: Some(text()),
            other_hosts: vec![text()],
        },
        agent: AgentStatus { version: text(), started_at: Some(NOW) },
    }
}

fn held() -> HeldPeer {
    HeldPeer {
        peer_id: Some(PeerId(Uuid::nil())),
        user: text(),
        user_id: Some(UserId(Uuid::nil())),
        device: text(),
        device_id: Some(DeviceId(Uuid::nil())),
        public_key: PublicKey::from_bytes([1; 32]).unwrap(),
        addresses: vec!["10.8.0.2/32".parse().unwrap()],
        reason: text(),
        since: NOW.0,
    }
}

pub fn peer(state: PeerState) -> PeerStatus {
    PeerStatus {
        state,
        peer_id: Some(PeerId(Uuid::nil())),
        user: text(),
        user_id: Some(UserId(Uuid::nil())),
        device: text(),
        device_id: Some(DeviceId(Uuid::nil())),
        public_key: text(),
        addresses: vec!["10.8.0.2/32".parse().unwrap()],
        read_at: Some(NOW),
        endpoint: Some("192.0.2.1:51820".parse().unwrap()),
        last_handshake_at: Some(NOW),
        rx_bytes: 1,
        tx_bytes: 1,
        policies: vec![text()],
    }
}

/// The words that a field can hold.
fn words(field: &str, values: impl IntoIterator<Item = impl Serialize>) -> String {
    let words = values.into_iter().map(|value| match serde_json::to_value(value).unwrap() {
        Value::String(word) => word,
        Value::Object(object) => {
            let name = field.rsplit('.').next().unwrap();
            object[name].as_str().unwrap().to_owned()
        }
        other => panic!("{other} is no word"),
    });
    format!("{field}: {}", words.collect::<Vec<_>>().join("|"))
}

#[test]
fn status_json() {
    let mut lines = fields(&serde_json::to_value(status()).unwrap());
    let why = text;
    lines.push(words(
        "state",
        [
            State::Starting,
            State::Ready,
            State::Degraded { why: why() },
            State::NotReady { why: why() },
        ],
    ));
    lines.push(words(
        "last_good.state",
        [
            LastGoodStatus::Unknown,
            LastGoodStatus::Kept,
            LastGoodStatus::Withdrawals { why: why() },
            LastGoodStatus::Missing { why: why() },
            LastGoodStatus::OutOfDate { why: why() },
        ],
    ));
    lines.push(words("backend", [BackendInUse::Kernel, BackendInUse::Userspace]));
    lines.push(words("mode", [Mode::Listen, Mode::Hints, Mode::Poll]));
    golden::check("json of status", &lines);
}

#[test]
fn peers_json() {
    let reason = text;
    let states = [
        PeerState::InKernel,
        PeerState::Pending,
        PeerState::Ineligible { reason: reason() },
        PeerState::Blocked { reason: reason() },
        PeerState::KeptOut { reason: reason(), since: NOW.0 },
        PeerState::Quarantined { reason: reason() },
        PeerState::Held { reason: reason(), since: NOW.0 },
    ];
    let peers = vec![peer(states[6].clone())];
    let mut lines = fields(&serde_json::to_value(peers).unwrap());
    lines.push(words("state", states));
    golden::check("json of peers", &lines);
}

#[test]
fn blocked_json() {
    let mut lines = fields(&serde_json::to_value(status().blocked).unwrap());
    lines.push("kind: user|device|key|address".to_owned());
    golden::check("json of blocked", &lines);
}

#[test]
fn plan_json() {
    let report = PlanReport {
        steps: vec![PlannedStep { phase: text(), step: text() }],
        held_back: Some(HeldBack { removals: 1, of: 1 }),
        held: vec![held()],
        words: vec![text()],
        warnings: vec![text()],
    };
    golden::check("json of plan", &fields(&serde_json::to_value(&report).unwrap()));
    let locks = vec![TableLock { table: text(), waits: "rows" }];
    let report = SqlReport { plan: report, cut_off: 1, locks, duration_ms: 1 };
    let mut lines = fields(&serde_json::to_value(report).unwrap());
    lines.push("waits: rows|writers|all".to_owned());
    golden::check("json of plan --sql", &lines);
}

#[test]
fn check_json() {
    let finding =
        Finding { level: Level::Ok, subject: "database", text: text(), remedy: Some(text()) };
    let mut lines = fields(&serde_json::to_value(vec![finding]).unwrap());
    lines.push(words("level", [Level::Ok, Level::Note, Level::Warning, Level::Wrong]));
    golden::check("json of check", &lines);
}
