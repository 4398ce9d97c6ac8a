//! The last good rows on disk, from which a host starts that boots while the database is unreachable.
//!
//! The file consists of JSON lines below a heading. The first is a whole snapshot; each further line is
//! a change, so that a revocation is on disk as soon as it is in the kernel, at the cost of the change.
//! Every full read replaces the file. Preshared keys stay sealed in it. Each line ends with a checksum
//! ([`seal`]), and one that is wrong or torn makes the file useless: it may be a revocation.
//!
//! Rows are written once they are known to be good: they made a desired state, and the guard holds
//! none of their removals back. Of others, everything is written that does not concern the peers that the
//! guard holds: a narrower policy waits for no operator.
//!
//! Behind the last line, room is reserved for withdrawals, for a time when the disk is full. If not even
//! these can be written, the file is removed: rows that are known to be old must not come back.

mod around;
mod keeper;
mod moment;
mod rows;
mod seal;
#[cfg(test)]
pub(super) mod tests;
mod withdrawn;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use keeper::Keeper;
pub(super) use rows::Rows;
use seal::Chain;
pub(super) use seal::Sealer;

use super::replace::{Failure, sync_folder};
use crate::model::{PrivateKey, SnapshotRows};
use crate::reconcile::event::{LastGood, Provenance};

/// Why the last good rows cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{path} cannot be {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path} is damaged in line {line}: it is not used: {source}")]
    Damaged { path: PathBuf, line: usize, source: serde_json::Error },
    #[error(
        "line {line} of {path} was altered, or written with another private key: the file is not used; \
         remove it"
    )]
    Altered { path: PathBuf, line: usize },
    #[error(
        "{path} was written by another version of gatepost ({found:?}, and this one reads {:?}): it is not used",
        seal::HEADING
    )]
    OtherForm { path: PathBuf, found: String },
    #[error("{path} is of gateway {found:?}, not of {wanted:?}: it is not used")]
    OtherGateway { path: PathBuf, found: String, wanted: String },
    /// A boot without the database would admit whom the database has revoked since.
    #[error(
        "{path} holds rows that are out of date, and can be neither written nor removed: {source}; \
         remove it by hand"
    )]
    OutOfDate { path: PathBuf, source: io::Error },
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
    sealer: Sealer,
}

impl Cache {
    /// A cache at this path, whose lines this gateway's private key authenticates. Touches nothing.
    #[must_use]
    pub fn new(path: PathBuf, private_key: &PrivateKey) -> Self {
        Self { path, sealer: Sealer::new(private_key) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes checksums of another file, with a key of its own.
    pub(super) fn sealer_of(&self, purpose: &str) -> Sealer {
        self.sealer.of(purpose)
    }

    /// The rows of an earlier run with all that changed since, oldest first; `None`: no file, or an
    /// empty one.
    ///
    /// # Errors
    /// When the file cannot be read, or any of its lines: half a truth could grant what was revoked.
    /// When it is of another gateway than the one of this name.
    pub fn load(&self, gateway: &str) -> Result<Option<LastGood>, CacheError> {
        let Some((last_good, _)) = self.load_with_chain()? else { return Ok(None) };
        if last_good.rows.gateway.name == gateway {
            return Ok(Some(last_good));
        }
        Err(CacheError::OtherGateway {
            path: self.path.clone(),
            found: last_good.rows.gateway.name,
            wanted: gateway.to_owned(),
        })
    }

    fn load_with_chain(&self) -> Result<Option<(LastGood, Chain)>, CacheError> {
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => self.read(BufReader::new(file.map_err(|source| self.io("opened", source))?)),
        }
    }

    /// Reads the whole file. The chain ends with it, and means nothing where the lines have no checksum.
    fn read(&self, mut reader: impl BufRead) -> Result<Option<(LastGood, Chain)>, CacheError> {
        let first = reader.fill_buf().map_err(|source| self.io("read", source))?.first();
        // Agents up to 0.1 wrote bare JSON.
        let provenance =
            if first == Some(&b'{') { Provenance::Unsealed } else { Provenance::Sealed };
        let mut chain = self.sealer.begin();
        let (mut snapshot, mut changes) = (None::<SnapshotRows>, Vec::new());
        for (index, line) in reader.lines().enumerate() {
            let line = line.map_err(|source| self.io("read", source))?;
            let json = match (provenance, index) {
                (Provenance::Unsealed, _) => &line[..],
                (Provenance::Sealed, 0) if line == seal::HEADING => continue,
                (Provenance::Sealed, 0) => return Err(self.heading(line)),
                (Provenance::Sealed, _) => {
                    chain.open(&line).ok_or_else(|| self.altered(index + 1))?
                }
            };
            let damaged =
                |source| CacheError::Damaged { path: self.path.clone(), line: index + 1, source };
            match serde_json::from_str(json).map_err(damaged)? {
                Line::Snapshot(rows) => snapshot = Some(rows),
                Line::Changed(rows) => changes.push(rows),
            }
        }
        Ok(snapshot.map(|rows| (LastGood { rows, changes, provenance }, chain)))
    }

    /// Whether a file with these bytes could be used.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), CacheError> {
        self.read(bytes).map(drop)
    }

    /// Removes the file, or empties it where that is not possible.
    fn forget(&self) -> Result<(), CacheError> {
        let removed = match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(|source| self.io("removed", source)),
        };
        removed
            .and_then(|()| sync_folder(&self.path).map_err(|failure| self.failed(failure)))
            .or_else(|_| {
                let emptied = OpenOptions::new().write(true).truncate(true).open(&self.path);
                let emptied = emptied.and_then(|file| file.sync_all());
                emptied.map_err(|source| CacheError::OutOfDate { path: self.path.clone(), source })
            })
    }

    /// A first line that is not ours.
    fn heading(&self, found: String) -> CacheError {
        match seal::is_heading(&found) {
            true => CacheError::OtherForm { path: self.path.clone(), found },
            false => self.altered(1),
        }
    }

    fn altered(&self, line: usize) -> CacheError {
        CacheError::Altered { path: self.path.clone(), line }
    }

    fn failed(&self, (doing, source): Failure) -> CacheError {
        self.io(doing, source)
    }

    fn io(&self, doing: &'static str, source: io::Error) -> CacheError {
        CacheError::Io { path: self.path.clone(), doing, source }
    }
}
