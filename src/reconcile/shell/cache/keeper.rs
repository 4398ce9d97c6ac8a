//! Decides which rows are good, and has a thread write them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

use super::writer::{Kept, Writer};
use super::{Cache, CacheError, Rows};
use crate::causes::causes;
use crate::model::PublicKey;
use crate::reconcile::clock;
use crate::reconcile::event::Keep;
use crate::reconcile::view::status::LastGoodStatus;

enum Order {
    /// With the time for which the host had been up when they came.
    Rows(Rows, Duration),
    Verdict(Keep, BTreeSet<PublicKey>),
    /// Answer once all before this is written.
    Written(oneshot::Sender<()>),
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

/// Rows that are to be written.
#[derive(Debug, PartialEq)]
enum Good {
    Whole(Rows),
    /// Only what does not concern the peers whose removal waits.
    AroundHeld(Rows),
}

impl Waiting {
    fn push(&mut self, rows: Rows) {
        if matches!(rows, Rows::Everything(_)) {
            self.new.clear();
        }
        self.new.push(rows);
    }

    /// Returns the rows that this verdict makes good.
    fn keep(&mut self, keep: Keep) -> Vec<Good> {
        let whole = matches!(self.new.first(), Some(Rows::Everything(_)));
        let new = self.new.iter().cloned();
        let these = match keep {
            Keep::All => Vec::new(),
            Keep::These if !whole => new.map(Good::Whole).collect(),
            // A whole snapshot includes the rows that wait.
            Keep::These | Keep::Later => new.map(Good::AroundHeld).collect(),
        };
        if whole {
            self.held.clear();
        }
        for rows in self.new.drain(..) {
            hold(&mut self.held, rows);
        }
        if keep != Keep::All {
            return these;
        }
        std::mem::take(&mut self.held).into_iter().map(Good::Whole).collect()
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

/// The state of the last good rows in this file, which was told as `former` last.
fn told(
    path: &Path,
    kept: Result<Kept, CacheError>,
    former: Option<LastGoodStatus>,
) -> LastGoodStatus {
    match kept {
        Ok(Kept::All) => LastGoodStatus::Kept,
        Ok(Kept::Withdrawals) => LastGoodStatus::Withdrawals {
            why: format!(
                "the disk of {} is full: only the withdrawals in the last good rows are kept: make \
                 room there",
                path.display()
            ),
        },
        Ok(Kept::Nothing) => match former {
            Some(missing @ LastGoodStatus::Missing { .. }) => missing,
            _ => LastGoodStatus::Missing {
                why: format!(
                    "there are no last good rows in {} until the database is read as a whole",
                    path.display()
                ),
            },
        },
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
            let (mut moment, mut former) = (None, None);
            for order in incoming {
                let (good, held) = match order {
                    Order::Rows(rows, up) => {
                        if let Rows::Everything(rows) = &rows {
                            moment = Some((rows.taken_at, up));
                        }
                        waiting.push(rows);
                        continue;
                    }
                    Order::Verdict(keep, held) => {
                        // Rows that were refused may be another server's, with another clock.
                        if let Some((database, up)) = moment.take() {
                            writer.keep_moment(database, up);
                        }
                        if keep == Keep::All {
                            writer.release();
                        }
                        (waiting.keep(keep), held)
                    }
                    Order::Written(answer) => {
                        // The receiver may have stopped waiting.
                        let _ = answer.send(());
                        continue;
                    }
                };
                for rows in good {
                    let kept = match rows {
                        Good::Whole(Rows::Everything(rows)) => Some(writer.replace(&rows)),
                        Good::Whole(Rows::Changed(rows)) => Some(writer.append_around(&rows)),
                        Good::AroundHeld(rows) => writer.write_around(&rows, &held),
                    };
                    if let Some(kept) = kept {
                        let kept = told(&path, kept, former.take());
                        former = Some(kept.clone());
                        tells(kept);
                    }
                }
            }
        });
        Self(sender)
    }

    /// Hands over what a read returned. The caller hands it to the machine at the same moment, so that
    /// no verdict on earlier rows counts for these.
    pub fn push(&self, rows: Rows) {
        let _ = self.0.send(Order::Rows(rows, clock::up()));
    }

    /// Says whether the rows handed over so far are good. `held`: the peers whose removal waits, where rows
    /// are good but for these.
    pub fn keep(&self, keep: Keep, held: BTreeSet<PublicKey>) {
        let _ = self.0.send(Order::Verdict(keep, held));
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
    use super::super::tests::{Disk, changed, private_key, snapshot};
    use super::*;
    use crate::model::ChangedRows;
    use std::time::SystemTime;

    #[test]
    fn rows_are_kept_when_they_are_known_to_be_good() {
        let everything = || Rows::Everything(Arc::new(snapshot()));
        let change = |secs| {
            let taken_at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(secs);
            Rows::Changed(Arc::new(ChangedRows { taken_at, ..changed() }))
        };
        let whole = |rows: &[Rows]| rows.iter().cloned().map(Good::Whole).collect::<Vec<_>>();
        let around = |rows: &[Rows]| rows.iter().cloned().map(Good::AroundHeld).collect::<Vec<_>>();
        let mut waiting = Waiting::default();
        // No state could be built from the first snapshot, so it got no verdict.
        waiting.push(everything());
        waiting.push(everything());
        assert_eq!(waiting.keep(Keep::All), whole(&[everything()]));
        waiting.push(change(1));
        assert_eq!(waiting.keep(Keep::Later), around(&[change(1)]));
        waiting.push(change(2));
        assert_eq!(waiting.keep(Keep::These), whole(&[change(2)]), "a small change meanwhile");
        waiting.push(everything());
        let emptied = waiting.keep(Keep::Later);
        assert_eq!(emptied, around(&[everything()]), "the emptied table is held back");
        waiting.push(everything());
        assert_eq!(waiting.keep(Keep::These), around(&[everything()]), "and when it is read again");
        waiting.push(change(3));
        assert_eq!(waiting.keep(Keep::All), whole(&[everything(), change(3)]));
        assert_eq!(waiting.keep(Keep::All), []);
        waiting.push(everything());
        waiting.keep(Keep::Later);
        for secs in 4..100 {
            waiting.push(change(secs));
            assert_eq!(waiting.keep(Keep::These), whole(&[change(secs)]));
        }
        assert_eq!(waiting.keep(Keep::All), whole(&[everything(), change(99)]), "each row once");
    }

    #[test]
    fn rows_that_are_not_on_disk_are_not_said_to_be_there_after_a_later_change() {
        let disk = Disk::of(256 * 1024);
        let cache = Cache::new(disk.path().join("last-good"), &private_key(1));
        let (tells, told) = mpsc::channel();
        let keeper = Keeper::start(cache.clone(), move |kept| tells.send(kept).unwrap());
        let keep = |rows| {
            keeper.push(rows);
            keeper.keep(Keep::All, BTreeSet::new());
            told.recv().unwrap()
        };
        let everything = || Rows::Everything(Arc::new(snapshot()));
        let change = || Rows::Changed(Arc::new(changed()));
        assert_eq!(keep(everything()), LastGoodStatus::Kept);
        disk.fill();
        let mut later = std::iter::repeat_with(|| keep(change()));
        let missing = later.find(|kept| matches!(kept, LastGoodStatus::Missing { .. })).unwrap();
        disk.make_room();
        assert_eq!(keep(change()), missing, "there is no file");
        assert!(!cache.path().exists());
        assert_eq!(keep(everything()), LastGoodStatus::Kept);
    }
}
