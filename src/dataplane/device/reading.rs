//! The answer of a userspace device to `get=1`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use gotatun::device::configure::{DeviceRead, PeerStats};
use nix::time::{ClockId, clock_gettime};

use super::transport::Transports;
use crate::dataplane::wireguard::hex;
use crate::model::PublicKey;

/// Two readings of one handshake's age differ by less.
const AGE_TOLERANCE: Duration = Duration::from_secs(1);

/// The last handshake of each peer. The engine forgets one when its session has expired, and the
/// protocol does not.
#[derive(Default)]
pub(super) struct Handshakes(BTreeMap<PublicKey, Handshake>);

#[derive(Debug, Clone, Copy)]
struct Handshake {
    since_boot: Duration,
    at: SystemTime,
}

impl Handshakes {
    /// Takes note of what the engine says.
    pub fn note(&mut self, peers: &[PeerStats]) {
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        let (Ok(since_boot), now) = (since_boot, SystemTime::now()) else { return };
        for peer in peers {
            let Ok(key) = PublicKey::from_bytes(peer.peer.public_key.to_bytes()) else { continue };
            let Some(age) = peer.stats.last_handshake else { continue };
            let seen = Handshake {
                since_boot: since_boot.saturating_sub(age),
                at: now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
            };
            let known = self.0.entry(key).or_insert(seen);
            // One handshake keeps the time at which it was first seen, whatever becomes of the clock.
            if seen.since_boot > known.since_boot + AGE_TOLERANCE {
                *known = seen;
            }
        }
    }

    /// Forgets those of peers that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&PublicKey) -> bool) {
        self.0.retain(|key, _| is_there(key));
    }

    /// Since 1970; zero: none.
    fn of(&self, PeerStats { peer, .. }: &PeerStats) -> Duration {
        let key = PublicKey::from_bytes(peer.public_key.to_bytes()).ok();
        let at = key.and_then(|key| self.0.get(&key));
        at.and_then(|it| it.at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default()
    }
}

/// Writes what is not of a peer.
pub(super) fn describe(device: &DeviceRead<'_, Transports>, port: u16, text: &mut String) {
    if let Some(key) = device.private_key() {
        hex(text, "private_key", key.as_bytes());
    }
    // Until there is a key, the engine does not know of the port.
    let port = if port == 0 { device.listen_port() } else { port };
    let _ = writeln!(text, "listen_port={port}");
    if let Some(fwmark) = device.fwmark().filter(|fwmark| *fwmark != 0) {
        let _ = writeln!(text, "fwmark={fwmark}");
    }
}

/// Writes what is of a peer.
pub(super) fn describe_peer(stats: &PeerStats, handshakes: &Handshakes, text: &mut String) {
    let at = handshakes.of(stats);
    let PeerStats { peer, stats, .. } = stats;
    hex(text, "public_key", peer.public_key.as_bytes());
    if let Some(preshared_key) = &peer.preshared_key {
        hex(text, "preshared_key", preshared_key);
    }
    let _ = writeln!(text, "protocol_version=1");
    if let Some(endpoint) = peer.endpoint {
        let _ = writeln!(text, "endpoint={endpoint}");
    }
    let _ = writeln!(text, "last_handshake_time_sec={}", at.as_secs());
    let _ = writeln!(text, "last_handshake_time_nsec={}", at.subsec_nanos());
    let _ = writeln!(text, "tx_bytes={}\nrx_bytes={}", stats.tx_bytes, stats.rx_bytes);
    let keepalive_secs = peer.keepalive.unwrap_or(0);
    let _ = writeln!(text, "persistent_keepalive_interval={keepalive_secs}");
    for prefix in &peer.allowed_ips {
        let _ = writeln!(text, "allowed_ip={prefix}");
    }
}
