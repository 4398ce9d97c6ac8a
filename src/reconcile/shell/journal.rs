//! Notes as journal entries: INFO where state changed, WARN where an operator should look.
//!
//! The text says everything, because `journalctl` shows the text; the fields beside it are for
//! searching.

use tracing::{info, warn};

use crate::reconcile::name::PeerName;
use crate::reconcile::note::Note;

/// Writes one note to the journal.
pub(super) fn say(note: &Note) {
    let message_id = note.message_id();
    match note {
        Note::DatabaseUp { mode } => info!(message_id, ?mode, "{note}"),
        Note::Synced { changes, steps, took, first }
        | Note::Withdrawn { changes, steps, took, first } => {
            let peer = changes.only_peer();
            let (user, device) = (peer.map(|it| &*it.user), peer.map(|it| &*it.device));
            let policy = changes.policies.only().map(|name| &**name);
            let (took_ms, plan) = (took.as_millis(), first.join("; "));
            info!(message_id, user, device, policy, steps, took_ms, plan, "{note}");
        }
        Note::OtherEpoch { why } => info!(message_id, why, "{note}"),
        Note::HistoryLost { peers, held_for, .. } => {
            warn!(message_id, ?peers, held_for_secs = held_for.as_secs(), "{note}");
        }
        Note::HistoryFollowed { peers, .. } => info!(message_id, ?peers, "{note}"),
        Note::AnnouncedAgain | Note::Over(_) => info!(message_id, "{note}"),
        Note::BellHeard | Note::HintsAgain => info!(message_id, "{note}"),
        Note::BellSilent { trouble } => warn!(message_id, ?trouble, "{note}"),
        Note::Unannounced { tables } => warn!(message_id, ?tables, "{note}"),
        Note::Released { peer, name } => {
            let PeerName { user, device } = name;
            info!(message_id, %peer, %name, %user, %device, "{note}");
        }
        Note::PolicyReleased { id, name } => {
            info!(message_id, policy = %name, policy_id = %id, "{note}");
        }
        Note::PolicyQuarantined { id, policy } => {
            let (name, why) = (&policy.name, &policy.why);
            warn!(message_id, policy = %name, policy_id = %id, peers = policy.peers, error = %why, "{note}");
        }
        Note::Block(change) => {
            info!(message_id, whom = %change.whom, name = &*change.block.name, "{note}");
        }
        Note::DatabaseDown { error, retry_in, .. } => {
            warn!(message_id, error, retry_in_ms = retry_in.as_millis(), "{note}");
        }
        Note::ReadFailed { error, .. }
        | Note::NoSession { error }
        | Note::ObserveFailed { error }
        | Note::BlocksUnknown { error }
        | Note::ReportFailed { error } => warn!(message_id, error, "{note}"),
        Note::CannotBuild(error) => warn!(message_id, %error, "{note}"),
        Note::CannotPlan(error) => warn!(message_id, %error, "{note}"),
        Note::HeldBack(held) => {
            warn!(message_id, removed = held.removals, present = held.of, "{note}")
        }
        Note::NoSealingKey { peers } => warn!(message_id, peers, "{note}"),
        Note::DriftRepaired { steps, why, .. } => warn!(message_id, steps, why, "{note}"),
        Note::StepRefused { step, error } => warn!(message_id, step, error, "{note}"),
        Note::NotConverged { steps, retry_in, .. } => {
            warn!(message_id, steps, retry_in_ms = retry_in.as_millis(), "{note}");
        }
        Note::Quarantined { peer, name, reason, .. } => {
            let PeerName { user, device } = name;
            warn!(message_id, %peer, %name, %user, %device, %reason, "{note}");
        }
        Note::ReportsLost { reports, .. } => warn!(message_id, reports, "{note}"),
        Note::LedBy { leader } => warn!(message_id, leader, "{note}"),
        Note::ReportsRefused(refusal) => warn!(message_id, error = refusal.why, "{note}"),
        Note::Stale { since, policy } => {
            warn!(message_id, away_secs = since.as_secs(), stale_policy = ?policy, "{note}");
        }
        Note::Restored { .. }
        | Note::GatewayInactive
        | Note::Ignored(_)
        | Note::NotifyMissed
        | Note::HintsMissed => {
            warn!(message_id, "{note}");
        }
    }
}

impl Note {
    /// Identifies the kind of note in the journal; `systemd/gatepost.catalog` explains each. Never
    /// changes.
    const fn message_id(&self) -> Option<&'static str> {
        Some(match self {
            Self::Over(_) => "e95bc44355e4ed4525087ff2a93f8e64",
            Self::Synced { .. } | Self::Withdrawn { .. } => "42989c19f37f4bc684c928a1659f5ee6",
            Self::DriftRepaired { .. } => "9d323062618a413dadf58abd5df9bce2",
            Self::HeldBack(_) => "635526e3b562432dacc352dc3763be88",
            Self::NoSealingKey { .. } => "dcb221150e07461795d7c10000adc53f",
            Self::Quarantined { .. } => "722913497f41499da6d0f1241144e7e9",
            Self::PolicyQuarantined { .. } => "28c770f23cb740b1b4929be350c3c546",
            Self::DatabaseDown { .. } | Self::ReadFailed { .. } => {
                "4d7e74ce7e2242348747c99fbca61a4e"
            }
            Self::NoSession { .. } => "76d537ffe51d4d08a108e6bc5d729ff1",
            Self::GatewayInactive => "2625b5a2f0224750b655f388dee51487",
            Self::CannotBuild(_) | Self::CannotPlan(_) => "d050681d68d8498f86b73d3201bc80ad",
            Self::NotConverged { .. } => "025278c9fee943ef89c66cfde16b13af",
            Self::Stale { .. } => "12586575cdf441dba5a21eb19840a2d7",
            Self::BellSilent { .. } => "c41a7f0e5d2b4c6f8e93b7a1d60f2e58",
            Self::HintsMissed => "a3abedcc52ab404895fe0317f1a6d4d4",
            Self::Unannounced { .. } => "3d27fae035eb4671bfbbcd87afd81861",
            Self::HistoryLost { .. } => "da2e7f71c87446c1baf42764b984633e",
            Self::StepRefused { .. } => "37e836371fde4ac89ad47236b66da6c7",
            Self::BlocksUnknown { .. } => "35696a9fe63f4fdb904ab47959265648",
            Self::ReportsRefused(_) => "6f2a1c0bd5e54c0f9a3c7ad9e1b84d27",
            Self::LedBy { .. } => "b8d0c6e31f7a4e5ca2d94f0b6a7c1e53",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Metadata, Subscriber};

    use super::*;
    use crate::model::Reason;
    use crate::reconcile::options::StalePolicy;

    #[test]
    fn the_catalog_explains_every_message_id() {
        let catalog = include_str!("../../../systemd/gatepost.catalog");
        let reference = include_str!("../../../docs/reference.md");
        let explained = |note: &Note| {
            let id = note.message_id().unwrap();
            assert!(catalog.contains(&format!("\n-- {id}\n")), "{note} is not explained");
            assert!(reference.contains(id), "{note} is not described");
        };
        let (error, why) = <(String, String)>::default();
        let name = PeerName::default();
        let reason = Reason::GatewayKey;
        let changes = crate::reconcile::Changes::default();
        explained(&Note::Synced { changes, steps: 1, took: Duration::ZERO, first: Vec::new() });
        explained(&Note::Over(crate::reconcile::Trouble::Database));
        explained(&Note::DriftRepaired { steps: 1, first: Vec::new(), why });
        explained(&Note::BellSilent { trouble: None });
        explained(&Note::HintsMissed);
        explained(&Note::HeldBack(crate::plan::guard::HeldBack { removals: 9, of: 9 }));
        explained(&Note::NoSealingKey { peers: 9 });
        let peer = crate::model::PeerId(uuid::Uuid::nil());
        let device = crate::model::DeviceId(uuid::Uuid::nil());
        explained(&Note::Quarantined { peer, device, name, reason });
        let state = crate::reconcile::error::DatabaseState::Unreachable;
        explained(&Note::DatabaseDown { state, error, retry_in: Duration::ZERO });
        explained(&Note::NoSession { error: String::new() });
        explained(&Note::GatewayInactive);
        explained(&Note::NotConverged { steps: 1, first: Vec::new(), retry_in: Duration::ZERO });
        explained(&Note::Stale { since: Duration::ZERO, policy: StalePolicy::Keep });
        explained(&Note::Unannounced { tables: Vec::new() });
        let (name, why, remedy) = ("".into(), "".into(), "");
        let policy = crate::model::QuarantinedPolicy { name, peers: 1, why, remedy };
        let id = crate::model::PolicyId(uuid::Uuid::nil());
        explained(&Note::PolicyQuarantined { id, policy });
        let gateway = crate::model::GatewayId(uuid::Uuid::nil());
        explained(&Note::HistoryLost { gateway, peers: Vec::new(), held_for: Duration::ZERO });
        let (step, error) = <(String, String)>::default();
        explained(&Note::StepRefused { step, error: error.clone() });
        explained(&Note::BlocksUnknown { error });
        explained(&Note::LedBy { leader: String::new() });
        let since = std::time::SystemTime::UNIX_EPOCH;
        explained(&Note::ReportsRefused(crate::store::Refusal { why: String::new(), since }));
        assert_eq!(
            catalog.matches("\n-- ").count(),
            30,
            "and the agent's start, what is denied or lost on the host, last good rows, and a bell's entries"
        );
    }

    /// Remembers the fields of what is logged.
    #[derive(Clone, Default)]
    struct Fields(Arc<Mutex<BTreeMap<&'static str, String>>>);

    impl Visit for Fields {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.lock().unwrap().insert(field.name(), value.to_owned());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.record_str(field, &format!("{value:?}"));
        }
    }

    impl Subscriber for Fields {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    /// The fields of the entry about a note.
    fn fields_of(note: &Note) -> BTreeMap<&'static str, String> {
        let fields = Fields::default();
        tracing::subscriber::with_default(fields.clone(), || say(note));
        fields.0.lock().unwrap().clone()
    }

    #[test]
    fn field_policy_is_always_the_name_of_a_policy() {
        let id = crate::model::PolicyId(uuid::Uuid::nil());
        let nil = id.0.to_string();
        let policy = crate::model::QuarantinedPolicy {
            name: "staff".into(),
            peers: 2,
            why: "no memory".into(),
            remedy: "",
        };
        let quarantined = fields_of(&Note::PolicyQuarantined { id, policy });
        assert_eq!((quarantined["policy"].as_str(), &quarantined["policy_id"]), ("staff", &nil));
        let released = fields_of(&Note::PolicyReleased { id, name: "staff".into() });
        assert_eq!((released["policy"].as_str(), &released["policy_id"]), ("staff", &nil));
        let stale = fields_of(&Note::Stale { since: Duration::ZERO, policy: StalePolicy::Keep });
        assert_eq!(stale.get("policy"), None);
        assert_eq!(stale["stale_policy"], "Keep");
    }

    #[test]
    fn user_and_device_of_a_single_peer_are_fields() {
        let name = PeerName { user: "alice".into(), device: "laptop".into() };
        let peer = crate::model::PeerId(uuid::Uuid::nil());
        let device = crate::model::DeviceId(uuid::Uuid::nil());
        let reason = Reason::GatewayKey;
        let quarantined =
            fields_of(&Note::Quarantined { peer, device, name: name.clone(), reason });
        let released = fields_of(&Note::Released { peer, name });
        for fields in [quarantined, released] {
            assert_eq!((fields["user"].as_str(), fields["device"].as_str()), ("alice", "laptop"));
        }
    }
}
