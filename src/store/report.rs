//! Reports to the database: handshakes, the time of the last proof, audit entries.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::Lease;
use super::{Store, StoreError};
pub use crate::model::AuditEvent;
use crate::model::{DeviceId, GatewayId, PeerId, PolicyId};

/// Rows in one statement, few enough to hold their locks for milliseconds only.
const BATCH: usize = 1_000;

const AUDITING: &str = "write audit entries";

/// An unbroken series of one device's handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    pub device_id: DeviceId,
    /// The first that is not reported yet.
    pub first_at: SystemTime,
    /// The last, for `devices.last_seen_at`.
    pub seen_at: SystemTime,
    /// For `devices.last_connected_at`. `None` if unknown: the database then takes `first_at` if its
    /// `last_seen_at` is older than a session lasts without a handshake.
    pub connected_at: Option<SystemTime>,
}

/// The result of reporting handshakes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reported {
    /// Devices whose rows another transaction holds: report them again later. Schemas since version 11 skip none.
    pub skipped: Vec<DeviceId>,
}

/// `audit_logs.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuditStatus {
    Success,
    Warning,
    Failure,
}

impl AuditStatus {
    /// As in `audit_logs`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// The subject of an audit entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entity {
    Gateway(GatewayId),
    /// A row of `wireguard_peers`.
    Peer(PeerId),
    Device(DeviceId),
    Policy(PolicyId),
}

impl Entity {
    const fn type_and_id(self) -> (&'static str, Uuid) {
        match self {
            Self::Gateway(GatewayId(id)) => ("gateway", id),
            Self::Peer(PeerId(id)) => ("peer", id),
            Self::Device(DeviceId(id)) => ("device", id),
            Self::Policy(PolicyId(id)) => ("policy", id),
        }
    }
}

/// One row for `audit_logs`. The database adds the gateway's id to the metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    pub event: AuditEvent,
    pub entity: Entity,
    /// For `actor_device_id`, if it has or had a peer here.
    pub device_id: Option<DeviceId>,
    /// The peer's endpoint.
    pub ip_address: Option<IpAddr>,
    pub status: AuditStatus,
    /// At most 2,000 characters; the rest is cut.
    pub message: String,
    /// A JSON object of at most 16 KiB.
    pub metadata: Value,
}

/// The result of writing audit entries.
#[derive(Debug, Default)]
pub struct Audited {
    /// How many, from the first on, are settled: written, or refused for good.
    pub settled: usize,
    /// Settled entries that the database refuses, each with the error.
    pub refused: Vec<(AuditEntry, StoreError)>,
    /// Why the remaining entries are not settled.
    pub error: Option<StoreError>,
}

impl AuditEntry {
    fn json(&self) -> Value {
        let (entity_type, entity_id) = self.entity.type_and_id();
        without_nul(json!({
            "event_type": self.event.word(),
            "entity_type": entity_type,
            "entity_id": entity_id,
            "device_id": self.device_id,
            "ip_address": self.ip_address,
            "status": self.status.word(),
            "message": self.message,
            "metadata": self.metadata,
        }))
    }
}

/// Postgres stores no NUL in text, not even escaped.
fn without_nul(value: Value) -> Value {
    let clean = |text: String| text.replace('\0', "\u{fffd}");
    match value {
        Value::String(text) => clean(text).into(),
        Value::Array(values) => values.into_iter().map(without_nul).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (clean(name), without_nul(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

impl Store {
    /// Stores handshakes in batches; the merge (`store/merge.rs`) writes them to `devices`. Times never go back, and
    /// never ahead of the database's clock. Devices without a live peer here are ignored. Wakes no agent.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights; batches before it are written.
    pub async fn report(&self, handshakes: &[Handshake]) -> Result<Reported, StoreError> {
        const DOING: &str = "report handshakes";
        let lease = self.lease(DOING).await?;
        let mut reported = Reported::default();
        for batch in handshakes.chunks(BATCH) {
            let twice = || batch.iter().flat_map(|one| [(one, one.first_at), (one, one.seen_at)]);
            let ids: Vec<Uuid> = twice().map(|(one, _)| one.device_id.0).collect();
            let seen: Vec<SystemTime> = twice().map(|(_, at)| storable(at)).collect();
            let connected: Vec<Option<SystemTime>> =
                twice().map(|(one, _)| one.connected_at.map(storable)).collect();
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] = [
                (&ids, Type::UUID_ARRAY),
                (&seen, Type::TIMESTAMPTZ_ARRAY),
                (&connected, Type::TIMESTAMPTZ_ARRAY),
            ];
            let query = "select skipped from gatepost.report($1, $2, $3) skipped";
            let skipped = self.within(DOING, lease.query_typed(query, &parameters)).await?;
            for row in &skipped {
                reported
                    .skipped
                    .push(super::decode::Columns::of(row, DOING).get::<Uuid>(0)?.into());
            }
        }
        lease.done();
        Ok(reported)
    }

    /// Appends entries to `audit_logs`, in batches, in order. An entry that the database refuses for
    /// its values is left out alone: a refused batch is halved until the entry is found.
    pub async fn audit(&self, entries: &[AuditEntry]) -> Audited {
        let mut audited = Audited::default();
        let lease = match self.lease(AUDITING).await {
            Ok(lease) => lease,
            Err(error) => return Audited { error: Some(error), ..audited },
        };
        let mut left: Vec<&[AuditEntry]> = entries.chunks(BATCH).rev().collect();
        while let Some(batch) = left.pop() {
            match (self.append(&lease, batch).await, batch) {
                (Ok(()), _) => audited.settled += batch.len(),
                (Err(error), [entry]) if error.is_of_the_values() => {
                    audited.settled += 1;
                    audited.refused.push((entry.clone(), error));
                }
                (Err(error), _) if error.is_of_the_values() => {
                    let (first, second) = batch.split_at(batch.len() / 2);
                    left.extend([second, first]);
                }
                (Err(error), _) => return Audited { error: Some(error), ..audited },
            }
        }
        lease.done();
        audited
    }

    async fn append(&self, lease: &Lease, batch: &[AuditEntry]) -> Result<(), StoreError> {
        let text = Value::from_iter(batch.iter().map(AuditEntry::json)).to_string();
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 1] =
            [(&text, Type::TEXT)];
        let query = "select gatepost.audit($1::pg_catalog.jsonb)";
        self.within(AUDITING, lease.query_typed(query, &parameters)).await?;
        Ok(())
    }

    /// Removes change marks older than `keep` (at least an hour), and returns how many. A reader that
    /// still needed them reads everything. Any agent may do it; once an hour is enough.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn prune(&self, keep: Duration) -> Result<i64, StoreError> {
        const DOING: &str = "prune change marks";
        let lease = self.lease(DOING).await?;
        let keep_secs = keep.as_secs_f64();
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 1] =
            [(&keep_secs, Type::FLOAT8)];
        let query = "select gatepost.prune(pg_catalog.make_interval(secs => $1))";
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        lease.done();
        super::decode::Columns::of(&row, DOING).get(0)
    }
}

/// A kernel clock that was never set must not fail the batch.
fn storable(time: SystemTime) -> SystemTime {
    time.max(SystemTime::UNIX_EPOCH)
}
