//! A reading that is shared with whoever looks while the kernel is being changed.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::model::ObservedState;
use crate::plan::Step;

/// What the kernel is known to hold. Clones share it: while a plan is applied it follows each
/// acknowledged step, so that who reads it meanwhile sees how far that is. Sharing costs nothing,
/// however many peers there are.
#[derive(Debug, Clone, Default)]
pub struct SharedObserved(Arc<RwLock<ObservedState>>);

impl SharedObserved {
    /// As it is now; it stands still as long as the answer is held.
    pub fn read(&self) -> RwLockReadGuard<'_, ObservedState> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it what it is after an acknowledged `step`.
    pub fn obey(&self, step: &Step) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).obey(step);
    }
}

impl From<ObservedState> for SharedObserved {
    fn from(state: ObservedState) -> Self {
        Self(Arc::new(RwLock::new(state)))
    }
}
