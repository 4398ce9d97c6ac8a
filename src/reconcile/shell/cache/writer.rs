//! Writes the last good rows.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::Serialize;

use super::seal::{self, Chain, Sealed};
use super::{Cache, CacheError, Line, Rows, around, withdrawn};
use crate::model::{ChangedRows, DeviceId, PublicKey, SnapshotRows};
use crate::reconcile::event::{LastGood, Provenance};
use crate::reconcile::shell::replace::replace;

/// As much room as a few hundred withdrawals take.
const RESERVE_BYTES: i64 = 64 * 1024;

/// The least that changes take before they are written anew.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// Writes the file. There is one for each cache.
#[derive(Debug)]
pub(super) struct Writer {
    cache: Cache,
    /// Open for appending, once what it holds is in force.
    tail: Option<Tail>,
    /// The devices of held peers, around which rows were written last.
    held: BTreeSet<DeviceId>,
    /// The disk was full, and the file lacks what rows granted since the last one that was written whole.
    lacks_grants: bool,
}

/// The file, up to its last line.
#[derive(Debug)]
struct Tail {
    file: File,
    chain: Chain,
    /// The file's length when it was written.
    written_bytes: u64,
}

/// The part of the rows that is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    All,
    /// The disk is full: what they withdraw.
    Withdrawals,
    /// There is no file until the next full read.
    Nothing,
}

impl Writer {
    pub const fn new(cache: Cache) -> Self {
        Self { cache, tail: None, held: BTreeSet::new(), lacks_grants: false }
    }

    /// Keeps the time at which rows were read, by both clocks.
    pub fn keep_moment(&self, database: SystemTime, up: Duration) {
        self.cache.keep_moment(database, up);
    }

    /// Replaces the file by a whole snapshot, or where there is no room for one, adds what the snapshot
    /// withdraws. A crash leaves the old file or the new one.
    ///
    /// # Errors
    /// When nothing can be written; there is no file then.
    pub fn replace(&mut self, rows: &SnapshotRows) -> Result<Kept, CacheError> {
        self.tail = None;
        let written = self.write_new_file(rows, None);
        self.lacks_grants = written.is_err();
        let Err(error) = written else { return Ok(Kept::All) };
        match self.withdraw_from_old_file(rows) {
            Some(()) => Ok(Kept::Withdrawals),
            None => self.cache.forget().and(Err(error)),
        }
    }

    /// Writes what does not concern the `held` peers. `None`: there are no rows yet that would hold them, or they
    /// may have been altered, or are another gateway's.
    ///
    /// # Errors
    /// When nothing can be written; there is no file then.
    pub fn write_around(
        &mut self,
        rows: &Rows,
        held: &BTreeSet<PublicKey>,
    ) -> Option<Result<Kept, CacheError>> {
        let (old, _) = self.cache.load_with_chain().ok()??;
        let is_ours = match rows {
            Rows::Everything(rows) => rows.gateway.name == old.rows.gateway.name,
            Rows::Changed(_) => true,
        };
        if old.provenance != Provenance::Sealed || !is_ours {
            return None;
        }
        let vpn_cidr = old.rows.gateway.vpn_cidr;
        let old = withdrawn::Tables::after(old);
        let kept = match rows {
            Rows::Everything(rows) => {
                let now = withdrawn::Tables::of(rows).peers;
                self.held = around::devices_of(held, [&old.peers, &now]);
                self.replace(&around::snapshot(old, vpn_cidr, rows, &self.held))
            }
            Rows::Changed(rows) => {
                self.held = around::devices_of(held, [&old.peers, &rows.peers]);
                self.append(&around::changed(old, rows, &self.held))
            }
        };
        Some(kept)
    }

    /// Adds a change, but for what it says of the devices around which rows were written last.
    ///
    /// # Errors
    /// When nothing can be written; there is no file then.
    pub fn append_around(&mut self, rows: &ChangedRows) -> Result<Kept, CacheError> {
        if !rows.peers.keys().any(|id| self.held.contains(id)) {
            return self.append(rows);
        }
        match self.cache.load_with_chain() {
            Ok(Some((old, _))) => {
                let old = withdrawn::Tables::after(old);
                self.append(&around::changed(old, rows, &self.held))
            }
            // There is no file to add to.
            _ => self.append(rows),
        }
    }

    /// All rows are good: no peer is held.
    pub fn release(&mut self) {
        self.held.clear();
    }

    fn write_new_file(
        &mut self,
        rows: &SnapshotRows,
        changes: Option<&ChangedRows>,
    ) -> Result<(), CacheError> {
        let mut chain = self.cache.sealer.begin();
        let write = |file: &mut File| write_file(file, &mut chain, rows, changes);
        let replaced = replace(&self.cache.path, write);
        let (file, written_bytes) = replaced.map_err(|failure| self.cache.failed(failure))?;
        self.tail = Some(Tail { file, chain, written_bytes });
        Ok(())
    }

    /// Writes the file anew, with each changed row once, if its changes take more room than the rest.
    /// They may be many while rows wait for an operator, because then no full read replaces the file.
    /// Where that fails the file stays as it is.
    fn compact(&mut self) {
        if !self.tail.as_ref().is_some_and(Tail::is_long) {
            return;
        }
        let Ok(Some((LastGood { rows, changes, .. }, _))) = self.cache.load_with_chain() else {
            return;
        };
        let changes = changes.into_iter().reduce(ChangedRows::followed_by);
        if self.write_new_file(&rows, changes.as_ref()).is_err() {
            // It may have been replaced, and not be known to be on the disk.
            self.tail.take_if(|tail| !tail.is_at(&self.cache.path));
        }
    }

    /// `None`: not everything that the rows withdraw can be said or written.
    fn withdraw_from_old_file(&mut self, rows: &SnapshotRows) -> Option<()> {
        let (old, chain) = self.cache.load_with_chain().ok()??;
        let withdrawn = withdrawn::between(old, rows)?;
        let file = OpenOptions::new().append(true).open(&self.cache.path).ok()?;
        let written_bytes = file.metadata().ok()?.len();
        let mut tail = Tail { file, chain, written_bytes };
        tail.write(&withdrawn).ok()?;
        self.tail = Some(tail);
        Some(())
    }

    /// Appends what changed, or where there is only the reserved room, what that withdraws. Without a
    /// snapshot of this run in the file, removes the file: rows that are known to be old must not come
    /// back.
    ///
    /// # Errors
    /// When nothing can be written; there is no file then.
    pub fn append(&mut self, rows: &ChangedRows) -> Result<Kept, CacheError> {
        let Some(mut tail) = self.tail.take() else {
            return self.cache.forget().map(|()| Kept::Nothing);
        };
        match tail.append(rows) {
            Ok(kept) => {
                self.tail = Some(tail);
                self.compact();
                self.lacks_grants |= kept == Kept::Withdrawals && withdrawn::of(rows) != *rows;
                Ok(if self.lacks_grants { Kept::Withdrawals } else { kept })
            }
            Err(source) => self.cache.forget().and(Err(self.cache.io("written", source))),
        }
    }
}

impl Tail {
    /// Whether what was added takes more room than what was written at once.
    fn is_long(&self) -> bool {
        let bytes = self.file.metadata().map_or(0, |it| it.len());
        bytes.saturating_sub(self.written_bytes) > self.written_bytes.max(COMPACT_BYTES)
    }

    /// Whether this is the file with that name.
    fn is_at(&self, path: &Path) -> bool {
        let named = fs::metadata(path).and_then(|named| Ok((named, self.file.metadata()?)));
        named.is_ok_and(|(named, ours)| (named.dev(), named.ino()) == (ours.dev(), ours.ino()))
    }

    /// Writes the change if there is room for it besides the reserve, else what it withdraws.
    fn append(&mut self, rows: &ChangedRows) -> io::Result<Kept> {
        let length = serde_json::to_vec(rows)?.len();
        let length = i64::try_from(length).unwrap_or(i64::MAX / 2);
        if reserve(&self.file, length + RESERVE_BYTES)? {
            self.write(rows).map(|()| Kept::All)
        } else {
            self.write(&withdrawn::of(rows)).map(|()| Kept::Withdrawals)
        }
    }

    /// Writes one line and makes sure that it is on the disk.
    fn write(&mut self, rows: &ChangedRows) -> io::Result<()> {
        write_line(&mut self.file, &mut self.chain, &Line::<(), _>::Changed(rows))?;
        self.file.sync_data()
    }
}

/// Returns the file's length.
fn write_file(
    file: &mut File,
    chain: &mut Chain,
    rows: &SnapshotRows,
    changes: Option<&ChangedRows>,
) -> io::Result<u64> {
    writeln!(file, "{}", seal::HEADING)?;
    write_line(file, chain, &Line::<_, ()>::Snapshot(rows))?;
    if let Some(changes) = changes {
        write_line(file, chain, &Line::<(), _>::Changed(changes))?;
    }
    if !reserve(file, RESERVE_BYTES)? {
        return Err(Errno::ENOSPC.into());
    }
    Ok(file.metadata()?.len())
}

pub(super) fn write_line(
    file: &mut File,
    chain: &mut Chain,
    line: &impl Serialize,
) -> io::Result<()> {
    let mut sealed = Sealed::new(BufWriter::new(file), chain);
    serde_json::to_writer(&mut sealed, line)?;
    sealed.end()
}

/// Reserves room behind the file's end. Says whether there is so much; where the file system cannot
/// tell, there is until a write fails.
fn reserve(file: &File, bytes: i64) -> io::Result<bool> {
    let end = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX / 2);
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, bytes) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(true),
        Err(Errno::ENOSPC | Errno::EDQUOT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
