//! Audit entries, each made from one value: a note, the end of a pass, what a session did.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::clock::millis;
use super::name::{name_of, peer_name};
use super::note::{Ignored, Note};
use super::rows::Extent;
use super::session::{PastSession, SessionEvent};
use super::work::{Ended, Pass};
use crate::count::count;
use crate::model::policy::Quoted;
use crate::model::{BlockChange, DesiredState, GatewayId, PeerId, PolicyId};
use crate::store::{AuditEntry, AuditEvent, AuditStatus, Entity};

impl Note {
    /// The audit entries that say the same as the journal, where there are any. Ends of passes have
    /// more to say: see [`ended`].
    #[must_use]
    pub(super) fn audit_entries(&self) -> Vec<AuditEntry> {
        match self {
            Self::Block(change) => blocked(change),
            note => note.audit_entry().into_iter().collect(),
        }
    }

    fn audit_entry(&self) -> Option<AuditEntry> {
        match self {
            Self::Quarantined { peer, device, name, reason } => Some(AuditEntry {
                device_id: Some(*device),
                status: AuditStatus::Warning,
                ..entry(
                    AuditEvent::PeerQuarantined,
                    Entity::Peer(*peer),
                    format!("{name}: {reason}"),
                    json!({ "reason": reason.code() }),
                )
            }),
            Self::Released { peer, name } => Some(released(*peer, &name.to_string())),
            Self::PolicyQuarantined { id, policy } => Some(AuditEntry {
                status: AuditStatus::Warning,
                ..entry(
                    AuditEvent::PolicyQuarantined,
                    Entity::Policy(*id),
                    self.to_string(),
                    json!({ "peers": policy.peers, "error": policy.why }),
                )
            }),
            Self::PolicyReleased { id, .. } => {
                let event = AuditEvent::PolicyReleased;
                Some(entry(event, Entity::Policy(*id), self.to_string(), json!({})))
            }
            Self::Ignored(Ignored::Policy(note)) => Some(AuditEntry {
                status: AuditStatus::Warning,
                ..entry(
                    AuditEvent::PolicyIgnored,
                    Entity::Policy(note.policy_id),
                    note.to_string(),
                    json!(note),
                )
            }),
            Self::HistoryLost { gateway, peers, held_for } => Some(AuditEntry {
                status: AuditStatus::Warning,
                ..entry(
                    AuditEvent::HistoryLost,
                    Entity::Gateway(*gateway),
                    self.to_string(),
                    json!({ "peers": peers.len(), "held_for_seconds": held_for.as_secs() }),
                )
            }),
            _ => None,
        }
    }
}

fn entry(event: AuditEvent, entity: Entity, message: String, metadata: Value) -> AuditEntry {
    AuditEntry {
        event,
        entity,
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message,
        metadata,
    }
}

fn released(peer: PeerId, name: &str) -> AuditEntry {
    let message = format!("{name} is no longer quarantined");
    entry(AuditEvent::PeerReleased, Entity::Peer(peer), message, json!({}))
}

/// The agent knows its gateway and has done its first work.
pub(super) fn started(desired: &DesiredState) -> AuditEntry {
    entry(
        AuditEvent::GatewayStarted,
        Entity::Gateway(desired.gateway().id),
        format!("the agent of {} started", desired.gateway().name),
        json!({ "peers": desired.peers().len() }),
    )
}

/// One entry for each peer that a block concerns, or one of the gateway where no row has such a peer.
fn blocked(change: &BlockChange) -> Vec<AuditEntry> {
    let (BlockChange { whom, block, peers, .. }, verb) = (change, change.verb());
    let event = if change.lifted { AuditEvent::PeerUnblocked } else { AuditEvent::PeerBlocked };
    let metadata = || json!({ "kind": whom.kind(), "id": whom.id(), "name": block.name });
    // The database knows the gateway by the role that writes.
    let gateway = Entity::Gateway(GatewayId(uuid::Uuid::nil()));
    let host = entry(event, gateway, format!("{verb} {whom} on this host"), metadata());
    let each = peers.iter().map(|peer| {
        let name = name_of(&peer.username, &peer.device_name);
        let message = format!("{verb} {name} on this host");
        let device_id = Some(peer.device_id);
        AuditEntry { device_id, ..entry(event, Entity::Peer(peer.peer_id), message, metadata()) }
    });
    if peers.is_empty() { vec![host] } else { each.collect() }
}

/// A pass has come to its end.
pub(super) fn ended(ended: &Ended, desired: &DesiredState) -> Vec<AuditEntry> {
    let Ended { pass, extent, policies } = ended;
    match extent {
        Extent::Withdrawals if !pass.is_drift() => withdrawn(pass, desired.gateway().id),
        Extent::Whole | Extent::Withdrawals => finished(pass, policies, desired),
    }
}

fn finished(
    pass: &Pass,
    policies: &BTreeMap<PolicyId, Box<str>>,
    desired: &DesiredState,
) -> Vec<AuditEntry> {
    let gateway_id = desired.gateway().id;
    // All who should have a refused profile are gone through for this.
    let quarantined =
        if policies.is_empty() { BTreeMap::new() } else { desired.quarantined_policies() };
    let policies = policies.iter().filter(|(id, _)| !quarantined.contains_key(id));
    let milliseconds = millis(pass.took);
    let mut entries = revoked(pass);
    let figures = json!({ "milliseconds": milliseconds, "flows_cut": pass.flows_cut });
    entries.extend(policies.map(|(id, name)| applied(*id, name, figures.clone())));
    let (event, verb, status) = match &pass.drift {
        Some(_) => (AuditEvent::DriftRepaired, "repaired drift", AuditStatus::Warning),
        None => (AuditEvent::GatewaySynced, "brought up to date", AuditStatus::Success),
    };
    entries.push(AuditEntry {
        status,
        ..entry(
            event,
            Entity::Gateway(gateway_id),
            format!("{verb}: {} in {milliseconds} ms", count(pass.steps, "step")),
            json!({ "steps": pass.steps, "milliseconds": milliseconds, "first": &pass.first }),
        )
    });
    entries
}

/// A pass was given up. What it did stays done.
pub(super) fn unfinished(pass: &Pass, gateway_id: GatewayId) -> Vec<AuditEntry> {
    let Pass { steps, applied, .. } = pass;
    let what = format!("in part: {applied} of {}", count(*steps, "step"));
    if *applied == 0 { Vec::new() } else { in_part(pass, gateway_id, &what) }
}

/// A pass has come to its end that applied withdrawals alone, because the rows cannot be used as a whole.
fn withdrawn(pass: &Pass, gateway_id: GatewayId) -> Vec<AuditEntry> {
    in_part(pass, gateway_id, &format!("withdrawals only: {}", count(pass.steps, "step")))
}

fn in_part(pass: &Pass, gateway_id: GatewayId, what: &str) -> Vec<AuditEntry> {
    let Pass { steps, applied, first, .. } = pass;
    let milliseconds = millis(pass.took);
    let mut entries = revoked(pass);
    entries.push(AuditEntry {
        status: AuditStatus::Warning,
        ..entry(
            AuditEvent::GatewaySynced,
            Entity::Gateway(gateway_id),
            format!("{what} in {milliseconds} ms"),
            json!({
                "steps": steps, "applied": applied, "milliseconds": milliseconds, "first": first,
            }),
        )
    });
    entries
}

/// The peers that the pass cut off. The kernel counts the flows of a pass together.
fn revoked(pass: &Pass) -> Vec<AuditEntry> {
    let alone = pass.revoked.len() == 1 && !pass.cut_others;
    let cut = if alone { "flows_cut" } else { "flows_cut_in_pass" };
    let entries = pass.revoked.values().map(|departed| {
        let name = name_of(&departed.username, &departed.device_name);
        AuditEntry {
            device_id: Some(departed.device_id),
            ..entry(
                AuditEvent::PeerRevoked,
                Entity::Peer(departed.peer_id),
                format!("{name} was cut off"),
                json!({ "milliseconds": millis(pass.took), cut: pass.flows_cut }),
            )
        }
    });
    entries.collect()
}

/// A changed policy that the kernel follows now.
pub(super) fn applied(id: PolicyId, name: &str, figures: Value) -> AuditEntry {
    let message = format!("policy {} is in force as it stands now", Quoted(name));
    entry(AuditEvent::PolicyApplied, Entity::Policy(id), message, figures)
}

/// The audit entry for an event of a peer's session; `None`: no row has this peer any more.
pub(super) fn session(desired: &DesiredState, event: &SessionEvent) -> Option<AuditEntry> {
    let (key, audit_event, verb, endpoint, metadata) = match event {
        SessionEvent::Connected { key, endpoint, .. } => {
            (key, AuditEvent::PeerConnected, "connected", *endpoint, json!({}))
        }
        SessionEvent::Disconnected { key, session, .. } => {
            let PastSession { lasted, rx_bytes, tx_bytes } = session;
            let metadata = json!({
                "duration_secs": lasted.map(|lasted| lasted.as_secs()),
                "rx_bytes": rx_bytes,
                "tx_bytes": tx_bytes,
            });
            (key, AuditEvent::PeerDisconnected, "disconnected", None, metadata)
        }
        SessionEvent::Roamed { key, from, to } => {
            let metadata = json!({ "from": from.to_string(), "to": to.to_string() });
            (key, AuditEvent::PeerRoamed, "roamed", Some(*to), metadata)
        }
    };
    let row = desired.row_of(key)?;
    Some(AuditEntry {
        device_id: Some(row.device_id),
        ip_address: endpoint.map(|endpoint| endpoint.ip()),
        ..entry(audit_event, Entity::Peer(row.id), format!("{} {verb}", peer_name(row)), metadata)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::model::KeyText;
    use crate::test_rows::{local, peer_row, snapshot};

    #[test]
    fn end_of_a_session_says_how_long_it_was_and_what_it_carried() {
        let row = peer_row(2);
        let KeyText::Key(key) = row.public_key.clone() else { panic!("no key") };
        let (id, device_id) = (row.id, row.device_id);
        let desired = DesiredState::build(Arc::new(local()), snapshot(vec![row])).unwrap();
        let ended = |lasted| {
            let session = PastSession { lasted, rx_bytes: 7, tx_bytes: 9 };
            let last_seen = SystemTime::UNIX_EPOCH;
            super::session(&desired, &SessionEvent::Disconnected { key, last_seen, session })
                .unwrap()
        };
        let entry = ended(Some(Duration::from_millis(61_900)));
        assert_eq!(entry.event, AuditEvent::PeerDisconnected);
        assert_eq!((entry.entity, entry.device_id), (Entity::Peer(id), Some(device_id)));
        let figures = json!({ "duration_secs": 61, "rx_bytes": 7, "tx_bytes": 9 });
        assert_eq!(entry.metadata, figures);
        let figures = json!({ "duration_secs": null, "rx_bytes": 7, "tx_bytes": 9 });
        assert_eq!(ended(None).metadata, figures, "it began before the agent");
    }
}
