//! Decides which rows are good, and has a thread write them.

use std::path::Path;
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;

use super::writer::{Kept, Writer};
use super::{Cache, CacheError};
use crate::causes::causes;
use crate::model::{ChangedRows, SnapshotRows};
use crate::reconcile::event::{Keep, ReadAnswer};
use crate::reconcile::view::status::LastGoodStatus;

enum Order {
    Rows(Rows),
    Verdict(Keep),
    /// Answer once all before this is written.
    Written(oneshot::Sender<()>),
}

/// What one read returned.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
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
    fn keep(&mut self, keep: Keep) -> Vec<Rows> {
        let whole = matches!(self.new.first(), Some(Rows::Everything(_)));
        // A whole snapshot includes the rows that wait.
        let these = if keep == Keep::These && !whole { self.new.clone() } else { Vec::new() };
        if whole {
            self.held.clear();
        }
        for rows in self.new.drain(..) {
            hold(&mut self.held, rows);
        }
        if keep == Keep::All { std::mem::take(&mut self.held) } else { these }
    }
}

/// Holds each changed row once, however long rows wait.
fn hold(held: &mut Vec<Rows>, rows: Rows) {
    match (held.last_mut(), rows) {
        (Some(Rows::Changed(before)), Rows::Changed(later)) => {
            let former = Arc::unwrap_or_clone(std::mem::replace(before, Arc::clone(&later)));
            *before = Arc::new(former.followed_by(Arc::unwrap_or_clone(later)));
        }
        (_, rows) => held.push(rows),
    }
}

/// What became of the last good rows of this file.
fn told(path: &Path, kept: Result<Kept, CacheError>) -> LastGoodStatus {
    match kept {
        Ok(Kept::All) => LastGoodStatus::Kept,
        Ok(Kept::Withdrawals) => LastGoodStatus::Withdrawals {
            why: format!(
                "the disk of {} is full: of the last good rows only what they withdraw is kept: make \
                 room there",
                path.display()
            ),
        },
        Ok(Kept::Nothing) => LastGoodStatus::Unknown,
        Err(error @ CacheError::OutOfDate { .. }) => {
            LastGoodStatus::OutOfDate { why: causes(&error) }
        }
        Err(error) => LastGoodStatus::Missing {
            why: format!(
                "the last good rows are not kept: {}; make room, or correct cache.file, else a boot \
                 without the database starts with no rows",
                causes(&error)
            ),
        },
    }
}

/// Hands rows to the cache's thread, in order, and returns at once.
#[derive(Debug, Clone)]
pub struct Keeper(mpsc::Sender<Order>);

// The thread lives as long as a keeper does, so it is there.
impl Keeper {
    /// Starts the thread: a slow disk must not hold up a revocation. `tells` hears what became of each
    /// write.
    #[must_use]
    pub fn start(cache: Cache, tells: impl Fn(LastGoodStatus) + Send + 'static) -> Self {
        let (sender, incoming) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            let path = cache.path().to_owned();
            let (mut waiting, mut writer) = (Waiting::default(), Writer::new(cache));
            for order in incoming {
                let good = match order {
                    Order::Rows(rows) => {
                        waiting.push(rows);
                        continue;
                    }
                    Order::Verdict(keep) => waiting.keep(keep),
                    Order::Written(answer) => {
                        // The receiver may have stopped waiting.
                        let _ = answer.send(());
                        continue;
                    }
                };
                for rows in good {
                    let kept = match rows {
                        Rows::Everything(rows) => writer.replace(&rows),
                        Rows::Changed(rows) => writer.append(&rows),
                    };
                    tells(told(&path, kept));
                }
            }
        });
        Self(sender)
    }

    /// Hands over what a read returned. The caller hands it to the machine at the same moment, so that
    /// no verdict on earlier rows counts for these.
    pub fn push(&self, rows: Rows) {
        let _ = self.0.send(Order::Rows(rows));
    }

    /// Says whether the rows handed over so far are good.
    pub fn keep(&self, keep: Keep) {
        let _ = self.0.send(Order::Verdict(keep));
    }

    /// Answers once everything handed over before is on the disk.
    pub fn written(&self) -> oneshot::Receiver<()> {
        let (answer, written) = oneshot::channel();
        let _ = self.0.send(Order::Written(answer));
        written
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{changed, snapshot};
    use super::*;
    use std::time::SystemTime;

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
        assert_eq!(waiting.keep(Keep::All), [everything()]);
        waiting.push(change(1));
        assert_eq!(waiting.keep(Keep::Later), []);
        waiting.push(change(2));
        assert_eq!(waiting.keep(Keep::These), [change(2)], "a small change meanwhile");
        waiting.push(everything());
        assert_eq!(waiting.keep(Keep::Later), [], "the emptied table is held back");
        waiting.push(everything());
        assert_eq!(waiting.keep(Keep::These), [], "and so it is when it is read again");
        waiting.push(change(3));
        assert_eq!(waiting.keep(Keep::All), [everything(), change(3)]);
        assert_eq!(waiting.keep(Keep::All), []);
        waiting.push(everything());
        waiting.keep(Keep::Later);
        for secs in 4..100 {
            waiting.push(change(secs));
            assert_eq!(waiting.keep(Keep::These), [change(secs)]);
        }
        assert_eq!(waiting.keep(Keep::All), [everything(), change(99)], "each row once");
    }
}
