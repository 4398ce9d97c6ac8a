//! The shell's requests to the store: to connect, to read, to write back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use tracing::debug;

use super::choose::{Chosen, Present, choose};
use crate::causes::causes;
use crate::model::PublicKey;
use crate::reconcile::device_standings::{AskedDevice, DeviceStandings};
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::{EpochRead, Event, ReadAnswer, ReadKind, Sent};
use crate::reconcile::history::Withdrawal;
use crate::reconcile::ledger::Report;
use crate::reconcile::mode::Mode;
use crate::reconcile::options::SyncMode;
use crate::store::{
    AskedMark, Attached, Cursor, Handshake, Hello, Polled, Read, Store, StoreError,
};

/// A connection that was made, and the mode that was chosen for it.
pub(super) struct Connection {
    pub hello: Hello,
    pub chosen: Chosen,
}

/// Asks for which gateway the role acts, and chooses a mode. `configured`: `None` for an agent that
/// makes one pass and leaves no trace of having followed the database.
///
/// # Errors
/// When the database does not answer, refuses, or acts for another gateway.
pub(super) async fn connect(
    store: &Store,
    configured: Option<SyncMode>,
    gateway: &str,
    present: Present,
) -> Result<Connection, DatabaseError> {
    let hello = store.hello().await?;
    if hello.gateway_name != gateway {
        let bound = hello.gateway_name.clone();
        let configured = gateway.to_owned();
        return Err(DatabaseError::OtherGateway { bound, configured });
    }
    let chosen = match configured {
        Some(configured) => choose(store, configured, &hello, present).await?,
        None => Chosen::for_one_pass(),
    };
    Ok(Connection { hello, chosen })
}

/// What the database said to a report.
pub(super) struct Answer {
    pub sent: Sent,
    /// If it was told that the agent follows it.
    pub attached: Option<Attached>,
    /// Whether a bell merges the reports of all gateways. `None`: it does not say.
    pub merged_by_bell: Option<bool>,
}

/// Writes a report, and merges it unless a bell is known to. Each part is written by itself, so that a fault of one does
/// not hold up the rest. A proof tells as well that the agent follows the database, in this mode, if one is given.
pub(super) async fn send(
    store: &Store,
    mut report: Report,
    follows: Option<Mode>,
    merged_by_bell: bool,
) -> Answer {
    let (mut lost, mut errors) = (Vec::new(), Vec::new());
    let (mut hosts, mut attached, mut refusals) = (None, None, None);
    let mut says_by_bell = None;
    if let Some(as_of) = report.synced_as_of {
        let listens = follows.map(|mode| mode == Mode::Listen);
        match store.heartbeat(Some(as_of), listens).await {
            Ok((proven, heard)) => {
                report.synced_as_of = None;
                hosts = Some(proven.hosts);
                says_by_bell = Some(proven.merged_by_bell.is_some());
                (refusals, attached) = (proven.merged_by_bell, heard);
            }
            Err(error) => errors.push(error),
        }
    }
    if hosts.as_ref().is_some_and(|hosts| hosts.leader.is_some()) {
        // Another host writes them.
        report.audit.clear();
    }
    let handshakes: Vec<Handshake> = report.handshakes.values().copied().collect();
    if !handshakes.is_empty() {
        match store.report(&handshakes).await {
            Ok(reported) => report.handshakes.retain(|id, _| reported.skipped.contains(id)),
            Err(error) => errors.push(error),
        }
    }
    if !report.audit.is_empty() {
        let audited = store.audit(&report.audit).await;
        report.audit.drain(..audited.settled);
        lost.extend(audited.refused.iter().map(|(entry, error)| {
            format!("{} {:?}: {}", entry.event.word(), entry.message, causes(error))
        }));
        errors.extend(audited.error);
    }
    if !says_by_bell.unwrap_or(merged_by_bell) {
        match store.merge().await {
            Ok(merged) => {
                lost.extend(merged.lost);
                refusals = Some(merged.refusals);
            }
            Err(error) => errors.push(error),
        }
    }
    let error = errors.into_iter().next().map(DatabaseError::from);
    let sent = Sent { left: report, lost, refusals, hosts, error };
    Answer { sent, attached, merged_by_bell: says_by_bell }
}

/// The peers whose withdrawals the database of this epoch has lost.
pub(super) async fn lost(
    store: &Store,
    epoch: &str,
    withdrawals: &BTreeMap<PublicKey, Withdrawal>,
) -> Result<BTreeSet<PublicKey>, DatabaseError> {
    let (mut keys, mut asked) = (Vec::new(), Vec::new());
    for (key, withdrawal) in withdrawals {
        let Withdrawal { device_id, user_id, marks, read_at, .. } = withdrawal;
        for mark in marks {
            let (mark, device_id, user_id) = (mark.clone(), *device_id, *user_id);
            asked.push(AskedMark { mark, device_id, user_id, read_at: *read_at });
            keys.push(*key);
        }
    }
    let lost = store.lost_marks(epoch, &asked).await?.ok_or(DatabaseError::OtherServer)?;
    Ok(lost.into_iter().filter_map(|number| keys.get(number).copied()).collect())
}

/// What the rows say to the gateway of this name about the devices of peers that no row names.
pub(super) async fn ask_about(
    asked: BTreeMap<PublicKey, AskedDevice>,
    gateway_name: &str,
    store: &Store,
) -> Event {
    let devices = asked.values().map(|it| it.device_id).collect();
    let answer = store.devices_without_peer(&devices).await;
    let standings = |rows: Vec<_>| DeviceStandings::new(gateway_name, &asked, &rows);
    Event::DevicesAnswered(answer.map(standings).map_err(Into::into))
}

/// The state that one read leaves for the next.
#[derive(Default)]
pub(super) struct Reader {
    last: Option<LastRead>,
    /// Tables whose changes were not announced at the last full read.
    unannounced: Vec<String>,
}

/// The result of a read.
pub(super) struct Found {
    pub answer: ReadAnswer,
    /// Tables whose changes are not announced, if they are others than at the full read before.
    pub unannounced: Option<Vec<String>>,
    /// Of a full read, to be told before its answer.
    pub epoch: Option<Event>,
}

impl From<ReadAnswer> for Found {
    fn from(answer: ReadAnswer) -> Self {
        Self { answer, unannounced: None, epoch: None }
    }
}

struct LastRead {
    cursor: Cursor,
    /// The database's time up to which nothing is missing.
    as_of: SystemTime,
}

impl Reader {
    /// Reads what changed since the last read, or everything.
    pub async fn read(&mut self, store: &Store, kind: ReadKind) -> Result<Found, StoreError> {
        let mut reason = None;
        if let (ReadKind::Check | ReadKind::Changes, Some(last)) = (kind, &mut self.last) {
            if kind == ReadKind::Check
                && let Polled::Quiet(next, quiet_until) = store.poll(&last.cursor).await?
            {
                *last = LastRead { cursor: next, as_of: quiet_until.max(last.as_of) };
                return Ok(ReadAnswer::Unchanged { taken_at: last.as_of }.into());
            }
            match store.changes(&last.cursor).await? {
                Read::Nothing(next, taken_at) => {
                    *last = LastRead { cursor: next, as_of: taken_at };
                    return Ok(ReadAnswer::Unchanged { taken_at }.into());
                }
                Read::Changed(rows, next) => {
                    *last = LastRead { cursor: next, as_of: rows.taken_at };
                    return Ok(ReadAnswer::Changed(rows).into());
                }
                Read::Everything(why) => {
                    debug!(why, "reading everything: {why}");
                    reason = Some(why);
                }
            }
        }
        let since = self.last.as_ref().map(|last| &last.cursor);
        let (rows, next, marks) = store.snapshot_with_marks(since).await?;
        let epoch = Some(Event::Epoch(EpochRead {
            epoch: next.epoch.clone(),
            why: reason,
            marks,
            read_at: rows.taken_at,
        }));
        self.last = Some(LastRead { cursor: next, as_of: rows.taken_at });
        // After the snapshot: if the triggers change in between, the next read of changes shows it.
        let tables = store.unwatched().await?;
        let unannounced = (tables != self.unannounced).then(|| tables.clone());
        self.unannounced = tables;
        Ok(Found { answer: ReadAnswer::Everything(Box::new(rows)), unannounced, epoch })
    }
}
