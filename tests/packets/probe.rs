//! One packet that is sent to see whether it arrives, and whether its answer comes back.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gatepost::model::policy::Verdict;

use crate::lab::{self, PEERS, Place, place_of};
use crate::packet::{PROTOCOLS, Packet, Protocol, Turn};
use crate::set::{Chance, DNS_PORT, PolicySet, Reference, dns_candidates};
use crate::world;

const ECHO_PORT: u16 = 7;
/// The ports on which the gateway itself answers.
pub const SERVICE_PORTS: [u16; 2] = [ECHO_PORT, DNS_PORT];
const LAN_SOURCES: [&str; 4] = ["10.20.30.40", "8.8.4.4", "fd20::40", "2a00::1"];
const SPECIAL_ADDRESSES: usize = 12;
/// Of each kind.
const RANDOM_ADDRESSES: usize = 4;

/// How far a probe got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    Nowhere,
    Arrived,
    Answered,
}

#[derive(Debug, Clone)]
pub struct Probe {
    pub from: Place,
    pub to: Place,
    pub request: Packet,
    pub expected: Verdict,
    pub reach: Reach,
}

impl Probe {
    /// An allowed probe must arrive and be answered; a denied one must not arrive.
    pub fn is_as_expected(&self) -> bool {
        match self.expected {
            Verdict::Allow => self.reach == Reach::Answered,
            Verdict::Deny => self.reach == Reach::Nowhere,
        }
    }
}

/// A ping that passes whatever the policies say: of the gateway's tunnel address by a peer, of its
/// other address from the LAN, which is none of the firewall's business.
pub fn always_allowed(from: Place) -> Probe {
    let [tunnel, _, lan, _] = lab::gateway_addresses()[..] else { panic!("four addresses") };
    let (source, to) = match from {
        Place::Peer(peer) => (lab::sources(peer)[0], tunnel),
        _ => (LAN_SOURCES[0].parse().unwrap(), lan),
    };
    let request = request(Protocol::Icmp, source, (to, ECHO_PORT));
    Probe { from, to: Place::Gateway, request, expected: Verdict::Allow, reach: Reach::Nowhere }
}

/// Probes of a set: every address where its verdicts may change, and some others, by each protocol
/// from another peer; and from the LAN toward the peers.
pub fn choose(set: &PolicySet, chance: &mut Chance) -> Vec<Probe> {
    let reference = set.reference();
    let sources: Vec<Vec<IpAddr>> = (0..PEERS).map(lab::sources).collect();
    let mut probes = Vec::new();
    for to in addresses(set, chance) {
        let peers = chance.numbers.choose_multiple(0..PEERS, PROTOCOLS.len());
        for (peer, protocol) in peers.into_iter().zip(PROTOCOLS) {
            let port = *chance.numbers.choice(&SERVICE_PORTS).unwrap();
            let source = any_like(to, &sources[peer], chance);
            let request = request(protocol, source, (to, port));
            probes.extend(judged(&reference, Place::Peer(peer), request));
        }
    }
    let lan = LAN_SOURCES.map(|source| source.parse().unwrap());
    for (at, to) in sources.into_iter().flatten().enumerate() {
        let protocol = PROTOCOLS[at % PROTOCOLS.len()];
        let request = request(protocol, any_like(to, &lan, chance), (to, ECHO_PORT));
        probes.extend(judged(&reference, Place::Lan, request));
    }
    chance.numbers.shuffle(&mut probes);
    probes
}

/// `None`: the destination is the sender itself.
fn judged(reference: &Reference, from: Place, request: Packet) -> Option<Probe> {
    let to = place_of(request.service.0).filter(|to| *to != from)?;
    let expected = reference.verdict(from, &request);
    Some(Probe { from, to, request, expected, reach: Reach::Nowhere })
}

/// Its number and port are given when it is sent.
fn request(protocol: Protocol, source: IpAddr, service: (IpAddr, u16)) -> Packet {
    Packet { protocol, turn: Turn::Request, number: 0, client: (source, 0), service }
}

/// Any of these that is of the same family.
fn any_like(to: IpAddr, sources: &[IpAddr], chance: &mut Chance) -> IpAddr {
    let fitting: Vec<_> = sources.iter().filter(|at| at.is_ipv4() == to.is_ipv4()).collect();
    **chance.numbers.choice(&fitting).unwrap()
}

/// Where packets of this set go: all boundaries of its destinations, some of the internet's, who
/// has a name here, and some at random.
fn addresses(set: &PolicySet, chance: &mut Chance) -> BTreeSet<IpAddr> {
    let special = world::boundaries(&[]);
    let mut addresses = world::boundaries(&set.rows());
    addresses.retain(|address| !special.contains(address));
    let some = chance.numbers.choose_multiple(special, SPECIAL_ADDRESSES);
    addresses.extend(some);
    addresses.extend(lab::gateway_addresses());
    addresses.extend((0..PEERS).flat_map(lab::sources));
    addresses.extend(dns_candidates());
    for _ in 0..RANDOM_ADDRESSES {
        let (near, far) = (chance.numbers.u32(..1024), chance.numbers.u32(..));
        addresses.insert(Ipv4Addr::from(0x0a00_0000 | near).into());
        addresses.insert(Ipv4Addr::from(far).into());
        addresses.insert(Ipv6Addr::from((0xfd64 << 112) | u128::from(near)).into());
        addresses.insert(Ipv6Addr::from((0x2a00 << 112) | u128::from(far)).into());
    }
    addresses.retain(|address| place_of(*address).is_some());
    addresses
}
