//! The state that the loop shares with the job that changes the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard};

use crate::model::{HostRouting, ObservedState};
use crate::plan::Step;

/// The known state of the kernel. Clones share it: while a plan is applied it follows each acknowledged step,
/// so that readers see the progress. Sharing costs nothing, however many peers there are.
#[derive(Debug, Clone, Default)]
pub struct SharedObserved {
    state: Arc<RwLock<ObservedState>>,
    /// After so many milliseconds the job stops; 0: when it has applied everything.
    stops_after_millis: Arc<AtomicU64>,
}

impl SharedObserved {
    /// The present state; it does not change while the guard is held. A reader that holds one may take
    /// another: a waiting writer does not come in between.
    pub fn read(&self) -> RwLockReadGuard<'_, ObservedState> {
        self.state.read_recursive()
    }

    /// Updates it with an acknowledged `step`.
    pub fn apply(&self, step: &Step) {
        self.state.write().apply(step);
    }

    /// Updates it with the host's routing as it was just read.
    pub fn set_routing(&self, routing: HostRouting) {
        self.state.write().routing = routing;
    }

    /// A job begins, which nothing interrupts yet.
    pub fn begin(&self) {
        self.stops_after_millis.store(0, Ordering::Relaxed);
    }

    /// Lets the job under way stop between two steps once it has lasted `at_least` so long: a newer plan
    /// waits, which may withdraw something.
    pub fn interrupt(&self, at_least: Duration) {
        let millis = u64::try_from(at_least.as_millis()).unwrap_or(u64::MAX).max(1);
        self.stops_after_millis.store(millis, Ordering::Relaxed);
    }

    /// How long the job under way must have lasted before it stops. `None`: it continues to its end.
    #[must_use]
    pub fn stops_after(&self) -> Option<Duration> {
        let millis = self.stops_after_millis.load(Ordering::Relaxed);
        (millis > 0).then(|| Duration::from_millis(millis))
    }
}

impl From<ObservedState> for SharedObserved {
    fn from(state: ObservedState) -> Self {
        Self { state: Arc::new(RwLock::new(state)), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::model::PublicKey;

    #[test]
    fn reader_may_read_again_while_a_writer_waits() {
        let shared = SharedObserved::default();
        let first = shared.read();
        let (writer, step) =
            (shared.clone(), Step::RemovePeer { key: PublicKey::from_bytes([1; 32]).unwrap() });
        let applied = thread::spawn(move || writer.apply(&step));
        while shared.state.try_read().is_some() {
            thread::yield_now();
        }
        let again = shared.read();
        assert_eq!(again.peers, first.peers);
        drop((first, again));
        applied.join().unwrap();
    }
}
