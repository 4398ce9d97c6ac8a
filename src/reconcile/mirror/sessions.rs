//! The sessions in the reading.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use super::Mirror;
use super::work::Trust;
use crate::model::PublicKey;
use crate::reconcile::clock::Clocks;
use crate::reconcile::session::is_alive;

impl Mirror {
    /// The peers with a live session, if the kernel was just read and no newer reading is wanted.
    pub fn just_connected(&self, now: Instant) -> Option<BTreeSet<PublicKey>> {
        if self.trust != Trust::Fresh || self.wants_reading() {
            return None;
        }
        let steady = self.handshakes.clock(now);
        let alive = |key: &&PublicKey| {
            let traffic = self.traffic.get(*key);
            traffic.and_then(|it| it.last_handshake).is_some_and(|at| is_alive(at, steady))
        };
        let observed = self.observed();
        Some(observed.iter().flat_map(|it| it.peers.keys()).filter(alive).copied().collect())
    }

    /// The peers in the kernel. Any of them may have connected since the reading: another one is wanted,
    /// which shows their sessions.
    pub fn recheck_sessions(&mut self, why: &str) -> Option<BTreeSet<PublicKey>> {
        self.want_reading_for(why);
        if self.trust == Trust::Fresh {
            self.trust = Trust::Kept;
        }
        self.observed().map(|observed| observed.peers.keys().copied().collect())
    }

    /// This moment by the clocks that count for sessions.
    pub fn clocks(&self, database: Option<SystemTime>, now: Instant) -> Clocks {
        Clocks { instant: now, steady: self.handshakes.clock(now), database }
    }
}
