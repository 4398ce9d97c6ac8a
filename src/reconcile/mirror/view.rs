//! The view of the kernel's side.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use parking_lot::RwLockReadGuard;

use super::Mirror;
use crate::dataplane::BackendInUse;
use crate::model::{ObservedState, PublicKey, Traffic};
use crate::reconcile::volume::Volume;

/// The view for readers.
#[derive(Debug)]
pub(in crate::reconcile) struct MirrorView<'a> {
    pub observed: Option<RwLockReadGuard<'a, ObservedState>>,
    pub backend: Option<BackendInUse>,
    pub table_owned: bool,
    pub traffic: &'a BTreeMap<PublicKey, Traffic>,
    /// Peers with a live session when it was read.
    pub connected: usize,
    /// When it was read, by this host's clock.
    pub read_at: Option<SystemTime>,
    pub error: Option<&'a str>,
    pub reading_wanted: bool,
    pub rests_until: Option<Instant>,
    pub volume: Volume,
    pub readings: u64,
}

impl Mirror {
    pub fn view(&self) -> MirrorView<'_> {
        MirrorView {
            observed: self.observed(),
            backend: self.backend,
            table_owned: self.table_owned,
            traffic: &self.traffic,
            connected: self.connected,
            read_at: self.read_at,
            error: self.error.as_deref(),
            reading_wanted: self.wants_reading(),
            rests_until: self.rests_until,
            volume: self.volume,
            readings: self.readings,
        }
    }
}
