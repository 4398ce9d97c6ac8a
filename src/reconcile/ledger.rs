//! The reports that are still to be written to the database.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::model::DeviceId;
use crate::store::{AuditEntry, Handshake};

/// More audit entries than this are not kept while the database is unreachable.
const MAX_AUDIT_ENTRIES: usize = 10_000;

/// One batch for the database.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The database's time as of which the kernel was proven equal to what the database held.
    pub synced_as_of: Option<SystemTime>,
    pub handshakes: BTreeMap<DeviceId, Handshake>,
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
pub(super) struct Ledger {
    open: Report,
    /// The database takes nothing now: what is kept must not grow for ever.
    database_is_unreachable: bool,
    /// Audit entries that were dropped because the database was unreachable for too long.
    dropped: u64,
}

impl Ledger {
    pub const fn set_unreachable(&mut self, unreachable: bool) {
        self.database_is_unreachable = unreachable;
    }

    /// Audit entries that were dropped because the database was unreachable for too long.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Notes that the kernel was proven equal as of this time of the database.
    pub fn synced(&mut self, as_of: SystemTime) {
        self.open.synced_as_of = self.open.synced_as_of.max(Some(as_of));
    }

    /// Forgets a proof that was not written: it says nothing of the time the database was unreachable.
    pub const fn unsynced(&mut self) {
        self.open.synced_as_of = None;
    }

    /// Notes a handshake of any of a device's peers. It continues the series that was not reported
    /// yet.
    pub fn handshake(&mut self, handshake: Handshake) {
        let kept = self.open.handshakes.entry(handshake.device_id).or_insert(handshake);
        let connected_at = kept.connected_at.max(handshake.connected_at);
        kept.first_at = kept.first_at.min(handshake.first_at);
        kept.seen_at = kept.seen_at.max(handshake.seen_at);
        kept.connected_at = connected_at;
    }

    /// Notes an audit entry. While the database is there none is dropped, however many peers one
    /// pass cuts off.
    pub fn audit(&mut self, entry: AuditEntry) {
        if !self.database_is_unreachable || self.open.audit.len() < MAX_AUDIT_ENTRIES {
            self.open.audit.push(entry);
        } else {
            self.dropped += 1;
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
        for handshake in newer.handshakes.into_values() {
            self.handshake(handshake);
        }
        for entry in newer.audit {
            self.audit(entry);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::PolicyId;

    fn entry() -> AuditEntry {
        super::super::audit::applied(PolicyId(uuid::Uuid::nil()), "intranet", json!({}))
    }

    #[test]
    fn waiting_handshakes_are_reported_as_one_series() {
        let device = DeviceId(uuid::Uuid::nil());
        let at = |secs| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
        let seen = |secs| Handshake {
            device_id: device,
            first_at: at(secs),
            seen_at: at(secs),
            connected_at: None,
        };
        let mut ledger = Ledger::default();
        ledger.handshake(seen(120));
        ledger.handshake(seen(240));
        let refused = ledger.take();
        ledger.handshake(seen(360));
        ledger.put_back(refused);
        let told = ledger.take().handshakes[&device];
        assert_eq!((told.first_at, told.seen_at, told.connected_at), (at(120), at(360), None));
        ledger.handshake(seen(480));
        assert_eq!(ledger.take().handshakes[&device].first_at, at(480), "all before were taken");
    }

    #[test]
    fn audit_entries_are_dropped_only_while_the_database_is_unreachable() {
        let mut ledger = Ledger::default();
        (0..=MAX_AUDIT_ENTRIES).for_each(|_| ledger.audit(entry()));
        assert_eq!(ledger.take().audit.len(), MAX_AUDIT_ENTRIES + 1);
        ledger.set_unreachable(true);
        (0..=MAX_AUDIT_ENTRIES).for_each(|_| ledger.audit(entry()));
        assert_eq!(ledger.dropped, 1);
        assert_eq!(ledger.take().audit.len(), MAX_AUDIT_ENTRIES);
    }
}
