//! Peer steps as messages of `WG_CMD_SET_DEVICE` (include/uapi/linux/wireguard.h). Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::endpoints::Endpoints;
use super::sys::{
    AF_INET, AF_INET6, ALLOWED_IP_ADDRESS, ALLOWED_IP_FAMILY, ALLOWED_IP_PREFIX_LEN,
    PEER_ALLOWED_IPS, PEER_ENDPOINT, PEER_FLAGS, PEER_KEEPALIVE, PEER_PRESHARED_KEY,
    PEER_PUBLIC_KEY, PEER_REMOVE_ME, PEER_REPLACE_ALLOWED_IPS, PEER_UPDATE_ONLY,
};
use crate::dataplane::netlink::{put, put_nested};
use crate::model::{AllowedIps, Peer, PublicKey};
use crate::plan::Step;

/// Beyond this a message is closed. Twice the size is no faster.
const MESSAGE_BYTES: usize = 12 * 1024;
/// An attribute holds 64 KiB less its header: this many IPv6 prefixes at 40 bytes are 40 KiB. A peer
/// with more is written in several messages.
const PREFIXES_PER_ENTRY: usize = 1024;

/// At least what one call takes: three entries.
const CALL_BYTES: usize = 256;

/// The key of a peer that exists only within one message. No private key belongs to it.
const THROW_AWAY: [u8; 32] = *b"gatepost: a peer that nobody is.";

/// Encoded entries of a peer list. They may hold preshared keys.
pub(super) type Peers = Zeroizing<Vec<u8>>;

/// Steps that go in one message, or one step that needs several.
pub(super) struct Batch {
    /// Which of the given steps.
    pub steps: Range<usize>,
    /// The peer list of each message.
    pub messages: Vec<Peers>,
}

/// The peers as they are before the steps.
pub(super) type ObservedPeers = BTreeMap<PublicKey, Peer>;

/// Known facts about peers besides the steps.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub peers: &'a ObservedPeers,
    pub endpoints: &'a Endpoints,
}

/// Packs peer steps into messages, in their order, each when it is asked for, so that no other takes
/// up memory while the kernel works on one. Any other step is a batch without messages.
pub(super) fn pack<'a>(steps: &'a [Step], known: Known<'a>) -> impl Iterator<Item = Batch> + 'a {
    let mut next = 0;
    // The entries of the next step, where they did not fit into the previous batch.
    let mut ahead = None;
    std::iter::from_fn(move || {
        let mut messages =
            ahead.take().or_else(|| steps.get(next).map(|step| entries(step, known)))?;
        let start = next;
        next += 1;
        if let [message] = &mut messages[..] {
            // Nothing is left behind in memory by growing.
            let mut packed = Peers::new(Vec::with_capacity(message.len().max(MESSAGE_BYTES)));
            packed.extend_from_slice(message);
            while let Some(step) = steps.get(next) {
                let entries = entries(step, known);
                match &entries[..] {
                    [entry] if packed.len() + entry.len() <= MESSAGE_BYTES => {
                        packed.extend_from_slice(entry);
                    }
                    _ => {
                        ahead = Some(entries);
                        break;
                    }
                }
                next += 1;
            }
            *message = packed;
        }
        Some(Batch { steps: start..next, messages })
    })
}

/// The entry that removes a peer. An unknown peer stays unknown.
pub(super) fn removal(key: &PublicKey) -> Peers {
    entry(key.as_bytes(), PEER_REMOVE_ME, &[], |_| {})
}

/// The entry that removes what a refused narrowing may have left.
pub(super) fn removal_of_throw_away() -> Peers {
    entry(&THROW_AWAY, PEER_REMOVE_ME, &[], |_| {})
}

/// Takes prefixes from the peers that have them. Replacing a peer's prefixes by fewer leaves those
/// that it keeps without an owner for a moment, or with the peer whose prefix contains them. A prefix
/// that is given to another peer moves at once, so these go to one that is then removed.
fn taken(prefixes: &[IpNet]) -> Peers {
    let mut out = entry(&THROW_AWAY, 0, prefixes, |_| {});
    out.extend_from_slice(&removal_of_throw_away());
    out
}

/// One step's entries in the peer list: one, unless its prefixes need more.
fn entries(step: &Step, known: Known<'_>) -> Vec<Peers> {
    match step {
        Step::RemovePeer { key } => vec![removal(key)],
        Step::NarrowPeer { key, allowed_ips } => {
            let had = known.peers.get(key).map(|peer| &peer.allowed_ips);
            let gone = had.map(|had| had.difference(allowed_ips)).unwrap_or_default();
            match gone.as_slice() {
                [] => vec![entry(key.as_bytes(), PEER_UPDATE_ONLY, &[], |_| {})],
                gone => gone.chunks(PREFIXES_PER_ENTRY).map(taken).collect(),
            }
        }
        Step::WidenPeer { key, allowed_ips } => {
            with_prefixes(key, PEER_UPDATE_ONLY, allowed_ips, |_| {})
        }
        // Replacing costs nothing where there is nothing yet. If the peer came to exist since the
        // kernel was read, it ends with these prefixes and no others.
        Step::AddPeer { key, peer } => addition(key, peer, known.endpoints.of(key)),
        Step::SetPresharedKey { key, preshared_key } => {
            // All zero is how the interface says "none".
            let none = [0; 32];
            let bytes = preshared_key.as_ref().map_or(&none, |psk| psk.expose_bytes());
            vec![entry(key.as_bytes(), PEER_UPDATE_ONLY, &[], |out| {
                put(out, PEER_PRESHARED_KEY, bytes);
            })]
        }
        Step::SetKeepalive { key, keepalive_secs } => vec![keepalive(key, *keepalive_secs)],
        _ => vec![],
    }
}

/// Messages that call the peers that had a session until now, as [`addition`] does, but at the endpoint
/// that the kernel has: the one that was read may be older.
pub(super) fn calls(known: Known<'_>) -> impl Iterator<Item = Peers> {
    let mut peers = known.peers.iter().filter_map(move |(key, peer)| {
        known.endpoints.of(key)?;
        Some((key, peer.keepalive_secs))
    });
    std::iter::from_fn(move || {
        let mut message = Peers::new(Vec::with_capacity(MESSAGE_BYTES));
        while message.len() + CALL_BYTES <= MESSAGE_BYTES
            && let Some((key, keepalive_secs)) = peers.next()
        {
            message.extend_from_slice(&keepalive(key, 0));
            message.extend_from_slice(&keepalive(key, keepalive_secs.max(1)));
            message.extend_from_slice(&keepalive(key, keepalive_secs));
        }
        (!message.is_empty()).then_some(message)
    })
}

/// A peer that had a session until now, and whose endpoint is known, is called there: a keepalive that is
/// switched on sends a packet at once, and the first packet begins a handshake.
fn addition(key: &PublicKey, peer: &Peer, endpoint: Option<SocketAddr>) -> Vec<Peers> {
    let calls = endpoint.is_some();
    let keepalive_secs = if calls { peer.keepalive_secs.max(1) } else { peer.keepalive_secs };
    let mut entries = with_prefixes(key, PEER_REPLACE_ALLOWED_IPS, &peer.allowed_ips, |out| {
        if let Some(preshared_key) = &peer.preshared_key {
            put(out, PEER_PRESHARED_KEY, preshared_key.expose_bytes());
        }
        if let Some(endpoint) = endpoint {
            put(out, PEER_ENDPOINT, &socket_address(endpoint));
        }
        if keepalive_secs != 0 {
            put(out, PEER_KEEPALIVE, &keepalive_secs.to_ne_bytes());
        }
    });
    if keepalive_secs != peer.keepalive_secs
        && let Some(last) = entries.last_mut()
    {
        last.extend_from_slice(&keepalive(key, peer.keepalive_secs));
    }
    entries
}

fn keepalive(key: &PublicKey, secs: u16) -> Peers {
    entry(key.as_bytes(), PEER_UPDATE_ONLY, &[], |out| {
        put(out, PEER_KEEPALIVE, &secs.to_ne_bytes());
    })
}

/// As the kernel holds it: `struct sockaddr_in`, `struct sockaddr_in6`.
fn socket_address(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(v4) => {
            [&AF_INET.to_ne_bytes()[..], &port, &v4.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(v6) => {
            let (flow, scope) = (v6.flowinfo().to_be_bytes(), v6.scope_id().to_ne_bytes());
            [&AF_INET6.to_ne_bytes()[..], &port, &flow, &v6.ip().octets(), &scope].concat()
        }
    }
}

fn with_prefixes(
    key: &PublicKey,
    flags: u32,
    allowed_ips: &AllowedIps,
    more: impl FnOnce(&mut Vec<u8>),
) -> Vec<Peers> {
    let key = key.as_bytes();
    let mut chunks = allowed_ips.as_slice().chunks(PREFIXES_PER_ENTRY);
    let mut entries = vec![entry(key, flags, chunks.next().unwrap_or_default(), more)];
    entries.extend(chunks.map(|chunk| entry(key, PEER_UPDATE_ONLY, chunk, |_| {})));
    entries
}

fn entry(key: &[u8; 32], flags: u32, prefixes: &[IpNet], more: impl FnOnce(&mut Vec<u8>)) -> Peers {
    const PREFIX_BYTES: usize = 40;
    const OTHER_BYTES: usize = 128;
    let mut out = Peers::new(Vec::with_capacity(OTHER_BYTES + prefixes.len() * PREFIX_BYTES));
    put_nested(&mut out, 0, |out| {
        put(out, PEER_PUBLIC_KEY, key);
        put(out, PEER_FLAGS, &flags.to_ne_bytes());
        more(out);
        if !prefixes.is_empty() {
            put_nested(out, PEER_ALLOWED_IPS, |out| {
                prefixes.iter().for_each(|prefix| put_prefix(out, prefix));
            });
        }
    });
    out
}

fn put_prefix(out: &mut Vec<u8>, prefix: &IpNet) {
    put_nested(out, 0, |out| {
        let mut address = |family: u16, octets: &[u8]| {
            put(out, ALLOWED_IP_FAMILY, &family.to_ne_bytes());
            put(out, ALLOWED_IP_ADDRESS, octets);
        };
        match prefix.addr() {
            IpAddr::V4(ip) => address(AF_INET, &ip.octets()),
            IpAddr::V6(ip) => address(AF_INET6, &ip.octets()),
        }
        put(out, ALLOWED_IP_PREFIX_LEN, &[prefix.prefix_len()]);
    });
}

/// The key and the flags of each entry.
#[cfg(test)]
pub(super) fn keys_and_flags(peers: &[u8]) -> Vec<([u8; 32], u32)> {
    use crate::dataplane::netlink::{Attributes, Place};
    let entry = |entry: crate::dataplane::netlink::Attribute<'_>| {
        let peer = entry.nested();
        let key = peer.require(PEER_PUBLIC_KEY).unwrap().fixed().unwrap();
        (key, peer.require(PEER_FLAGS).unwrap().u32().unwrap())
    };
    Attributes::new(peers, Place::of("TEST")).map(Result::unwrap).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    fn key(number: u32) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes).unwrap()
    }

    fn pack(steps: &[Step]) -> Vec<Batch> {
        let (peers, endpoints) = (ObservedPeers::default(), Endpoints::default());
        super::pack(steps, Known { peers: &peers, endpoints: &endpoints }).collect()
    }

    fn alone(step: &Step, peers: &ObservedPeers) -> Vec<Peers> {
        entries(step, Known { peers, endpoints: &Endpoints::default() })
    }

    fn flags(peers: &Peers) -> u32 {
        keys_and_flags(peers)[0].1
    }

    fn add(number: u32, prefixes: usize) -> Step {
        let prefix = |index: usize| {
            let address = std::net::Ipv4Addr::from(u32::try_from(index).unwrap() + (10 << 24));
            IpNet::new(address.into(), 32).unwrap()
        };
        let allowed_ips = (0..prefixes).map(prefix).collect();
        Step::AddPeer { key: key(number), peer: Peer { allowed_ips, ..Peer::default() } }
    }

    #[test]
    fn every_step_is_in_exactly_one_batch_and_no_message_is_too_long() {
        let steps: Vec<Step> = (0..1000).map(|number| add(number, 1)).collect();
        let batches = pack(&steps);
        assert!(batches.len() > 4 && batches.len() < 20, "{}", batches.len());
        let mut next = 0;
        for batch in &batches {
            assert_eq!(batch.steps.start, next);
            next = batch.steps.end;
            assert_eq!(batch.messages.len(), 1);
            assert_eq!(keys_and_flags(&batch.messages[0]).len(), batch.steps.len());
            let bytes = batch.messages[0].len();
            assert!(bytes <= MESSAGE_BYTES, "{bytes}");
        }
        assert_eq!(next, steps.len());
    }

    #[test]
    fn a_peer_with_many_prefixes_is_replaced_once_and_then_only_widened() {
        let steps = [add(1, 1), add(2, 2500), add(3, 1)];
        let batches = pack(&steps);
        let counts: Vec<_> = batches.iter().map(|batch| batch.messages.len()).collect();
        assert_eq!(counts, [1, 3, 1]);
        let flags: Vec<_> = batches[1].messages.iter().map(flags).collect();
        assert_eq!(flags, [PEER_REPLACE_ALLOWED_IPS, PEER_UPDATE_ONLY, PEER_UPDATE_ONLY]);
    }

    #[test]
    fn only_an_added_peer_may_come_to_be() {
        let allowed_ips: AllowedIps = ["10.0.0.1/32".parse().unwrap()].into_iter().collect();
        let steps = [
            Step::NarrowPeer { key: key(1), allowed_ips: AllowedIps::default() },
            Step::WidenPeer { key: key(1), allowed_ips },
            Step::SetPresharedKey { key: key(1), preshared_key: None },
            Step::SetKeepalive { key: key(1), keepalive_secs: 25 },
        ];
        for step in &steps {
            let entries = alone(step, &ObservedPeers::default());
            assert!(flags(&entries[0]) & PEER_UPDATE_ONLY != 0, "{step}");
        }
        let remove = Step::RemovePeer { key: key(1) };
        assert_eq!(flags(&alone(&remove, &ObservedPeers::default())[0]), PEER_REMOVE_ME);
    }

    /// The keepalive and the endpoint of each entry.
    fn calls(peers: &Peers) -> Vec<(Option<u16>, Option<Vec<u8>>)> {
        use crate::dataplane::netlink::{Attributes, Place};
        let call = |entry: crate::dataplane::netlink::Attribute<'_>| {
            let of = |kind| entry.nested().map(Result::unwrap).find(|it| it.kind == kind);
            let keepalive = of(PEER_KEEPALIVE).map(|it| it.u16().unwrap());
            (keepalive, of(PEER_ENDPOINT).map(|it| it.value.to_vec()))
        };
        Attributes::new(peers, Place::of("TEST")).map(Result::unwrap).map(call).collect()
    }

    #[test]
    fn peer_with_a_known_endpoint_is_called_there_and_keeps_its_keepalive() {
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 51_820));
        let traffic = crate::model::Traffic {
            endpoint: Some(endpoint),
            last_handshake: Some(std::time::SystemTime::UNIX_EPOCH),
            ..Default::default()
        };
        let mut endpoints = Endpoints::default();
        let read = [(key(1), traffic)].into();
        endpoints.note(&read, std::time::SystemTime::UNIX_EPOCH, std::time::Instant::now());
        let peers = ObservedPeers::default();
        let known = Known { peers: &peers, endpoints: &endpoints };
        // The kernel sends a packet where a keepalive is switched on, and not where it was on.
        for (keepalive_secs, written) in [(0, &[Some(1), Some(0)][..]), (25, &[Some(25)])] {
            let peer = Peer { keepalive_secs, ..Peer::default() };
            let messages = entries(&Step::AddPeer { key: key(1), peer }, known);
            let [message] = &messages[..] else { panic!("{} messages", messages.len()) };
            let (keepalives, addresses): (Vec<_>, Vec<_>) = calls(message).into_iter().unzip();
            assert_eq!(keepalives, written);
            assert_eq!(addresses[0].as_deref(), Some(&socket_address(endpoint)[..]));
        }
        let unknown = Step::AddPeer { key: key(2), peer: Peer::default() };
        assert_eq!(entries(&unknown, known), alone(&unknown, &peers));
    }

    #[test]
    fn narrowing_names_only_what_it_takes_and_leaves_no_other_peer() {
        let Step::AddPeer { key, peer } = add(1, 2_500) else { panic!() };
        let kept: AllowedIps = peer.allowed_ips.iter().skip(1_500).collect();
        let peers = [(key, peer)].into();
        let messages = alone(&Step::NarrowPeer { key, allowed_ips: kept }, &peers);
        assert_eq!(messages.len(), 2);
        for message in &messages {
            assert_eq!(keys_and_flags(message), [(THROW_AWAY, 0), (THROW_AWAY, PEER_REMOVE_ME)]);
        }
    }
}
