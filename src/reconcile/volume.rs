//! How much peers sent and received since the agent started, also those that are gone.

use std::collections::BTreeMap;

use crate::model::{PublicKey, Traffic};

/// Figures that only grow. What a peer sent or got between the last complete reading and its removal
/// is not in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    /// Bytes that the gateway received from peers.
    pub rx_bytes: u64,
    /// Bytes that the gateway sent to peers.
    pub tx_bytes: u64,
}

impl Volume {
    /// Adds what was counted between two complete readings. A counter that is smaller than before began
    /// anew with its peer.
    pub fn add(
        &mut self,
        before: &BTreeMap<PublicKey, Traffic>,
        now: &BTreeMap<PublicKey, Traffic>,
    ) {
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        for (key, now) in now {
            let before = before.get(key).copied().unwrap_or_default();
            self.rx_bytes = self.rx_bytes.saturating_add(more(now.rx_bytes, before.rx_bytes));
            self.tx_bytes = self.tx_bytes.saturating_add(more(now.tx_bytes, before.tx_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_grows_when_peers_go_or_come_anew() {
        let key = |number| PublicKey::from_bytes([number; 32]).unwrap();
        let traffic = |rx_bytes, tx_bytes| Traffic { rx_bytes, tx_bytes, ..Traffic::default() };
        let readings = [
            BTreeMap::from([(key(1), traffic(100, 1))]),
            BTreeMap::from([(key(1), traffic(150, 2)), (key(2), traffic(7, 0))]),
            BTreeMap::from([(key(2), traffic(9, 4))]),
            BTreeMap::from([(key(1), traffic(5, 5)), (key(2), traffic(3, 4))]),
        ];
        let mut volume = Volume::default();
        let mut sums = Vec::new();
        for pair in readings.windows(2) {
            volume.add(&pair[0], &pair[1]);
            sums.push((volume.rx_bytes, volume.tx_bytes));
        }
        assert_eq!(sums, [(57, 1), (59, 5), (67, 10)]);
    }
}
