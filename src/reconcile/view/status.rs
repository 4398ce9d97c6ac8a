//! The agent's status: one value, from which `gatepost status`, the metrics and systemd are served.
//!
//! Its JSON is the stable output of `gatepost status --json` and `gatepost peers --json`: fields
//! are added, never renamed or removed. Times are RFC 3339 in UTC, durations carry their unit in
//! the name, and what is not known yet is `null`.

mod block;
mod denied;
mod figures;
mod firewall;
mod last_good;
mod peer;
mod plan;
mod reports;
mod state;

pub use block::{BlockAnswer, BlockStatus};
pub use denied::{DeniedEnd, DeniedPacket};
pub use figures::{LagClass, LagsStatus, TrafficStatus};
pub use firewall::FirewallStatus;
pub use last_good::LastGoodStatus;
pub use peer::{HeldPeer, PeerState, PeerStatus};
pub use plan::{PlanReport, PlannedStep};
pub use reports::ReportsStatus;
pub(crate) use reports::old_schema;
pub use state::State;

pub use crate::dataplane::BackendInUse;
use crate::model::{GatewayId, PeerId, PolicyId, PublicKey};
pub use crate::plan::guard::HeldBack;
pub use crate::reconcile::mode::Mode;
use crate::reconcile::name::name_of;
pub use crate::reconcile::view::time::{Exact, Timestamp, exact};
pub use crate::store::Unavailable;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Everything the agent knows of itself, as of one instant.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// `state` and, where there is a reason, `why`.
    #[serde(flatten)]
    pub state: State,
    pub gateway: GatewayStatus,
    pub interface: InterfaceStatus,
    #[serde(default)]
    pub firewall: FirewallStatus,
    pub sync: SyncStatus,
    pub database: DatabaseStatus,
    pub peers: PeerCounts,
    /// The traffic of all peers.
    #[serde(default)]
    pub traffic: TrafficStatus,
    /// The quarantined peers; at most the first hundred, `peers.quarantined` counts them all.
    pub quarantined: Vec<QuarantinedPeer>,
    /// Policies that the kernel refuses to load.
    #[serde(default)]
    pub quarantined_policies: Vec<QuarantinedPolicy>,
    /// Warnings for an operator, one sentence each.
    pub warnings: Vec<String>,
    /// A removal that the guard holds back until an operator confirms it.
    pub held_back: Option<HeldBack>,
    /// The peers that it holds; at most the first hundred, `held_back.removals` counts them all.
    #[serde(default)]
    pub held: Vec<HeldPeer>,
    /// The blocks of this host, whatever rows say.
    #[serde(default)]
    pub blocked: Vec<BlockStatus>,
    /// Whether the rows in force are on disk, for a boot without the database.
    #[serde(default)]
    pub last_good: LastGoodStatus,
    /// Whether the database takes this gateway's reports.
    #[serde(default)]
    pub reports: ReportsStatus,
    pub agent: AgentStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// `gateways.name`, from the configuration.
    pub name: String,
    /// `gateways.id`; `null` until the database was read.
    pub id: Option<GatewayId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    pub backend: Option<BackendInUse>,
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// The gateway's addresses in the tunnel.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SyncStatus {
    pub mode: Option<Mode>,
    /// Why this mode: the configuration, what a probe found, or the bell that is not heard.
    pub mode_why: String,
    /// Between two questions in poll mode; `None` in other modes.
    #[serde(default)]
    pub poll_interval_ms: Option<u64>,
    /// The database's time as of which the kernel was proven equal.
    pub last_sync_at: Option<Timestamp>,
    /// From the announcement of the last pass's oldest change (where changes are not announced: from
    /// the beginning of the read that found it) to the proof. `None` after a repair of drift, and after
    /// a pass that was not proven.
    pub lag_ms: Option<u64>,
    pub last_pass: Option<PassStatus>,
    /// Passes since the agent started.
    pub passes: u64,
    /// Passes that found our objects changed by others, and put them right.
    pub drift_repaired: u64,
    /// Changes found by polling whose notification did not arrive.
    pub notify_missed: u64,
    /// Writes that the kernel refused.
    #[serde(default)]
    pub refused_steps: u64,
    /// Tracked flows that were cut.
    #[serde(default)]
    pub flows_cut: u64,
    /// How long passes took, as `lag_ms`.
    #[serde(default)]
    pub lags: LagsStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassStatus {
    pub at: Timestamp,
    pub duration_ms: u64,
    /// Writes to the kernel.
    pub steps: u64,
    /// Writes that the kernel refused.
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DatabaseStatus {
    pub connected: bool,
    /// Why it is not connected.
    #[serde(default)]
    pub unavailable: Option<Unavailable>,
    /// When the connection was made or lost.
    pub since: Option<Timestamp>,
    /// The last error, also after it has passed.
    pub last_error: Option<String>,
    /// Version of schema `gatepost`.
    pub schema_version: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerCounts {
    /// Eligible and in order: these should be in the kernel.
    pub desired: u64,
    pub in_kernel: u64,
    /// In the kernel, with a handshake in the 180 s before it was last read.
    #[serde(default)]
    pub connected: u64,
    /// In the kernel until an operator confirms their removal.
    #[serde(default)]
    pub held: u64,
    /// Revoked, inactive, not approved: left out as their rows say.
    pub ineligible: u64,
    /// Left out because their rows are not usable.
    pub quarantined: u64,
    /// When the kernel was last read; `null`: not yet, so nothing in it was counted.
    #[serde(default)]
    pub read_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedPeer {
    pub peer_id: PeerId,
    pub user: String,
    pub device: String,
    pub reason: String,
}

impl QuarantinedPeer {
    /// How messages name it: "alice/laptop".
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.user, &self.device)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedPolicy {
    pub policy_id: PolicyId,
    pub policy: String,
    /// Peers that it applies to and that do not have what it grants.
    pub peers: u64,
    /// The kernel's answer.
    pub reason: String,
    /// What to do about it. Empty: an agent of the last version does not say.
    #[serde(default)]
    pub remedy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgentStatus {
    pub version: String,
    pub started_at: Option<Timestamp>,
}

/// The answer to `gatepost explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub allowed: bool,
    /// Several lines in the words of users and policies.
    pub text: String,
    /// As a JSON object: the verdict, the policy that decides, those that do not.
    pub details: serde_json::Value,
}

impl Explanation {
    /// Adds what on the host may drop packets that the policies allow.
    pub fn add_hindrances(&mut self, hindrances: &[String]) {
        for hindrance in hindrances.iter().filter(|_| self.allowed) {
            self.text.push_str(&format!("  but packets may be lost on this host: {hindrance}\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_status_reads_back_what_it_wrote() {
        let status = Status {
            state: State::NotReady { why: "the database is unreachable".into() },
            sync: SyncStatus {
                last_sync_at: Some(Timestamp(
                    SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250),
                )),
                ..SyncStatus::default()
            },
            ..Status::default()
        };
        let text = serde_json::to_string(&status).unwrap();
        assert!(
            text.starts_with(r#"{"state":"not_ready","why":"the database is unreachable","#),
            "{text}"
        );
        assert!(text.contains(r#""last_sync_at":"2023-11-14T22:13:20.250Z""#), "{text}");
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }

    #[test]
    fn every_field_stands_in_the_reference() {
        let status = Status {
            state: State::NotReady { why: String::new() },
            sync: SyncStatus {
                last_pass: Some(PassStatus {
                    at: Timestamp(SystemTime::UNIX_EPOCH),
                    duration_ms: 0,
                    steps: 0,
                    refused: 0,
                }),
                ..SyncStatus::default()
            },
            held_back: Some(HeldBack { removals: 1, of: 1 }),
            last_good: LastGoodStatus::Missing { why: String::new() },
            blocked: vec![BlockStatus {
                kind: String::new(),
                id: String::new(),
                name: String::new(),
                since: Timestamp(SystemTime::UNIX_EPOCH),
            }],
            held: vec![HeldPeer {
                peer_id: None,
                user: String::new(),
                user_id: None,
                device: String::new(),
                device_id: None,
                public_key: PublicKey::from_bytes([1; 32]).unwrap(),
                addresses: Vec::new(),
                reason: String::new(),
                since: SystemTime::UNIX_EPOCH,
            }],
            ..Status::default()
        };
        let reference = include_str!("../../../docs/reference.md");
        let mut left = vec![serde_json::to_value(status).unwrap()];
        let mut seen = 0;
        while let Some(value) = left.pop() {
            left.extend(value.as_array().into_iter().flatten().cloned());
            for (name, value) in value.as_object().into_iter().flatten() {
                let written = [format!("`{name}"), format!(".{name}`")];
                assert!(written.iter().any(|it| reference.contains(it)), "{name} is not described");
                seen += 1;
                left.push(value.clone());
            }
        }
        assert!(seen > 30, "{seen} fields");
    }
}
