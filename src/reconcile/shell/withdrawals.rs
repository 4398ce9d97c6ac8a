//! The withdrawals that were carried out and those that are held back, on disk: a restart forgets none of
//! them.
//!
//! They are a small file beside the last good rows, because they are needed at every start, and before
//! the first row is read.

use std::fs;
use std::io::{self, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::replace::replace;
use crate::reconcile::history::Withdrawals;

/// The file of withdrawals that belongs to the last good rows at `cache`.
pub(super) fn beside(cache: &Path) -> PathBuf {
    cache.with_added_extension("withdrawals")
}

impl Withdrawals {
    /// What an earlier run kept beside the last good rows at `cache`; nothing if there is no file, or if
    /// it cannot be read, which is said.
    #[must_use]
    pub fn load_beside(cache: &Path) -> Self {
        let path = beside(cache);
        load(&path).unwrap_or_else(|error| {
            let path = path.display();
            tracing::warn!(
                %path, %error,
                "{path} cannot be read, so a failover of the database may let in who was revoked \
                 before, and removals that waited may go on: {error}"
            );
            Self::default()
        })
    }
}

fn load(path: &Path) -> io::Result<Withdrawals> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Withdrawals::default()),
        text => serde_json::from_slice(&text?).map_err(io::Error::from),
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
    pub fn new(path: PathBuf) -> Self {
        let (sender, orders) = mpsc::channel();
        std::thread::spawn(move || {
            while let Ok(order) = orders.recv() {
                let (mut newest, mut answers) = (None, Vec::new());
                for order in iter::once(order).chain(orders.try_iter()) {
                    match order {
                        Order::Write(withdrawals) => newest = Some(withdrawals),
                        Order::Answer(answer) => answers.push(answer),
                    }
                }
                if let Some(Err(error)) = newest.map(|newest| write(&path, &newest)) {
                    let path = path.display();
                    tracing::warn!(%path, %error, "{path} was not written: {error}");
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

    /// Answers once everything handed over before is on the disk.
    pub fn written(&self) -> oneshot::Receiver<()> {
        let (answer, written) = oneshot::channel();
        let _ = self.0.send(Order::Answer(answer));
        written
    }
}

fn write(path: &Path, withdrawals: &Withdrawals) -> io::Result<()> {
    let text = serde_json::to_vec(withdrawals)?;
    replace(path, |file| file.write_all(&text)).map(drop).map_err(|(_, error)| error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use super::*;
    use crate::model::PublicKey;

    #[tokio::test]
    async fn withdrawals_come_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("deep/last-good"));
        assert_eq!(load(&path).unwrap(), Withdrawals::default());
        let held = [(PublicKey::from_bytes([1; 32]).unwrap(), SystemTime::UNIX_EPOCH)].into();
        let kept = Withdrawals { epoch: Some("1/2".into()), held, ..Withdrawals::default() };
        let rememberer = Rememberer::new(path.clone());
        rememberer.write(kept.clone());
        rememberer.written().await.unwrap();
        assert_eq!(load(&path).unwrap(), kept);
        fs::write(&path, "{").unwrap();
        load(&path).unwrap_err();
        // As a version wrote it that kept no held peers.
        fs::write(&path, r#"{"epoch":"1/2","peers":{},"lost":{}}"#).unwrap();
        assert_eq!(load(&path).unwrap(), Withdrawals { held: BTreeMap::new(), ..kept });
    }
}
