//! Events of gateways in `audit_logs`, and which of them are written.

use std::collections::BTreeSet;

use serde_json::Value;

macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $word:literal,)+) => {
        /// `audit_logs.event_type`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum AuditEvent { $($(#[$doc])* $event),+ }

        impl AuditEvent {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$event),+];

            /// As in `audit_logs`.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$event => $word),+ }
            }
        }
    };
}

events! {
    GatewayStarted = "gateway.started",
    /// Something changed in the kernel, with counts.
    GatewaySynced = "gateway.synced",
    DriftRepaired = "gateway.drift_repaired",
    /// The database lost revocations.
    HistoryLost = "gateway.history_lost",
    PeerConnected = "peer.connected",
    PeerDisconnected = "peer.disconnected",
    /// A peer's packets come from another address than before.
    PeerRoamed = "peer.roamed",
    PeerQuarantined = "peer.quarantined",
    /// Its row is applied again, or gone.
    PeerReleased = "peer.released",
    /// With the flows cut and the milliseconds it took.
    PeerRevoked = "peer.revoked",
    /// An operator blocked it on the host.
    PeerBlocked = "peer.blocked",
    PeerUnblocked = "peer.unblocked",
    PolicyApplied = "policy.applied",
    /// The kernel refuses to load what a policy grants.
    PolicyQuarantined = "policy.quarantined",
    PolicyReleased = "policy.released",
    /// Part of a policy was left out, and why.
    PolicyIgnored = "policy.ignored",
}

/// The events that setting `gateway.audit_events` names. The default is all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditEvents(Option<BTreeSet<AuditEvent>>);

impl AuditEvents {
    /// Reads a list of events, such as `["gateway.*", "peer.revoked"]`, or null, which means all.
    ///
    /// # Errors
    /// The value, or the entry that names no event.
    pub(crate) fn parse(value: &Value) -> Result<Self, &Value> {
        let entries = match value {
            Value::Null => return Ok(Self::default()),
            Value::Array(entries) => entries,
            other => return Err(other),
        };
        let mut named = BTreeSet::new();
        for entry in entries {
            let pattern = entry.as_str().ok_or(entry)?;
            let matching = |event: &&AuditEvent| match pattern.strip_suffix('*') {
                Some(start) => start.ends_with('.') && event.word().starts_with(start),
                None => event.word() == pattern,
            };
            let events: Vec<_> = AuditEvent::ALL.iter().filter(matching).copied().collect();
            if events.is_empty() {
                return Err(entry);
            }
            named.extend(events);
        }
        // The database writes a quarantine again only after its release.
        if named.contains(&AuditEvent::PeerQuarantined) {
            named.insert(AuditEvent::PeerReleased);
        }
        Ok(Self(Some(named)))
    }

    /// Whether this event is written.
    #[must_use]
    pub fn contains(&self, event: AuditEvent) -> bool {
        self.0.as_ref().is_none_or(|named| named.contains(&event))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(value: &Value) -> Vec<&'static str> {
        let events = AuditEvents::parse(value).unwrap();
        let all = AuditEvent::ALL.iter().filter(|event| events.contains(**event));
        all.map(|event| event.word()).collect()
    }

    #[test]
    fn list_names_events_and_groups_of_events() {
        assert_eq!(written(&Value::Null).len(), AuditEvent::ALL.len());
        assert_eq!(written(&json!([])), [""; 0]);
        assert_eq!(written(&json!(["peer.revoked", "peer.revoked"])), ["peer.revoked"]);
        let quarantine = ["peer.quarantined", "peer.released"];
        assert_eq!(written(&json!(["peer.quarantined"])), quarantine, "each has its end");
        let groups = written(&json!(["policy.*", "gateway.started"]));
        assert_eq!(groups[0], "gateway.started");
        assert!(groups[1..].iter().all(|word| word.starts_with("policy.")) && groups.len() > 3);
    }

    #[test]
    fn what_names_no_event_is_an_error() {
        for value in
            [json!("peer.*"), json!(["peer.revoked", "peer.left"]), json!(["*"]), json!([7])]
        {
            assert!(AuditEvents::parse(&value).is_err(), "{value}");
        }
    }
}
