//! The withdrawals that were carried out and those that are held back, on disk: a restart forgets none of
//! them.
//!
//! They are a small file beside the last good rows, because they are needed at every start, and before
//! the first row is read. As the last good rows it has a checksum that only the gateway's private key makes,
//! and room that is reserved for a time when the disk is full.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use tokio::sync::oneshot;

use super::cache::{Cache, Sealer};
use super::replace::replace;
use crate::reconcile::history::Withdrawals;

/// What the checksum is of, and the version of its form.
const PURPOSE: &str = "gatepost-withdrawals 1";
/// Before what was not written is written again.
const RETRY: Duration = Duration::from_secs(30);
/// What is reserved beside room for the file as it is, in bytes: some dozens of withdrawals.
const RESERVE_BYTES: usize = 16 * 1024;

/// The file of withdrawals that belongs to a cache.
#[derive(Debug, Clone)]
pub(super) struct WithdrawalsFile {
    path: PathBuf,
    sealer: Sealer,
}

impl Withdrawals {
    /// What an earlier run kept beside these last good rows; nothing if there is no file, or if it cannot be
    /// read, which is said.
    #[must_use]
    pub fn load_beside(cache: &Cache) -> Self {
        let file = WithdrawalsFile::beside(cache);
        file.load().unwrap_or_else(|error| {
            let path = file.path.display();
            tracing::warn!(
                %path, %error,
                "{path} cannot be read, so a failover of the database may let in who was revoked \
                 before, and removals that waited may go on: {error}"
            );
            Self::default()
        })
    }
}

impl WithdrawalsFile {
    pub fn beside(cache: &Cache) -> Self {
        let path = cache.path().with_added_extension("withdrawals");
        Self { path, sealer: cache.sealer_of(PURPOSE) }
    }

    /// What may have been altered keeps peers out, and holds no removal.
    fn load(&self) -> io::Result<Withdrawals> {
        match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Withdrawals::default()),
            text => self.open(&text?),
        }
    }

    /// What has no checksum may have been altered, too: it can be taken away.
    fn open(&self, text: &str) -> io::Result<Withdrawals> {
        let withdrawals: Withdrawals = serde_json::from_str(text)?;
        let is_sealed = text.rsplit_once(r#","seal":""#).is_some_and(|(body, checksum)| {
            let wanted = self.sealer.checksum(format!("{body}}}").as_bytes());
            checksum.strip_suffix(r#""}"#) == Some(&*wanted)
        });
        if is_sealed {
            return Ok(withdrawals);
        }
        let path = self.path.display();
        tracing::warn!(
            %path,
            "{path} was altered, or written with another private key or by an earlier version: the peers \
             that it keeps out stay out, and removals that waited for a confirmation may go on"
        );
        let Withdrawals { epoch, peers, lost, .. } = withdrawals;
        Ok(Withdrawals { epoch, peers, lost, ..Withdrawals::default() })
    }

    /// Writes them, if need be where room is reserved, and reserves as much again. A failure leaves the old file.
    fn write(&self, withdrawals: &Withdrawals) -> io::Result<()> {
        let text = serde_json::to_string(withdrawals)?;
        let checksum = self.sealer.checksum(text.as_bytes());
        let body = text.strip_suffix('}').ok_or(io::ErrorKind::InvalidData)?;
        let text = format!(r#"{body},"seal":"{checksum}"}}"#);
        let write = |file: &mut File| file.write_all(text.as_bytes());
        let written = replace(&self.path, write).or_else(|_| {
            // There may be none.
            drop(fs::remove_file(self.reserve_path()));
            replace(&self.path, write)
        });
        written.map_err(|(_, error)| error)?;
        self.reserve(text.len() + RESERVE_BYTES);
        Ok(())
    }

    fn reserve_path(&self) -> PathBuf {
        self.path.with_added_extension("reserve")
    }

    /// Reserves room for the next writing, in a file of its own: the next one is a new file. On a full disk
    /// there is none; the writing tells of that.
    fn reserve(&self, bytes: usize) {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(self.reserve_path());
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / 2);
        let reserve = |file: File| fallocate(&file, FallocateFlags::empty(), 0, bytes);
        if !file.is_ok_and(|file| reserve(file).is_ok()) {
            // A part of the room serves no writing, and takes it from the last good rows.
            drop(fs::remove_file(self.reserve_path()));
        }
    }

    /// Why they are not on disk.
    fn trouble(&self, error: &io::Error) -> String {
        format!(
            "{} cannot be written: {error}. After a restart, a failover of the database may let in who is \
             revoked from now on: make room there",
            self.path.display()
        )
    }
}

/// Writes them in a thread of its own, because a slow disk must not hold up a revocation. Of several that
/// wait only the newest are written.
#[derive(Debug)]
pub(super) struct Rememberer(mpsc::Sender<Order>);

enum Order {
    Write(Withdrawals),
    Answer(oneshot::Sender<()>),
}

// The thread lives as long as this does, so it is there.
impl Rememberer {
    /// `tells` hears after each writing why it failed; `None`: it did not.
    pub fn new(file: WithdrawalsFile, tells: impl Fn(Option<String>) + Send + 'static) -> Self {
        let (sender, orders) = mpsc::channel();
        std::thread::spawn(move || {
            let mut unwritten = None;
            while let Some(first) = next(&orders, unwritten.is_some()) {
                let mut answers = Vec::new();
                for order in first.into_iter().chain(orders.try_iter()) {
                    match order {
                        Order::Write(withdrawals) => unwritten = Some(withdrawals),
                        Order::Answer(answer) => answers.push(answer),
                    }
                }
                if let Some(newest) = &unwritten {
                    let trouble = file.write(newest).err().map(|error| file.trouble(&error));
                    unwritten = unwritten.filter(|_| trouble.is_some());
                    tells(trouble);
                }
                // The receivers may have stopped waiting.
                for answer in answers {
                    let _ = answer.send(());
                }
            }
        });
        Self(sender)
    }

    pub fn write(&self, withdrawals: Withdrawals) {
        let _ = self.0.send(Order::Write(withdrawals));
    }

    /// Answers once everything handed over before is on the disk, or cannot be written.
    pub fn written(&self) -> oneshot::Receiver<()> {
        let (answer, written) = oneshot::channel();
        let _ = self.0.send(Order::Answer(answer));
        written
    }
}

/// The next order, or none when it is time to write again what was not written; `None`: no more will come.
fn next(orders: &mpsc::Receiver<Order>, retries: bool) -> Option<Option<Order>> {
    if !retries {
        return orders.recv().ok().map(Some);
    }
    match orders.recv_timeout(RETRY) {
        Ok(order) => Some(Some(order)),
        Err(mpsc::RecvTimeoutError::Timeout) => Some(None),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;

    use super::super::cache::tests::Disk;
    use super::*;
    use crate::model::{PrivateKey, PublicKey};

    fn file(folder: &Path, key: u8) -> WithdrawalsFile {
        let key = PrivateKey::from_random([key; 32]);
        WithdrawalsFile::beside(&Cache::new(folder.join("last-good"), &key))
    }

    /// So many peers wait for an operator.
    fn held(peers: u8) -> Withdrawals {
        let key = |number| PublicKey::from_bytes([number; 32]).unwrap();
        let held = (1..=peers).map(|number| (key(number), SystemTime::UNIX_EPOCH)).collect();
        Withdrawals { epoch: Some("1/2".into()), held, ..Withdrawals::default() }
    }

    #[tokio::test]
    async fn withdrawals_come_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (deep, kept) = (folder.path().join("deep"), held(1));
        let ours = file(&deep, 1);
        assert_eq!(ours.load().unwrap(), Withdrawals::default());
        let rememberer = Rememberer::new(ours.clone(), |trouble| assert_eq!(trouble, None));
        rememberer.write(kept.clone());
        rememberer.written().await.unwrap();
        assert_eq!(ours.load().unwrap(), kept);
        // Another key, or another hand: it keeps peers out, and holds none.
        let without_held = Withdrawals { held: Default::default(), ..kept.clone() };
        assert_eq!(file(&deep, 2).load().unwrap(), without_held);
        let text = fs::read_to_string(&ours.path).unwrap();
        let (body, _) = text.rsplit_once(",\"seal\"").unwrap();
        fs::write(&ours.path, format!("{body}}}")).unwrap();
        assert_eq!(ours.load().unwrap(), without_held, "its checksum was taken away");
        for spoilt in [text[..text.len() / 2].to_owned(), "{".into()] {
            fs::write(&ours.path, spoilt).unwrap();
            ours.load().unwrap_err();
        }
        // As a version wrote it that kept no held peers, and no checksum.
        fs::write(&ours.path, r#"{"epoch":"1/2","peers":{},"lost":{}}"#).unwrap();
        assert_eq!(ours.load().unwrap(), without_held);
    }

    #[tokio::test]
    async fn full_disk_takes_withdrawals_where_room_is_reserved_and_tells_once_it_takes_no_more() {
        let disk = Disk::of(512 * 1024);
        let ours = file(disk.path(), 1);
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&told);
        let tells = move |trouble: Option<String>| hears.lock().unwrap().push(trouble.is_some());
        let rememberer = Rememberer::new(ours.clone(), tells);
        for (peers, troubles) in [(1, &[false][..]), (2, &[false, false])] {
            rememberer.write(held(peers));
            rememberer.written().await.unwrap();
            assert_eq!(ours.load().unwrap(), held(peers));
            assert_eq!(*told.lock().unwrap(), troubles);
            disk.fill();
        }
        rememberer.write(held(250));
        rememberer.written().await.unwrap();
        assert_eq!(ours.load().unwrap(), held(2), "the old file is whole");
        assert!(!ours.path.with_added_extension("new").exists(), "it would take the last room");
        disk.make_room();
        rememberer.written().await.unwrap();
        assert_eq!(ours.load().unwrap(), held(250), "it is written again");
        assert_eq!(told.lock().unwrap().last(), Some(&false));
    }
}
