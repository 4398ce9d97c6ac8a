//! How many sessions an agent uses for queries at the same time: fewer for a while after the server
//! refused one for want of room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One seat for each session. The clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    /// Those that may be taken now or later, without waiting for the server to have room.
    usable: Arc<AtomicUsize>,
}

/// The right to one session, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    permit: OwnedSemaphorePermit,
    usable: Arc<AtomicUsize>,
}

impl Seats {
    pub fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), usable: Arc::new(AtomicUsize::new(count)) }
    }

    /// Waits for a free seat. `None`: there was none within this time.
    pub async fn take(&self, within: Duration) -> Option<Seat> {
        let permit = tokio::time::timeout(within, self.free.clone().acquire_owned()).await;
        // The semaphore is never closed.
        let permit = permit.ok()?.ok()?;
        Some(Seat { permit, usable: self.usable.clone() })
    }
}

impl Seat {
    /// Leaves the seat empty for this time. Returns whether another seat may be waited for: the last one is
    /// not left.
    pub fn leave(self, empty_for: Duration) -> bool {
        let left = |usable: usize| (usable > 1).then(|| usable - 1);
        if self.usable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err() {
            return false;
        }
        tokio::spawn(async move {
            tokio::time::sleep(empty_for).await;
            self.usable.fetch_add(1, Ordering::Relaxed);
            drop(self.permit);
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn seat_that_the_server_refused_is_taken_again_later_and_the_last_one_is_never_left() {
        const NOW: Duration = Duration::ZERO;
        const AT_LENGTH: Duration = Duration::from_secs(60);
        let seats = Seats::new(2);
        let (first, second) = (seats.take(NOW).await.unwrap(), seats.take(NOW).await.unwrap());
        assert!(second.leave(Duration::from_millis(100)));
        assert!(!first.leave(AT_LENGTH), "the last one");
        let first = seats.take(NOW).await.unwrap();
        assert!(seats.take(NOW).await.is_none());
        let second = seats.take(AT_LENGTH).await.unwrap();
        assert!(second.leave(AT_LENGTH));
        assert!(seats.take(NOW).await.is_none());
        drop(first);
        assert!(seats.take(NOW).await.is_some());
    }
}
