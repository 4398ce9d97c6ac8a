//! Reads the answer to `WG_CMD_GET_DEVICE` without copying it first. Pure.
//!
//! A dump of 100,000 peers is some 20 MB: a parser that makes a vector for every attribute spends
//! four times as long on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::DeviceReading;
use crate::dataplane::netlink::{NetlinkError, attributes, fixed};
use crate::model::{Peer, PresharedKey, PublicKey, Traffic};

// include/uapi/linux/wireguard.h
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_FWMARK: u16 = 7;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_PRESHARED_KEY: u16 = 2;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_RX_BYTES: u16 = 7;
const PEER_TX_BYTES: u16 = 8;
const PEER_ALLOWED_IPS: u16 = 9;
const ALLOWED_IP_ADDRESS: u16 = 2;
const ALLOWED_IP_PREFIX_LEN: u16 = 3;

const GENERIC_HEADER_BYTES: usize = 4;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A dump as far as it was read. A peer with many prefixes comes in several pieces, also across
/// messages; each piece after the first has only the key and more prefixes.
#[derive(Default)]
pub(super) struct DeviceDump {
    reading: DeviceReading,
    peers: Vec<(PublicKey, Peer)>,
    traffic: Vec<(PublicKey, Traffic)>,
    open: Open,
    prefixes: Vec<IpNet>,
}

/// The peer whose pieces are read.
#[derive(Default)]
enum Open {
    #[default]
    None,
    Peer(PublicKey, Peer, Traffic),
    /// One whose key is all zero, which somebody's `wg set` may leave behind: it can never shake
    /// hands, and no step could name it.
    Keyless,
}

impl DeviceDump {
    /// Takes one message, which begins with its generic netlink header.
    pub fn take(&mut self, payload: &[u8]) -> Result<(), NetlinkError> {
        let body = payload.get(GENERIC_HEADER_BYTES..).unwrap_or_default();
        for attribute in attributes(body) {
            match attribute? {
                (DEVICE_PUBLIC_KEY, value) => {
                    self.reading.public_key = PublicKey::from_bytes(fixed(value)?).ok();
                }
                (DEVICE_LISTEN_PORT, value) => {
                    self.reading.listen_port = u16::from_ne_bytes(fixed(value)?);
                }
                (DEVICE_FWMARK, value) => self.reading.fwmark = u32::from_ne_bytes(fixed(value)?),
                (DEVICE_PEERS, value) => {
                    for peer in attributes(value) {
                        self.take_peer(peer?.1)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The whole device, after the last message.
    pub fn finish(mut self) -> DeviceReading {
        self.close();
        // Made from all at once, a map is filled without gaps.
        let peers = self.peers.into_iter().collect();
        let traffic = self.traffic.into_iter().collect();
        DeviceReading { peers, traffic, ..self.reading }
    }

    fn take_peer(&mut self, value: &[u8]) -> Result<(), NetlinkError> {
        for attribute in attributes(value) {
            let (kind, value) = attribute?;
            if kind == PEER_PUBLIC_KEY {
                self.open(value)?;
                continue;
            }
            let (peer, traffic) = match &mut self.open {
                Open::Peer(_, peer, traffic) => (peer, traffic),
                Open::Keyless => continue,
                // The kernel writes the key first (get_peer in drivers/net/wireguard/netlink.c).
                Open::None => {
                    return Err(NetlinkError::Malformed("a peer that does not begin with its key"));
                }
            };
            match kind {
                PEER_PRESHARED_KEY => {
                    peer.preshared_key = PresharedKey::from_bytes(fixed(value)?).ok();
                }
                PEER_KEEPALIVE => peer.keepalive_secs = u16::from_ne_bytes(fixed(value)?),
                PEER_ENDPOINT => traffic.endpoint = Some(endpoint(value)?),
                PEER_LAST_HANDSHAKE => traffic.last_handshake = handshake(value)?,
                PEER_RX_BYTES => traffic.rx_bytes = u64::from_ne_bytes(fixed(value)?),
                PEER_TX_BYTES => traffic.tx_bytes = u64::from_ne_bytes(fixed(value)?),
                PEER_ALLOWED_IPS => {
                    for allowed in attributes(value) {
                        self.prefixes.push(prefix(allowed?.1)?);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, key: &[u8]) -> Result<(), NetlinkError> {
        let key = PublicKey::from_bytes(fixed(key)?).ok();
        if !matches!((&self.open, key), (Open::Peer(open, ..), Some(key)) if *open == key) {
            self.close();
            self.open = key
                .map_or(Open::Keyless, |key| Open::Peer(key, Peer::default(), Traffic::default()));
        }
        Ok(())
    }

    fn close(&mut self) {
        if let Open::Peer(key, mut peer, traffic) = std::mem::take(&mut self.open) {
            peer.allowed_ips = self.prefixes.drain(..).collect();
            self.peers.push((key, peer));
            if traffic != Traffic::default() {
                self.traffic.push((key, traffic));
            }
        }
    }
}

fn prefix(value: &[u8]) -> Result<IpNet, NetlinkError> {
    let (mut address, mut prefix_len) = (None, None);
    for attribute in attributes(value) {
        match attribute? {
            (ALLOWED_IP_ADDRESS, value) if value.len() == 16 => {
                address = Some(IpAddr::V6(fixed::<16>(value)?.into()));
            }
            (ALLOWED_IP_ADDRESS, value) => address = Some(IpAddr::V4(fixed::<4>(value)?.into())),
            (ALLOWED_IP_PREFIX_LEN, value) => prefix_len = Some(fixed::<1>(value)?[0]),
            _ => {}
        }
    }
    let prefix = address.zip(prefix_len).and_then(|(address, len)| IpNet::new(address, len).ok());
    prefix.ok_or(NetlinkError::Malformed("an allowed IP that is no prefix"))
}

/// A `struct sockaddr_in` or `sockaddr_in6`: the family in the host's byte order, the port and the
/// address in the network's, the scope in the host's.
fn endpoint(value: &[u8]) -> Result<SocketAddr, NetlinkError> {
    let port = u16::from_be_bytes(fixed(value.get(2..).unwrap_or_default())?);
    match u16::from_ne_bytes(fixed(value)?) {
        AF_INET => {
            let address: [u8; 4] = fixed(value.get(4..).unwrap_or_default())?;
            Ok(SocketAddrV4::new(Ipv4Addr::from(address), port).into())
        }
        AF_INET6 => {
            let address: [u8; 16] = fixed(value.get(8..).unwrap_or_default())?;
            let scope = u32::from_ne_bytes(fixed(value.get(24..).unwrap_or_default())?);
            Ok(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
        }
        _ => Err(NetlinkError::Malformed("an endpoint of unknown family")),
    }
}

/// A `struct __kernel_timespec`; zero before the first handshake.
fn handshake(value: &[u8]) -> Result<Option<SystemTime>, NetlinkError> {
    let secs = i64::from_ne_bytes(fixed(value)?);
    let nanos = i64::from_ne_bytes(fixed(value.get(8..).unwrap_or_default())?);
    let (Ok(secs), Ok(nanos)) = (u64::try_from(secs), u32::try_from(nanos)) else {
        return Ok(None);
    };
    let since_epoch = Duration::from_secs(secs) + Duration::from_nanos(nanos.into());
    Ok((!since_epoch.is_zero()).then(|| SystemTime::UNIX_EPOCH + since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn peer(key: u8, last_octet: u8, more: &[u8]) -> Vec<u8> {
        let allowed = [attribute(2, &[10, 0, 0, last_octet]), attribute(3, &[32])].concat();
        let allowed = attribute(PEER_ALLOWED_IPS, &attribute(0x8000, &allowed));
        let body = [attribute(PEER_PUBLIC_KEY, &[key; 32]), more.to_vec(), allowed].concat();
        attribute(0x8000, &body)
    }

    fn message(peers: &[Vec<u8>]) -> Vec<u8> {
        [vec![0, 1, 0, 0], attribute(DEVICE_PEERS | 0x8000, &peers.concat())].concat()
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32]).unwrap()
    }

    #[test]
    fn a_peer_split_over_two_messages_is_one_peer() {
        let keepalive = attribute(PEER_KEEPALIVE, &25u16.to_ne_bytes());
        let mut dump = DeviceDump::default();
        dump.take(&message(&[peer(1, 1, &[]), peer(2, 2, &keepalive)])).unwrap();
        dump.take(&message(&[peer(2, 3, &[]), peer(3, 4, &[])])).unwrap();
        let reading = dump.finish();
        assert_eq!(reading.peers.len(), 3);
        assert_eq!(reading.peers[&key(2)].allowed_ips.to_string(), "10.0.0.2/32,10.0.0.3/32");
        assert_eq!(reading.peers[&key(2)].keepalive_secs, 25);
        assert_eq!(reading.peers[&key(3)].keepalive_secs, 0);
    }

    #[test]
    fn a_peer_whose_key_is_all_zero_is_left_out_alone() {
        let mut dump = DeviceDump::default();
        dump.take(&message(&[peer(1, 1, &[]), peer(0, 2, &[])])).unwrap();
        dump.take(&message(&[peer(0, 3, &[]), peer(2, 4, &[])])).unwrap();
        let peers = dump.finish().peers;
        let shown: Vec<_> =
            peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.to_string())).collect();
        assert_eq!(shown, [(key(1), "10.0.0.1/32".into()), (key(2), "10.0.0.4/32".into())]);
    }

    #[test]
    fn endpoint_and_handshake_are_read_and_zero_is_none() {
        let mut v6 = [AF_INET6.to_ne_bytes(), 51820u16.to_be_bytes()].concat();
        v6.extend([0; 4]);
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(3u32.to_ne_bytes());
        assert_eq!(endpoint(&v6).unwrap().to_string(), "[::1%3]:51820");
        assert!(endpoint(&v6[..12]).is_err());
        assert_eq!(handshake(&[0; 16]).unwrap(), None);
        let time = [7i64.to_ne_bytes(), 9i64.to_ne_bytes()].concat();
        let expected = SystemTime::UNIX_EPOCH + Duration::new(7, 9);
        assert_eq!(handshake(&time).unwrap(), Some(expected));
    }

    #[test]
    fn half_a_message_is_an_error_and_no_panic() {
        let whole = message(&[peer(1, 1, &[])]);
        for len in 5..whole.len() - 3 {
            assert!(DeviceDump::default().take(&whole[..len]).is_err(), "{len}");
        }
    }
}
