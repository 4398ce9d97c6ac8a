//! The observed state, shared with its readers while the kernel is being changed.

use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

use crate::model::ObservedState;
use crate::plan::Step;

/// What the kernel is known to hold. Clones share it: while a plan is applied it follows each
/// acknowledged step, so that who reads it meanwhile sees how far that is. Sharing costs nothing,
/// however many peers there are.
#[derive(Debug, Clone, Default)]
pub struct SharedObserved(Arc<RwLock<ObservedState>>);

impl SharedObserved {
    /// The present state; it does not change while the guard is held. A reader that holds one may take
    /// another: a waiting writer does not come in between.
    pub fn read(&self) -> RwLockReadGuard<'_, ObservedState> {
        self.0.read_recursive()
    }

    /// Updates it with an acknowledged `step`.
    pub fn apply(&self, step: &Step) {
        self.0.write().apply(step);
    }
}

impl From<ObservedState> for SharedObserved {
    fn from(state: ObservedState) -> Self {
        Self(Arc::new(RwLock::new(state)))
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
        while shared.0.try_read().is_some() {
            thread::yield_now();
        }
        let again = shared.read();
        assert_eq!(again.peers, first.peers);
        drop((first, again));
        applied.join().unwrap();
    }
}
