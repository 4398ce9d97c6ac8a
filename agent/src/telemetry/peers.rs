//! Series for each peer, where `metrics.per_peer` asks for them. Pure.

use gatepost::reconcile::status::{PeerState, PeerStatus, Timestamp};

use super::text::{Family, head, sample};

/// All of them.
pub const FAMILIES: [Family; 3] = [
    ("gatepost_peer_rx_bytes_total", "counter", "Bytes received from the peer since it was added"),
    ("gatepost_peer_tx_bytes_total", "counter", "Bytes sent to the peer since it was added"),
    (
        "gatepost_peer_last_handshake_timestamp_seconds",
        "gauge",
        "Time of the peer's last handshake; 0 if never",
    ),
];

/// Appends the series of the peers that the kernel holds.
pub fn append(out: &mut String, peers: &[PeerStatus]) {
    let is_present =
        |peer: &&PeerStatus| matches!(peer.state, PeerState::InKernel | PeerState::Held { .. });
    let values: [fn(&PeerStatus) -> String; 3] = [
        |peer| peer.rx_bytes.to_string(),
        |peer| peer.tx_bytes.to_string(),
        |peer| peer.last_handshake_at.map_or(0.0, Timestamp::unix_seconds).to_string(),
    ];
    for (family, value) in FAMILIES.into_iter().zip(values) {
        head(out, family);
        for peer in peers.iter().filter(is_present) {
            // Names may be shared, and a scrape with two equal series fails as a whole.
            let labels = [
                ("user", &*peer.user),
                ("device", &*peer.device),
                ("public_key", &*peer.public_key),
            ];
            sample(out, family, "", &labels, value(peer));
        }
    }
}
