//! The text that userspace devices speak (<https://www.wireguard.com/xplatform/>). Pure.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use defguard_wireguard_rs::key::Key as UapiKey;
use defguard_wireguard_rs::net::IpAddrMask;
use defguard_wireguard_rs::peer::Peer as UapiPeer;
use zeroize::Zeroizing;

use super::DeviceReading;
use crate::model::{AllowedIps, Peer, PresharedKey, PrivateKey, PublicKey, Traffic};

/// A text that may hold keys: wiped when dropped.
pub(super) type Secret = Zeroizing<String>;

/// Why an answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    #[error("it answered with errno {0}")]
    Refused(i32),
    #[error("its line {line} ({key}) cannot be read")]
    Malformed { line: usize, key: String },
}

/// A handshake before this, as a time since 1970, can only be an age: devices exist that give the
/// age where the protocol wants the time.
const EARLIEST_HANDSHAKE: Duration = Duration::from_secs(1_000_000_000);

/// Reads the answer to `get=1`.
pub(crate) fn parse(answer: &str, now: SystemTime) -> Result<DeviceReading, UapiError> {
    let mut reading = DeviceReading::default();
    let mut open: Option<OpenPeer> = None;
    for (index, line) in answer.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let malformed = || UapiError::Malformed { line: index + 1, key: key.to_owned() };
        match (key, &mut open) {
            ("errno", _) => match value.parse().map_err(|_| malformed())? {
                0 => {}
                errno => return Err(UapiError::Refused(errno)),
            },
            ("private_key", None) => {
                let key = unhex(value).ok_or_else(malformed)?;
                let key = PrivateKey::from_bytes(*key).ok();
                reading.public_key = key.map(|key| key.public_key());
            }
            ("listen_port", None) => {
                reading.listen_port = value.parse().map_err(|_| malformed())?
            }
            ("fwmark", None) => reading.fwmark = value.parse().map_err(|_| malformed())?,
            ("public_key", _) => {
                let bytes = unhex(value).ok_or_else(malformed)?;
                // A peer whose key is all zero can never shake hands; its lines are left out.
                let next = PublicKey::from_bytes(*bytes).ok().map(OpenPeer::new);
                if let Some(peer) = std::mem::replace(&mut open, next) {
                    peer.close(&mut reading, now);
                }
            }
            (_, Some(peer)) => peer.set(key, value).ok_or_else(malformed)?,
            _ => {}
        }
    }
    if let Some(peer) = open {
        peer.close(&mut reading, now);
    }
    Ok(reading)
}

/// The request for a device with its peers.
pub(super) const GET: &str = "get=1\n\n";
/// A line of our own after `get=1`: leave the peers out. A device of before does not read it.
pub(crate) const NO_PEERS: &str = "peers=none";
/// The request for a device without its peers.
pub(super) const GET_BUT_PEERS: &str = "get=1\npeers=none\n\n";

/// A line of our own in a peer's part of `set=1`: begin a handshake with it at once.
pub(crate) const OPEN_SESSION: &str = "open_session";

/// A `set=1` that makes a peer, or changes the one that came to be since the device was read. With
/// `open_session`, which a device of the last version does not understand, its session is opened at the
/// endpoint, if that is known.
pub(super) fn addition(
    key: &PublicKey,
    peer: &Peer,
    endpoint: Option<SocketAddr>,
    open_session: bool,
) -> Secret {
    let mut text = whole(key, peer, endpoint, peer.keepalive_secs != 0);
    if let Some(preshared_key) = &peer.preshared_key {
        hex(&mut text, "preshared_key", preshared_key.expose_bytes());
    }
    if open_session && endpoint.is_some() {
        let _ = writeln!(text, "{OPEN_SESSION}=true");
    }
    text
}

/// A `set=1` that leaves a peer which is there these prefixes.
pub(super) fn narrowing(key: &PublicKey, allowed_ips: &AllowedIps) -> Secret {
    let peer = Peer { allowed_ips: allowed_ips.clone(), ..Peer::default() };
    let mut text = whole(key, &peer, None, false);
    text.push_str("update_only=true\n");
    text
}

/// A `set=1` that gives a peer which is there more prefixes.
pub(super) fn widening(key: &PublicKey, allowed_ips: &AllowedIps) -> Secret {
    let mut text = of_peer_there(key, 64 * allowed_ips.iter().count());
    for prefix in allowed_ips.iter() {
        let _ = writeln!(text, "allowed_ip={prefix}");
    }
    text
}

/// A `set=1` that gives a peer which is there this preshared key, or none.
pub(super) fn preshared_key(key: &PublicKey, preshared_key: Option<&PresharedKey>) -> Secret {
    let mut text = of_peer_there(key, 96);
    // All zero is how the protocol says "none".
    hex(&mut text, "preshared_key", preshared_key.map_or(&[0; 32], |key| key.expose_bytes()));
    text
}

/// A `set=1` that gives a peer which is there this keepalive; 0: none.
pub(super) fn keepalive(key: &PublicKey, keepalive_secs: u16) -> Secret {
    let mut text = of_peer_there(key, 64);
    let _ = writeln!(text, "persistent_keepalive_interval={keepalive_secs}");
    text
}

/// Names a peer that is there. Nothing secret is left behind in memory by growing.
fn of_peer_there(key: &PublicKey, more_bytes: usize) -> Secret {
    let mut text = Secret::new(String::with_capacity(128 + more_bytes));
    hex(&mut text, "public_key", key.as_bytes());
    text.push_str("update_only=true\n");
    text
}

/// A peer with all that is no secret.
fn whole(key: &PublicKey, peer: &Peer, endpoint: Option<SocketAddr>, keepalive: bool) -> Secret {
    let mut lines = UapiPeer::new(UapiKey::new(*key.as_bytes()));
    lines.endpoint = endpoint;
    lines.persistent_keepalive_interval = keepalive.then_some(peer.keepalive_secs);
    let prefix = |prefix: ipnet::IpNet| IpAddrMask::new(prefix.addr(), prefix.prefix_len());
    lines.allowed_ips = peer.allowed_ips.iter().map(prefix).collect();
    let lines = lines.as_uapi_update();
    // Nothing secret is left behind in memory by growing.
    let mut text = Secret::new(String::with_capacity(lines.len() + 256));
    text.push_str(&lines);
    text
}

/// A `set=1` that removes a peer.
pub(super) fn removal(key: &PublicKey) -> String {
    UapiPeer::new(UapiKey::new(*key.as_bytes())).as_uapi_remove()
}

/// A `set=1` that sets the private key.
pub(super) fn private_key(key: &PrivateKey) -> Secret {
    let mut text = Secret::new(String::with_capacity(96));
    hex(&mut text, "private_key", key.expose_bytes());
    text
}

struct OpenPeer {
    key: PublicKey,
    peer: Peer,
    traffic: Traffic,
    prefixes: Vec<ipnet::IpNet>,
    handshake: Duration,
}

impl OpenPeer {
    fn new(key: PublicKey) -> Self {
        Self {
            key,
            peer: Peer::default(),
            traffic: Traffic::default(),
            prefixes: Vec::new(),
            handshake: Duration::ZERO,
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "preshared_key" => {
                self.peer.preshared_key = PresharedKey::from_bytes(*unhex(value)?).ok();
            }
            "persistent_keepalive_interval" => self.peer.keepalive_secs = value.parse().ok()?,
            "endpoint" => self.traffic.endpoint = Some(value.parse().ok()?),
            "allowed_ip" => self.prefixes.push(value.parse().ok()?),
            "last_handshake_time_sec" => {
                self.add_handshake(Duration::from_secs(value.parse().ok()?))?;
            }
            "last_handshake_time_nsec" => {
                self.add_handshake(Duration::from_nanos(value.parse().ok()?))?;
            }
            "rx_bytes" => self.traffic.rx_bytes = value.parse().ok()?,
            "tx_bytes" => self.traffic.tx_bytes = value.parse().ok()?,
            _ => {}
        }
        Some(())
    }

    fn add_handshake(&mut self, part: Duration) -> Option<()> {
        self.handshake = self.handshake.checked_add(part)?;
        Some(())
    }

    fn close(mut self, reading: &mut DeviceReading, now: SystemTime) {
        self.peer.allowed_ips = self.prefixes.into_iter().collect();
        self.traffic.last_handshake = match self.handshake {
            Duration::ZERO => None,
            age if age < EARLIEST_HANDSHAKE => now.checked_sub(age),
            since_epoch => SystemTime::UNIX_EPOCH.checked_add(since_epoch),
        };
        reading.peers.insert(self.key, self.peer);
        reading.traffic.insert(self.key, self.traffic);
    }
}

/// Writes a line with a key.
pub(crate) fn hex(text: &mut String, name: &str, bytes: &[u8; 32]) {
    text.push_str(name);
    text.push('=');
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
}

/// Reads a key.
pub(crate) fn unhex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(handshake: &str) -> String {
        let (one, two) = ("01".repeat(32), "02".repeat(32));
        format!(
            "listen_port=51820\nfwmark=7\npublic_key={one}\npreshared_key={two}\n\
             endpoint=[::1]:9\nallowed_ip=10.0.0.2/32\nallowed_ip=fd00::2/128\n\
             last_handshake_time_sec={handshake}\nlast_handshake_time_nsec=0\nrx_bytes=5\n\
             tx_bytes=6\npublic_key={two}\nerrno=0\n\n"
        )
    }

    #[test]
    fn an_answer_is_read_with_all_its_peers() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let reading = parse(&answer("1900000000"), now).unwrap();
        assert_eq!((reading.listen_port, reading.fwmark, reading.peers.len()), (51820, 7, 2));
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        assert_eq!(reading.peers[&key].allowed_ips.to_string(), "10.0.0.2/32,fd00::2/128");
        assert!(reading.peers[&key].preshared_key.is_some());
        let traffic = reading.traffic[&key];
        assert_eq!((traffic.rx_bytes, traffic.tx_bytes), (5, 6));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        assert_eq!(traffic.last_handshake, Some(at));
    }

    #[test]
    fn only_a_peer_whose_key_is_all_zero_is_left_out() {
        let (one, zero) = ("01".repeat(32), "00".repeat(32));
        let answer = format!(
            "listen_port=7\npublic_key={zero}\nallowed_ip=10.0.0.9/32\nrx_bytes=5\n\
             public_key={one}\nallowed_ip=10.0.0.2/32\nerrno=0\n\n"
        );
        let peers = parse(&answer, SystemTime::UNIX_EPOCH).unwrap().peers;
        assert_eq!(peers.len(), 1);
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        assert_eq!(peers[&key].allowed_ips.to_string(), "10.0.0.2/32");
    }

    #[test]
    fn a_handshakes_age_is_understood_and_zero_is_none() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        let handshake = |secs| parse(&answer(secs), now).unwrap().traffic[&key].last_handshake;
        assert_eq!(handshake("30"), Some(now - Duration::from_secs(30)));
        assert_eq!(handshake("0"), None);
    }

    #[test]
    fn refusals_and_malformed_lines_are_errors_that_print_no_key() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(parse("errno=98\n\n", now), Err(UapiError::Refused(98)));
        let error = parse("listen_port=1\nprivate_key=0123secret\n", now).unwrap_err();
        assert_eq!(error.to_string(), "its line 2 (private_key) cannot be read");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let key = PublicKey::from_bytes([3; 32]).unwrap();
        let peer = Peer {
            preshared_key: PresharedKey::from_bytes([4; 32]).ok(),
            allowed_ips: ["10.0.0.2/32".parse().unwrap()].into_iter().collect(),
            keepalive_secs: 25,
        };
        let endpoint = "192.0.2.1:7".parse().ok();
        let now = SystemTime::UNIX_EPOCH;
        let added = parse(&addition(&key, &peer, endpoint, false), now).unwrap();
        assert_eq!((&added.peers[&key], added.traffic[&key].endpoint), (&peer, endpoint));
        for changed in [
            widening(&key, &peer.allowed_ips),
            preshared_key(&key, peer.preshared_key.as_ref()),
            keepalive(&key, peer.keepalive_secs),
        ] {
            assert!(changed.contains("\nupdate_only=true\n"), "an unknown peer stays unknown");
            assert_ne!(parse(&changed, now).unwrap().peers[&key], Peer::default());
        }
    }

    #[test]
    fn a_session_is_opened_where_the_peer_was() {
        let key = PublicKey::from_bytes([3; 32]).unwrap();
        let endpoint = "192.0.2.1:7".parse().ok();
        let text = |endpoint, open| addition(&key, &Peer::default(), endpoint, open);
        assert!(text(endpoint, true).contains("open_session=true\n"));
        assert!(!text(None, true).contains(OPEN_SESSION));
        assert!(!text(endpoint, false).contains(OPEN_SESSION));
    }

    #[test]
    fn a_preshared_key_that_a_peer_has_no_more_is_written_as_zeros() {
        let key = PublicKey::from_bytes([3; 32]).unwrap();
        let text = preshared_key(&key, None);
        assert!(text.contains(&format!("preshared_key={}\n", "00".repeat(32))));
    }
}
