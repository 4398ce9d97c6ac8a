//! The last good rows on disk: what a host that boots while the database is away starts from.
//!
//! A file of JSON lines. The first is a whole snapshot; each further one is what changed since, so
//! that a revocation is on disk as soon as it is in the kernel, at the cost of the change. Every full
//! read begins the file anew. Preshared keys stay sealed in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use serde::{Deserialize, Serialize};

use crate::model::{ChangedRows, SnapshotRows};

/// Why the last good rows cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{path} cannot be {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path} is damaged in line {line}: it is not used: {source}")]
    Damaged { path: PathBuf, line: usize, source: serde_json::Error },
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

    /// The rows of an earlier run with all that changed since, oldest first; `None`: no file.
    ///
    /// # Errors
    /// When the file cannot be read, or any of its lines: half a truth could grant what was revoked.
    pub fn load(&self) -> Result<Option<(SnapshotRows, Vec<ChangedRows>)>, CacheError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|source| self.io("opened", source))?,
        };
        let (mut snapshot, mut changes) = (None, Vec::new());
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line.map_err(|source| self.io("read", source))?;
            let damaged =
                |source| CacheError::Damaged { path: self.path.clone(), line: index + 1, source };
            match serde_json::from_str(&line).map_err(damaged)? {
                Line::Snapshot(rows) => snapshot = Some(rows),
                Line::Changed(rows) => changes.push(rows),
            }
        }
        Ok(snapshot.map(|snapshot| (snapshot, changes)))
    }

    /// Begins the file anew with everything, so that a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn replace(&mut self, rows: &SnapshotRows) -> Result<(), CacheError> {
        self.tail = None;
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
        self.tail = Some(Arc::new(file));
        Ok(())
    }

    /// Appends what changed. Without a snapshot of this run in the file, removes the file: rows that
    /// are known to be old must not come back.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, rows: &ChangedRows) -> Result<(), CacheError> {
        match self.tail.take() {
            Some(file) => {
                let written = write_line(&file, &Line::<(), _>::Changed(rows));
                written.map_err(|source| self.io("written", source))?;
                self.tail = Some(file);
                Ok(())
            }
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(self.io("removed", error))
                }
                _ => Ok(()),
            },
        }
    }

    /// Hands the cache to a thread of its own: a slow disk must not hold up a revocation.
    #[must_use]
    pub fn into_keeper(mut self) -> Keeper {
        let (sender, incoming) = mpsc::channel::<Kept>();
        std::thread::spawn(move || {
            for kept in incoming {
                let result = match kept {
                    Kept::Everything(rows) => self.replace(&rows),
                    Kept::Changed(rows) => self.append(&rows),
                };
                if let Err(error) = result {
                    tracing::warn!(%error, "the last good rows were not kept: {error}");
                }
            }
        });
        Keeper(sender)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> CacheError {
        CacheError::Io { path: self.path.clone(), doing, source }
    }
}

enum Kept {
    Everything(Box<SnapshotRows>),
    Changed(Box<ChangedRows>),
}

/// Takes rows to be kept, in order, and returns at once.
#[derive(Debug, Clone)]
pub struct Keeper(mpsc::Sender<Kept>);

impl Keeper {
    /// Keeps everything. The thread lives as long as this value, so it is there.
    pub fn replace(&self, rows: &SnapshotRows) {
        let _ = self.0.send(Kept::Everything(Box::new(rows.clone())));
    }

    /// Keeps what changed.
    pub fn append(&self, rows: &ChangedRows) {
        let _ = self.0.send(Kept::Changed(Box::new(rows.clone())));
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
        assert!(cache.load().unwrap().is_none());
        cache.replace(&snapshot()).unwrap();
        cache.append(&changed()).unwrap();
        assert_eq!(cache.load().unwrap(), Some((snapshot(), vec![changed()])));
        cache.replace(&snapshot()).unwrap();
        assert_eq!(cache.load().unwrap(), Some((snapshot(), Vec::new())));
    }

    #[test]
    fn a_change_to_rows_of_another_run_removes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good");
        Cache::new(path.clone()).replace(&snapshot()).unwrap();
        let mut later = Cache::new(path);
        later.append(&changed()).unwrap();
        assert!(later.load().unwrap().is_none());
    }

    #[test]
    fn a_torn_line_makes_the_whole_unusable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-good");
        let mut cache = Cache::new(path.clone());
        cache.replace(&snapshot()).unwrap();
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"{\"changed\":{\"peers").unwrap();
        assert!(matches!(cache.load(), Err(CacheError::Damaged { line: 2, .. })));
    }
}
