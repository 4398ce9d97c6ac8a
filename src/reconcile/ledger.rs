//! What is still to be written back to the database.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::session::{Seen, SessionEvent};
use crate::model::policy::{Plain, Quoted};
use crate::model::{Departed, DesiredState, DeviceId, PeerId, PeerRow, PolicyId, Reason};
use crate::store::{AuditEntry, AuditEvent, AuditStatus, Entity};

/// More audit entries than this are not kept while the database is away.
const MAX_AUDIT_ENTRIES: usize = 10_000;

/// One batch for the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The database's time as of which the kernel was proven equal to what the database held.
    pub synced_as_of: Option<SystemTime>,
    pub handshakes: BTreeMap<DeviceId, Seen>,
    pub audit: Vec<AuditEntry>,
}

impl Report {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.synced_as_of.is_none() && self.handshakes.is_empty() && self.audit.is_empty()
    }
}

/// Collects what is to be reported, and keeps it until the database has taken it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    open: Report,
    /// Nobody takes anything: what is kept must not grow for ever.
    pub database_is_away: bool,
    /// Audit entries that were dropped because the database was away for too long.
    pub dropped_audit_entries: u64,
    /// Audit entries that the database refused for what they say.
    pub refused_audit_entries: u64,
}

impl Ledger {
    /// Notes that the kernel was proven equal as of this time of the database.
    pub fn synced(&mut self, as_of: SystemTime) {
        self.open.synced_as_of = self.open.synced_as_of.max(Some(as_of));
    }

    /// Forgets a proof that was not written: it says nothing of the time the database was away.
    pub const fn unsynced(&mut self) {
        self.open.synced_as_of = None;
    }

    /// Notes a device's handshake, of whichever of its peers. It goes on the series that was not
    /// reported yet, unless a new session is known to have begun.
    pub fn handshake(&mut self, device_id: DeviceId, handshake: Seen) {
        let kept = self.open.handshakes.entry(device_id).or_insert(handshake);
        let session_since = kept.session_since.max(handshake.session_since);
        kept.first_at = kept.first_at.min(handshake.first_at);
        kept.at = kept.at.max(handshake.at);
        kept.session_since = session_since;
    }

    /// Notes an audit entry. While the database is there none is dropped, however many peers one
    /// pass cuts off.
    pub fn audit(&mut self, entry: AuditEntry) {
        if !self.database_is_away || self.open.audit.len() < MAX_AUDIT_ENTRIES {
            self.open.audit.push(entry);
        } else {
            self.dropped_audit_entries += 1;
        }
    }

    /// Takes everything noted so far, to be sent.
    pub fn take(&mut self) -> Report {
        std::mem::take(&mut self.open)
    }

    /// Puts back a report that the database did not take.
    pub fn put_back(&mut self, report: Report) {
        let newer = std::mem::replace(&mut self.open, report);
        self.open.synced_as_of = self.open.synced_as_of.max(newer.synced_as_of);
        for (device_id, handshake) in newer.handshakes {
            self.handshake(device_id, handshake);
        }
        for entry in newer.audit {
            self.audit(entry);
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// "alice's laptop", as everybody calls that peer.
#[must_use]
pub fn peer_name(row: &PeerRow) -> String {
    name_of(&row.username, &row.device_name)
}

/// The same for names without a row. On one line, whatever somebody typed.
#[must_use]
pub fn name_of(username: &str, device_name: &str) -> String {
    format!("{}'s {}", Plain(username), Plain(device_name))
}

/// The audit entry for a peer that was cut off.
#[must_use]
pub fn revoked_entry(departed: &Departed, figures: Value) -> AuditEntry {
    AuditEntry {
        event: AuditEvent::PeerRevoked,
        entity: Entity::Peer(departed.peer_id),
        device_id: Some(departed.device_id),
        ip_address: None,
        status: AuditStatus::Success,
        message: format!("{} was cut off", name_of(&departed.username, &departed.device_name)),
        metadata: figures,
    }
}

/// The audit entry for a changed policy that the kernel follows now.
#[must_use]
pub fn applied_entry(id: PolicyId, name: &str, figures: Value) -> AuditEntry {
    AuditEntry {
        event: AuditEvent::PolicyApplied,
        entity: Entity::Policy(id),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message: format!("policy {} is in force as it stands now", Quoted(name)),
        metadata: figures,
    }
}

/// The audit entry for what a peer's session did.
#[must_use]
pub fn session_entry(desired: &DesiredState, event: &SessionEvent) -> Option<AuditEntry> {
    let (key, audit_event, verb, endpoint, metadata) = match event {
        SessionEvent::Connected { key, endpoint, .. } => {
            (key, AuditEvent::PeerConnected, "connected", *endpoint, json!({}))
        }
        SessionEvent::Disconnected { key, .. } => {
            (key, AuditEvent::PeerDisconnected, "disconnected", None, json!({}))
        }
        SessionEvent::Roamed { key, from, to } => {
            let metadata = json!({ "from": from.to_string(), "to": to.to_string() });
            (key, AuditEvent::PeerRoamed, "roamed", Some(*to), metadata)
        }
    };
    let row = desired.row_of(key)?;
    Some(AuditEntry {
        event: audit_event,
        entity: Entity::Peer(row.id),
        device_id: Some(row.device_id),
        ip_address: endpoint.map(|endpoint| endpoint.ip()),
        status: AuditStatus::Success,
        message: format!("{} {verb}", peer_name(row)),
        metadata,
    })
}

/// The audit entry for a row that is left out.
#[must_use]
pub fn quarantine_entry(row: &PeerRow, reason: &Reason) -> AuditEntry {
    AuditEntry {
        event: AuditEvent::PeerQuarantined,
        entity: Entity::Peer(row.id),
        device_id: Some(row.device_id),
        ip_address: None,
        status: AuditStatus::Warning,
        message: format!("{}: {reason}", peer_name(row)),
        metadata: json!({ "reason": reason.code() }),
    }
}

/// The audit entry for a row that was left out, and is not any more: it is obeyed or gone.
#[must_use]
pub fn released_entry(peer: PeerId, name: &str) -> AuditEntry {
    AuditEntry {
        event: AuditEvent::PeerReleased,
        entity: Entity::Peer(peer),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message: format!("{name} is no longer quarantined"),
        metadata: json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        applied_entry(PolicyId(uuid::Uuid::nil()), "intranet", json!({}))
    }

    #[test]
    fn handshakes_that_wait_are_told_from_the_first_to_the_last() {
        let device = DeviceId(uuid::Uuid::nil());
        let at = |secs| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
        let seen = |secs| Seen { first_at: at(secs), at: at(secs), session_since: None };
        let mut ledger = Ledger::default();
        ledger.handshake(device, seen(120));
        ledger.handshake(device, seen(240));
        let refused = ledger.take();
        ledger.handshake(device, seen(360));
        ledger.put_back(refused);
        let told = ledger.take().handshakes[&device];
        assert_eq!((told.first_at, told.at, told.session_since), (at(120), at(360), None));
        ledger.handshake(device, seen(480));
        assert_eq!(ledger.take().handshakes[&device].first_at, at(480), "all before were taken");
    }

    #[test]
    fn only_what_comes_while_the_database_is_away_is_ever_dropped() {
        let mut ledger = Ledger::default();
        (0..=MAX_AUDIT_ENTRIES).for_each(|_| ledger.audit(entry()));
        assert_eq!(ledger.take().audit.len(), MAX_AUDIT_ENTRIES + 1);
        ledger.database_is_away = true;
        (0..=MAX_AUDIT_ENTRIES).for_each(|_| ledger.audit(entry()));
        assert_eq!(ledger.dropped_audit_entries, 1);
        assert_eq!(ledger.take().audit.len(), MAX_AUDIT_ENTRIES);
    }
}
