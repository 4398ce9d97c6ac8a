//! What the shell asks of the store: connecting, reading, writing back.

use tracing::debug;

use super::cache::Keeper;
use super::event::{Mode, ReadAnswer, ReadKind};
use super::ledger::Report;
use super::shell::RunError;
use crate::store::{Cursor, Handshake, Hello, Listener, Read, Store, StoreError};

/// `sync.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Listen where notifications arrive, else poll.
    #[default]
    Auto,
    Listen,
    Poll,
}

/// A connection that was made, and how changes will be learnt of.
pub(super) struct Connection {
    pub hello: Hello,
    pub listener: Option<Listener>,
    pub mode: Mode,
    pub why: String,
}

/// Asks who we are here, and listens where that works.
///
/// # Errors
/// In words, with the way out.
pub(super) async fn connect(
    store: &Store,
    mode: SyncMode,
    gateway: &str,
) -> Result<Connection, String> {
    let hello = store.hello().await.map_err(|error| chain(&error))?;
    if hello.gateway_name != gateway {
        let bound = hello.gateway_name.clone();
        let configured = gateway.to_owned();
        return Err(RunError::OtherGateway { bound, configured }.to_string());
    }
    let poll = |why: String| (None, Mode::Poll, why);
    let (listener, mode, why) = match mode {
        SyncMode::Poll => poll("sync.mode = \"poll\"".into()),
        SyncMode::Listen => {
            let listener = store.listen(&hello).await.map_err(|error| chain(&error))?;
            (Some(listener), Mode::Listen, "sync.mode = \"listen\"".into())
        }
        SyncMode::Auto => {
            let mut listener = store.listen(&hello).await.map_err(|error| chain(&error))?;
            if listener.probe().await.map_err(|error| chain(&error))? {
                (Some(listener), Mode::Listen, "a notification sent to itself arrived".into())
            } else {
                poll("no notification arrives, as behind a pooler in transaction mode".into())
            }
        }
    };
    Ok(Connection { hello, listener, mode, why })
}

/// Writes a report. Returns what was not taken.
pub(super) async fn send(store: &Store, mut report: Report) -> (Report, Option<StoreError>) {
    let handshakes: Vec<Handshake> = report
        .handshakes
        .iter()
        .map(|(device_id, seen)| Handshake {
            device_id: *device_id,
            seen_at: seen.at,
            connected_at: seen.session_since,
        })
        .collect();
    if !handshakes.is_empty() {
        match store.report(&handshakes).await {
            Ok(reported) => report.handshakes.retain(|id, _| reported.skipped.contains(id)),
            Err(error) => return (report, Some(error)),
        }
    }
    if !report.audit.is_empty() {
        match store.audit(&report.audit).await {
            Ok(()) => report.audit.clear(),
            Err(error) => return (report, Some(error)),
        }
    }
    if let Some(as_of) = report.synced_as_of {
        match store.synced(as_of).await {
            // Somebody holds the row: the next beat says it again.
            Ok(_) => report.synced_as_of = None,
            Err(error) => return (report, Some(error)),
        }
    }
    (report, None)
}

/// What reading leaves behind for the next read, and for the next boot.
pub(super) struct Reader {
    cursor: Option<Cursor>,
    keeper: Option<Keeper>,
}

impl Reader {
    pub const fn new(keeper: Option<Keeper>) -> Self {
        Self { cursor: None, keeper }
    }

    /// Reads what changed since the last read, or everything.
    pub async fn read(&mut self, store: &Store, kind: ReadKind) -> Result<ReadAnswer, StoreError> {
        if let (ReadKind::Changes, Some(since)) = (kind, &self.cursor) {
            match store.changes(since).await? {
                Read::Nothing(next, taken_at) => {
                    self.cursor = Some(next);
                    return Ok(ReadAnswer::Unchanged { taken_at });
                }
                Read::Changed(rows, next) => {
                    self.cursor = Some(next);
                    if let Some(keeper) = &self.keeper {
                        keeper.append(&rows);
                    }
                    return Ok(ReadAnswer::Changed(rows));
                }
                Read::Everything(why) => debug!(why, "reading everything: {why}"),
            }
        }
        let (rows, next) = store.snapshot().await?;
        self.cursor = Some(next);
        if let Some(keeper) = &self.keeper {
            keeper.replace(&rows);
        }
        Ok(ReadAnswer::Everything(Box::new(rows)))
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
