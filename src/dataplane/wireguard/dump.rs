//! Reads the answer to `WG_CMD_GET_DEVICE` without copying it first. Pure.
//!
//! A dump of 100,000 peers is some 20 MB: a parser that makes a vector for every attribute spends
//! four times as long on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::DeviceReading;
use super::sys::{
    AF_INET, AF_INET6, ALLOWED_IP_ADDRESS, ALLOWED_IP_PREFIX_LEN, DEVICE_FWMARK,
    DEVICE_LISTEN_PORT, DEVICE_PEERS, DEVICE_PUBLIC_KEY, PEER_ALLOWED_IPS, PEER_ENDPOINT,
    PEER_KEEPALIVE, PEER_LAST_HANDSHAKE, PEER_PRESHARED_KEY, PEER_PUBLIC_KEY, PEER_RX_BYTES,
    PEER_TX_BYTES,
};
use crate::dataplane::netlink::{Attribute, Attributes, Defect, Message, NetlinkError};
use crate::model::{Peer, PresharedKey, PublicKey, Traffic};

/// A dump as far as it was read. A peer with many prefixes comes in several pieces, also across
/// messages; each piece after the first has only the key and more prefixes.
#[derive(Default)]
pub(crate) struct DeviceDump {
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
    /// A peer whose key is all zero, which a `wg set` may leave behind: it can never shake hands, and
    /// no step can name it.
    Keyless,
}

impl DeviceDump {
    /// Reads one message of the dump.
    pub fn read(&mut self, message: &Message<'_>) -> Result<(), NetlinkError> {
        for attribute in message.split::<4>("WG_CMD_GET_DEVICE")?.1 {
            let attribute = attribute?;
            match attribute.kind {
                DEVICE_PUBLIC_KEY => {
                    self.reading.public_key = PublicKey::from_bytes(attribute.fixed()?).ok();
                }
                DEVICE_LISTEN_PORT => self.reading.listen_port = attribute.u16()?,
                DEVICE_FWMARK => self.reading.fwmark = attribute.u32()?,
                DEVICE_PEERS => {
                    for peer in attribute.nested() {
                        self.read_peer(peer?.nested())?;
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

    fn read_peer(&mut self, piece: Attributes<'_>) -> Result<(), NetlinkError> {
        // The kernel writes the key first (get_peer in drivers/net/wireguard/netlink.c).
        self.open(PublicKey::from_bytes(piece.require(PEER_PUBLIC_KEY)?.fixed()?).ok());
        for attribute in piece {
            let attribute = attribute?;
            let Open::Peer(_, peer, traffic) = &mut self.open else { continue };
            match attribute.kind {
                PEER_PRESHARED_KEY => {
                    peer.preshared_key = PresharedKey::copied_from(attribute.array()?).ok();
                }
                PEER_KEEPALIVE => peer.keepalive_secs = attribute.u16()?,
                PEER_ENDPOINT => traffic.endpoint = Some(endpoint(&attribute)?),
                PEER_LAST_HANDSHAKE => traffic.last_handshake = handshake(attribute.fixed()?),
                PEER_RX_BYTES => traffic.rx_bytes = attribute.u64()?,
                PEER_TX_BYTES => traffic.tx_bytes = attribute.u64()?,
                PEER_ALLOWED_IPS => {
                    for allowed in attribute.nested() {
                        self.prefixes.push(prefix(&allowed?)?);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, key: Option<PublicKey>) {
        if !matches!((&self.open, key), (Open::Peer(open, ..), Some(key)) if *open == key) {
            self.close();
            self.open = key
                .map_or(Open::Keyless, |key| Open::Peer(key, Peer::default(), Traffic::default()));
        }
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

fn prefix(allowed: &Attribute<'_>) -> Result<IpNet, NetlinkError> {
    let attributes = allowed.nested();
    let address = attributes.require(ALLOWED_IP_ADDRESS)?;
    let ip: IpAddr = match address.value.len() {
        16 => address.fixed::<16>()?.into(),
        _ => address.fixed::<4>()?.into(),
    };
    let prefix_len = attributes.require(ALLOWED_IP_PREFIX_LEN)?.u8()?;
    IpNet::new(ip, prefix_len).map_err(|_| allowed.malformed(Defect::Not("a prefix")))
}

/// A `struct sockaddr_in` or `sockaddr_in6`: the family in the host's byte order, the port and the
/// address in the network's, the scope in the host's.
fn endpoint(attribute: &Attribute<'_>) -> Result<SocketAddr, NetlinkError> {
    let family = attribute.value.first_chunk().copied().map(u16::from_ne_bytes);
    match family {
        Some(AF_INET) => {
            let [_, _, p, q, a, b, c, d, ..] = attribute.fixed::<16>()?;
            let port = u16::from_be_bytes([p, q]);
            Ok(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port).into())
        }
        Some(AF_INET6) => {
            let bytes = attribute.fixed::<28>()?;
            let [_, _, p, q, _, _, _, _, address @ .., s, t, u, v] = bytes;
            let port = u16::from_be_bytes([p, q]);
            let scope = u32::from_ne_bytes([s, t, u, v]);
            Ok(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
        }
        _ => Err(attribute.malformed(Defect::Not("an IPv4 or IPv6 endpoint"))),
    }
}

/// A `struct __kernel_timespec`; zero before the first handshake.
fn handshake(value: [u8; 16]) -> Option<SystemTime> {
    let [a, b, c, d, e, f, g, h, nanos @ ..] = value;
    let secs = u64::try_from(i64::from_ne_bytes([a, b, c, d, e, f, g, h])).ok()?;
    let nanos = u32::try_from(i64::from_ne_bytes(nanos)).ok()?;
    let since_epoch = Duration::from_secs(secs) + Duration::from_nanos(nanos.into());
    SystemTime::UNIX_EPOCH.checked_add(since_epoch).filter(|_| !since_epoch.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::{Place, put};

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, value);
        bytes
    }

    fn read(dump: &mut DeviceDump, payload: &[u8]) -> Result<(), NetlinkError> {
        dump.read(&Message { kind: 0, flags: 0, sequence: 0, port: 0, payload })
    }

    fn error(payload: &[u8]) -> String {
        read(&mut DeviceDump::default(), payload).unwrap_err().to_string()
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
        read(&mut dump, &message(&[peer(1, 1, &[]), peer(2, 2, &keepalive)])).unwrap();
        read(&mut dump, &message(&[peer(2, 3, &[]), peer(3, 4, &[])])).unwrap();
        let reading = dump.finish();
        assert_eq!(reading.peers.len(), 3);
        assert_eq!(reading.peers[&key(2)].allowed_ips.to_string(), "10.0.0.2/32,10.0.0.3/32");
        assert_eq!(reading.peers[&key(2)].keepalive_secs, 25);
        assert_eq!(reading.peers[&key(3)].keepalive_secs, 0);
    }

    #[test]
    fn only_a_peer_whose_key_is_all_zero_is_left_out() {
        let mut dump = DeviceDump::default();
        read(&mut dump, &message(&[peer(1, 1, &[]), peer(0, 2, &[])])).unwrap();
        read(&mut dump, &message(&[peer(0, 3, &[]), peer(2, 4, &[])])).unwrap();
        let peers = dump.finish().peers;
        let shown: Vec<_> =
            peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.to_string())).collect();
        assert_eq!(shown, [(key(1), "10.0.0.1/32".into()), (key(2), "10.0.0.4/32".into())]);
    }

    #[test]
    fn endpoint_and_handshake_are_read_and_zero_is_none() {
        let endpoint = |value: &[u8]| {
            let bytes = attribute(PEER_ENDPOINT, value);
            let list = Attributes::new(&bytes, Place::of("TEST"));
            endpoint(&list.require(PEER_ENDPOINT).unwrap())
        };
        let mut v6 = [AF_INET6.to_ne_bytes(), 51820u16.to_be_bytes()].concat();
        v6.extend([0; 4]);
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(3u32.to_ne_bytes());
        assert_eq!(endpoint(&v6).unwrap().to_string(), "[::1%3]:51820");
        assert!(endpoint(&v6[..12]).is_err());
        let mut v4 = [AF_INET.to_ne_bytes(), 51820u16.to_be_bytes()].concat();
        v4.extend([192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(endpoint(&v4).unwrap().to_string(), "192.0.2.1:51820");
        assert!(endpoint(&v4[..8]).is_err() && endpoint(&[]).is_err());
        assert_eq!(handshake([0; 16]), None);
        let time = [7i64.to_ne_bytes(), 9i64.to_ne_bytes()].concat().try_into().unwrap();
        let expected = SystemTime::UNIX_EPOCH + Duration::new(7, 9);
        assert_eq!(handshake(time), Some(expected));
        let negative = [(-7i64).to_ne_bytes(), 9i64.to_ne_bytes()].concat().try_into().unwrap();
        assert_eq!(handshake(negative), None);
    }

    #[test]
    fn a_truncated_message_is_an_error() {
        let whole = message(&[peer(1, 1, &[])]);
        assert!(read(&mut DeviceDump::default(), &whole).is_ok());
        for len in (0..4).chain(5..whole.len()) {
            assert!(read(&mut DeviceDump::default(), &whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn malformed_attributes_are_errors_that_name_them() {
        let bad = |attribute: Vec<u8>| error(&message(&[peer(1, 1, &attribute)]));
        let prefix = |text: &str| format!("the kernel sent a malformed WG_CMD_GET_DEVICE, {text}");
        assert_eq!(
            bad(attribute(PEER_RX_BYTES, &[0; 4])),
            prefix("attribute 8/0/7: its value has 4 bytes instead of 8")
        );
        assert_eq!(
            bad(attribute(PEER_LAST_HANDSHAKE, &[0; 8])),
            prefix("attribute 8/0/6: its value has 8 bytes instead of 16")
        );
        assert_eq!(
            bad(attribute(PEER_ENDPOINT, &[1, 0, 0, 0])),
            prefix("attribute 8/0/4: it is not an IPv4 or IPv6 endpoint")
        );
        let address = attribute(ALLOWED_IP_ADDRESS, &[10, 0, 0, 1]);
        let allowed = |inner: &[u8]| attribute(PEER_ALLOWED_IPS, &attribute(0, inner));
        assert_eq!(bad(allowed(&address)), prefix("attribute 8/0/9/0: it lacks attribute 3"));
        let too_long = attribute(ALLOWED_IP_PREFIX_LEN, &[33]);
        assert_eq!(
            bad(allowed(&[address, too_long].concat())),
            prefix("attribute 8/0/9/0: it is not a prefix")
        );
        let keyless = attribute(0, &attribute(PEER_KEEPALIVE, &[0, 0]));
        assert_eq!(error(&message(&[keyless])), prefix("attribute 8/0: it lacks attribute 1"));
    }
}
