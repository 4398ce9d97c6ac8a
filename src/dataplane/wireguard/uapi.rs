//! The text that userspace devices speak (<https://www.wireguard.com/xplatform/>). Pure.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::DeviceReading;
use crate::model::{Peer, PresharedKey, PrivateKey, PublicKey, Traffic};

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
pub(super) fn parse(answer: &str, now: SystemTime) -> Result<DeviceReading, UapiError> {
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

/// A `set=1` that adds a peer which is not there.
pub(super) fn addition(key: &PublicKey, peer: &Peer, traffic: Option<&Traffic>) -> Secret {
    let mut text = Secret::new(String::with_capacity(512));
    push(&mut text, "public_key", key.as_bytes());
    if let Some(preshared_key) = &peer.preshared_key {
        push(&mut text, "preshared_key", preshared_key.expose_bytes());
    }
    if let Some(endpoint) = traffic.and_then(|traffic| traffic.endpoint) {
        let _ = writeln!(text, "endpoint={endpoint}");
    }
    if peer.keepalive_secs != 0 {
        let _ = writeln!(text, "persistent_keepalive_interval={}", peer.keepalive_secs);
    }
    for prefix in peer.allowed_ips.iter() {
        let _ = writeln!(text, "allowed_ip={prefix}");
    }
    text
}

/// A `set=1` that removes a peer.
pub(super) fn removal(key: &PublicKey) -> Secret {
    let mut text = Secret::new(String::with_capacity(96));
    push(&mut text, "public_key", key.as_bytes());
    text.push_str("remove=true\n");
    text
}

/// A `set=1` that sets the private key.
pub(super) fn private_key(key: &PrivateKey) -> Secret {
    let mut text = Secret::new(String::with_capacity(96));
    push(&mut text, "private_key", key.expose_bytes());
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
                self.handshake += Duration::from_secs(value.parse().ok()?);
            }
            "last_handshake_time_nsec" => {
                self.handshake += Duration::from_nanos(value.parse().ok()?);
            }
            "rx_bytes" => self.traffic.rx_bytes = value.parse().ok()?,
            "tx_bytes" => self.traffic.tx_bytes = value.parse().ok()?,
            _ => {}
        }
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

fn push(text: &mut Secret, name: &str, bytes: &[u8; 32]) {
    text.push_str(name);
    text.push('=');
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
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
        let traffic = Traffic { endpoint: "192.0.2.1:7".parse().ok(), ..Traffic::default() };
        let text = addition(&key, &peer, Some(&traffic));
        let reading = parse(&text, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(reading.peers[&key], peer);
        assert_eq!(reading.traffic[&key], traffic);
    }
}
