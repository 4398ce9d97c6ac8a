//! The last good rows on disk, from which a host starts that boots while the database is away.
//!
//! The file consists of JSON lines. The first is a whole snapshot; each further line is a change, so
//! that a revocation is on disk as soon as it is in the kernel, at the cost of the change. Every full
//! read replaces the file. Preshared keys stay sealed in it.
//!
//! Rows are written once they are known to be good: they made a desired state, and the guard holds
//! none of their removals back. If they cannot be written, the file is removed: rows that are known
//! to be old must not come back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::model::{ChangedRows, SnapshotRows};
use crate::reconcile::event::{Keep, LastGood, ReadAnswer};

/// Why the last good rows cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{path} cannot be {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path} is damaged in line {line}: it is not used: {source}")]
    Damaged { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("{path} is of gateway {found:?}, not of {wanted:?}: it is not used")]
    OtherGateway { path: PathBuf, found: String, wanted: String },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<S, C> {
    Snapshot(S),
    Changed(C),
}

/// The file of the last good rows.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
    /// Open for appending, once a snapshot of this run stands in it.
    tail: Option<Arc<File>>,
}

impl Cache {
    /// A cache at this path. Touches nothing.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, tail: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The rows of an earlier run with all that changed since, oldest first; `None`: no file.
    ///
    /// # Errors
    /// When the file cannot be read, or any of its lines: half a truth could grant what was revoked.
    /// When it is of another gateway than the one of this name.
    pub fn load(&self, gateway: &str) -> Result<Option<LastGood>, CacheError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|source| self.io("opened", source))?,
        };
        let (mut snapshot, mut changes) = (None::<SnapshotRows>, Vec::new());
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|source| self.io("read", source))?;
            let damaged =
                |source| CacheError::Damaged { path: self.path.clone(), line: index + 1, source };
            match serde_json::from_str(&line).map_err(damaged)? {
                Line::Snapshot(rows) => snapshot = Some(rows),
                Line::Changed(rows) => changes.push(rows),
            }
        }
        match snapshot {
            Some(rows) if rows.gateway.name != gateway => Err(CacheError::OtherGateway {
                path: self.path.clone(),
                found: rows.gateway.name,
                wanted: gateway.to_owned(),
            }),
            snapshot => Ok(snapshot.map(|rows| LastGood { rows, changes })),
        }
    }

    /// Replaces the file by a whole snapshot. A crash leaves the old file or the new one.
    ///
    /// # Errors
    /// When the file cannot be written; there is none then.
    pub fn replace(&mut self, rows: &SnapshotRows) -> Result<(), CacheError> {
        self.tail = None;
        self.write_new_file(rows).or_else(|error| self.forget().and(Err(error)))
    }

    fn write_new_file(&mut self, rows: &SnapshotRows) -> Result<(), CacheError> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(|source| self.io("given a folder", source))?;
        }
        let new = self.path.with_extension("new");
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(|source| self.io("created", source))?;
        let written = write_line(&file, &Line::<_, ()>::Snapshot(rows));
        written.map_err(|source| self.io("written", source))?;
        fs::rename(&new, &self.path).map_err(|source| self.io("put in place", source))?;
        self.sync_folder()?;
        self.tail = Some(Arc::new(file));
        Ok(())
    }

    /// Appends what changed. Without a snapshot of this run in the file, removes the file: rows that
    /// are known to be old must not come back.
    ///
    /// # Errors
    /// When the file cannot be written; there is none then.
    pub fn append(&mut self, rows: &ChangedRows) -> Result<(), CacheError> {
        let Some(file) = self.tail.take() else { return self.forget() };
        match write_line(&file, &Line::<(), _>::Changed(rows)) {
            Ok(()) => {
                self.tail = Some(file);
                Ok(())
            }
            Err(source) => self.forget().and(Err(self.io("written", source))),
        }
    }

    /// Removes the file.
    fn forget(&self) -> Result<(), CacheError> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_folder(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.io("removed", error)),
        }
    }

    /// Makes sure that the file's name, or its absence, is on the disk.
    fn sync_folder(&self) -> Result<(), CacheError> {
        let Some(folder) = self.path.parent() else { return Ok(()) };
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|source| self.io("put on disk", source))
    }

    /// Hands the cache to a thread of its own: a slow disk must not hold up a revocation.
    #[must_use]
    pub fn into_keeper(mut self) -> Keeper {
        let (sender, incoming) = mpsc::channel::<Kept>();
        std::thread::spawn(move || {
            let mut waiting = Waiting::default();
            for kept in incoming {
                let good = match kept {
                    Kept::Rows(rows) => {
                        waiting.push(rows);
                        continue;
                    }
                    Kept::Verdict(keep) => waiting.judge(keep),
                    Kept::Written(answer) => {
                        // The receiver may have stopped waiting.
                        let _ = answer.send(());
                        continue;
                    }
                };
                for rows in good {
                    if let Err(error) = self.write(&rows) {
                        tracing::warn!(%error, "the last good rows were not kept: {error}");
                    }
                }
            }
        });
        Keeper(sender)
    }

    fn write(&mut self, rows: &Rows) -> Result<(), CacheError> {
        match rows {
            Rows::Everything(rows) => self.replace(rows),
            Rows::Changed(rows) => self.append(rows),
        }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> CacheError {
        CacheError::Io { path: self.path.clone(), doing, source }
    }
}

enum Kept {
    Rows(Rows),
    Verdict(Keep),
    /// Answer once all before this is written.
    Written(oneshot::Sender<()>),
}

/// What one read returned.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rows {
    Everything(Arc<SnapshotRows>),
    Changed(Arc<ChangedRows>),
}

impl Rows {
    /// A copy of the rows of an answer; `None`: it has none.
    pub fn of(answer: &ReadAnswer) -> Option<Self> {
        match answer {
            ReadAnswer::Unchanged { .. } => None,
            ReadAnswer::Changed(rows) => Some(Self::Changed(Arc::new(rows.clone()))),
            ReadAnswer::Everything(rows) => {
                Some(Self::Everything(Arc::new(SnapshotRows::clone(rows))))
            }
        }
    }
}

/// Rows that are not known to be good.
#[derive(Debug, Default)]
struct Waiting {
    /// Rows without a verdict.
    new: Vec<Rows>,
    /// Rows that wait for an operator's confirmation, and those kept since: once it comes, all are
    /// written in the order in which they were read.
    held: Vec<Rows>,
}

impl Waiting {
    fn push(&mut self, rows: Rows) {
        if matches!(rows, Rows::Everything(_)) {
            self.new.clear();
        }
        self.new.push(rows);
    }

    /// Returns the rows that this verdict makes good.
    fn judge(&mut self, keep: Keep) -> Vec<Rows> {
        let whole = matches!(self.new.first(), Some(Rows::Everything(_)));
        // A whole snapshot includes the rows that wait.
        let these = if keep == Keep::These && !whole { self.new.clone() } else { Vec::new() };
        if whole {
            self.held.clear();
        }
        self.held.append(&mut self.new);
        if keep == Keep::All { std::mem::take(&mut self.held) } else { these }
    }
}

/// Hands rows to the cache's thread, in order, and returns at once.
#[derive(Debug, Clone)]
pub struct Keeper(mpsc::Sender<Kept>);

// The thread lives as long as a keeper does, so it is there.
impl Keeper {
    /// Hands over what a read returned. The caller hands it to the machine at the same moment, so that
    /// no verdict on earlier rows counts for these.
    pub(super) fn push(&self, rows: Rows) {
        let _ = self.0.send(Kept::Rows(rows));
    }

    /// Says whether the rows handed over so far are good.
    pub fn judge(&self, keep: Keep) {
        let _ = self.0.send(Kept::Verdict(keep));
    }

    /// Answers once everything handed over before is on the disk.
    pub fn written(&self) -> oneshot::Receiver<()> {
        let (answer, written) = oneshot::channel();
        let _ = self.0.send(Kept::Written(answer));
        written
    }
}

/// Writes one line and makes sure that it is on the disk.
fn write_line(file: &File, line: &impl Serialize) -> io::Result<()> {
    let mut writer = BufWriter::new(file);
    serde_json::to_writer(&mut writer, line)?;
    writer.write_all(b"\n")?;
    writer.flush()?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use super::*;
    use crate::model::{GatewayId, GatewayRow, KeyText};

    fn snapshot() -> SnapshotRows {
        SnapshotRows {
            gateway: GatewayRow {
                id: GatewayId(uuid::Uuid::nil()),
                name: "fra-1".into(),
                public_key: KeyText::parse("no key"),
                listen_port: 1,
                vpn_cidr: "10.0.0.0/8".parse().unwrap(),
                dns_servers: Vec::new(),
                active: true,
                allocated_address: None,
            },
            settings: Vec::new(),
            peers: Vec::new(),
            memberships: Vec::new(),
            policies: Vec::new(),
            taken_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn changed() -> ChangedRows {
        ChangedRows {
            marks: Vec::new(),
            peers: BTreeMap::new(),
            memberships: BTreeMap::new(),
            policies: BTreeMap::new(),
            taken_at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_was_kept_comes_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::new(folder.path().join("deep/last-good"));
        assert!(cache.load("fra-1").unwrap().is_none());
        cache.replace(&snapshot()).unwrap();
        cache.append(&changed()).unwrap();
        assert_eq!(
            cache.load("fra-1").unwrap(),
            Some(LastGood { rows: snapshot(), changes: vec![changed()] })
        );
        cache.replace(&snapshot()).unwrap();
        assert_eq!(
            cache.load("fra-1").unwrap(),
            Some(LastGood { rows: snapshot(), changes: Vec::new() })
        );
    }

    #[test]
    fn a_change_to_rows_of_another_run_removes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good");
        Cache::new(path.clone()).replace(&snapshot()).unwrap();
        let mut later = Cache::new(path);
        later.append(&changed()).unwrap();
        assert!(later.load("fra-1").unwrap().is_none());
    }

    #[test]
    fn rows_of_another_gateway_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::new(folder.path().join("last-good"));
        cache.replace(&snapshot()).unwrap();
        let refused = cache.load("ams-1").unwrap_err();
        assert!(matches!(refused, CacheError::OtherGateway { .. }), "{refused}");
    }

    #[test]
    fn what_cannot_be_replaced_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good");
        let mut cache = Cache::new(path.clone());
        cache.replace(&snapshot()).unwrap();
        fs::create_dir(path.with_extension("new")).unwrap();
        cache.replace(&snapshot()).unwrap_err();
        assert!(!path.exists(), "rows that are known to be old must not come back");
    }

    #[test]
    fn rows_are_kept_when_they_are_known_to_be_good() {
        let everything = || Rows::Everything(Arc::new(snapshot()));
        let change = |secs| {
            let taken_at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
            Rows::Changed(Arc::new(ChangedRows { taken_at, ..changed() }))
        };
        let mut waiting = Waiting::default();
        // The first was not buildable: no word was given on it.
        waiting.push(everything());
        waiting.push(everything());
        assert_eq!(waiting.judge(Keep::All), [everything()]);
        waiting.push(change(1));
        assert_eq!(waiting.judge(Keep::Later), []);
        waiting.push(change(2));
        assert_eq!(waiting.judge(Keep::These), [change(2)], "a small change meanwhile");
        waiting.push(everything());
        assert_eq!(waiting.judge(Keep::Later), [], "the emptied table is held back");
        waiting.push(everything());
        assert_eq!(waiting.judge(Keep::These), [], "and so it is when it is read again");
        waiting.push(change(3));
        assert_eq!(waiting.judge(Keep::All), [everything(), change(3)]);
        assert_eq!(waiting.judge(Keep::All), []);
    }

    #[test]
    fn a_torn_line_makes_the_whole_unusable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good");
        let mut cache = Cache::new(path.clone());
        cache.replace(&snapshot()).unwrap();
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"{\"changed\":{\"peers").unwrap();
        assert!(matches!(cache.load("fra-1"), Err(CacheError::Damaged { line: 2, .. })));
    }
}
