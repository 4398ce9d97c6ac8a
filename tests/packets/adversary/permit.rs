//! What may come where: the rules of one moment, and what a packet claims to be.

use std::net::IpAddr;

use gatepost::model::policy::Verdict;
use ipnet::IpNet;

use crate::lab::{PEERS, POOL, Place, TUNNEL, WAN, gateway_addresses};
use crate::packet::{Packet, Protocol, Turn};
use crate::set::{PolicySet, Reference};

/// Parts of site prefixes that another program routes to the LAN.
pub const DIVERTED: [&str; 2] = ["10.0.3.64/26", "fd64::340/122"];
/// From this port on, a datagram of the gateway opens a flow: the kernel chooses such ports.
const FIRST_CHOSEN_PORT: u16 = 32_768;

pub type End = (IpAddr, u16);

/// A conversation that both ends know.
#[derive(Debug, Clone)]
pub struct Flow {
    pub protocol: Protocol,
    pub client: End,
    pub service: End,
    /// What a translated flow's client is outside.
    pub outside: Option<End>,
}

/// What a packet says that it is, and who really sent it.
#[derive(Debug, Clone)]
pub struct Claim {
    pub kind: &'static str,
    pub from: Place,
    pub protocol: Protocol,
    /// Its addresses, before any translation.
    pub ends: [End; 2],
    /// The destination in its header.
    pub addressed_to: IpAddr,
    /// The other end may have opened a flow with these ends.
    pub is_of_flow: bool,
    /// It is an ICMP error about this flow.
    pub about: Option<Flow>,
    /// Whatever the policies say, it may come nowhere.
    pub never: bool,
}

impl Claim {
    pub fn new(kind: &'static str, from: Place, protocol: Protocol, ends: [End; 2]) -> Self {
        Self {
            kind,
            from,
            protocol,
            ends,
            addressed_to: ends[1].0,
            is_of_flow: false,
            about: None,
            never: false,
        }
    }
}

/// The rules of one moment.
#[derive(Debug)]
pub struct Rules {
    reference: Reference,
    prefixes: Vec<Vec<IpNet>>,
    inbound: bool,
    /// The table is gone. The gate stops what is forwarded, and only that.
    without_table: bool,
    /// Prefixes that pass to a peer or from one. What may be sent to one goes by the host's other routes
    /// while it has none: a known limit.
    moving: Vec<IpNet>,
}

impl Rules {
    pub fn of(set: &PolicySet) -> Self {
        Self {
            reference: set.reference(),
            prefixes: set.prefixes().to_vec(),
            inbound: set.allows_inbound(),
            without_table: false,
            moving: Vec::new(),
        }
    }

    /// The same while the table is gone.
    pub fn without_table(set: &PolicySet) -> Self {
        Self { without_table: true, ..Self::of(set) }
    }

    /// The same while these prefixes pass to peers or from them.
    pub fn while_moving(self, prefixes: &[IpNet]) -> Self {
        Self { moving: prefixes.to_vec(), ..self }
    }

    /// Whether a packet may come to a place, with this port in it.
    pub fn permit(&self, claim: &Claim, place: Place, port: Option<u16>) -> bool {
        let [from, mut to] = claim.ends;
        to.1 = port.unwrap_or(to.1);
        if self.without_table && self.is_open_without_table(claim, place)
            || self.is_to_link(claim, place)
        {
            return true;
        }
        if !is_peer(claim.from) && !is_peer(place) {
            return !self.is_of_tunnel(from.0);
        }
        let leads_there =
            [to.0, claim.addressed_to].iter().any(|address| self.leads_to(*address, place));
        // What the gateway answers to a refused packet goes by the same routes.
        if self.moves(from.0) && place != Place::Gateway && self.holder(to.0) != Some(place) {
            return true;
        }
        if self.is_answer_without_ports(claim, place) {
            return true;
        }
        if claim.never || !leads_there {
            return false;
        }
        if !self.owns(claim.from, from.0) {
            return false;
        }
        if let Some(flow) = &claim.about {
            let moves = [flow.client, flow.service].iter().any(|end| self.moves(end.0));
            return moves && place == Place::Lan || self.permit_error(claim.from, flow);
        }
        self.may_open(claim.from, claim.protocol, from, to)
            || claim.is_of_flow && self.may_open(place, claim.protocol, to, from)
    }

    /// Whether this place may open such a flow.
    pub fn may_open(&self, place: Place, protocol: Protocol, client: End, service: End) -> bool {
        match place {
            Place::Peer(_) => {
                let request = Packet { protocol, turn: Turn::Request, number: 0, client, service };
                self.owns(place, client.0)
                    && self.reference.verdict(place, &request) == Verdict::Allow
            }
            Place::Lan => self.inbound,
            Place::Gateway => self.inbound || client.1 >= FIRST_CHOSEN_PORT,
        }
    }

    /// Where packets to this address come out.
    pub fn holder(&self, address: IpAddr) -> Option<Place> {
        if gateway_addresses().contains(&address) || is_of_links(address) {
            return Some(Place::Gateway);
        }
        if is_diverted(address) {
            return Some(Place::Lan);
        }
        if let Some(peer) = self.peer_of(address) {
            return Some(peer);
        }
        let is_held =
            TUNNEL.iter().any(|network| network.parse::<IpNet>().unwrap().contains(&address))
                || WAN.iter().any(|wan| wan.parse::<IpAddr>().unwrap() == address)
                || address.is_loopback()
                || address == IpAddr::from([0; 4]);
        (!is_held).then_some(Place::Lan)
    }

    /// The peer that has the longest prefix around an address, wherever the host routes it.
    pub fn peer_of(&self, address: IpAddr) -> Option<Place> {
        let fits = |prefix: &&IpNet| prefix.contains(&address);
        let of_peer = |peer: usize| {
            let longest = self.prefixes[peer].iter().filter(fits).map(IpNet::prefix_len).max();
            longest.map(|len| (len, Place::Peer(peer)))
        };
        (0..PEERS).filter_map(of_peer).max().map(|(_, peer)| peer)
    }

    /// Whether this is an address that only peers have.
    fn is_of_tunnel(&self, address: IpAddr) -> bool {
        let pool: IpNet = POOL.parse().unwrap();
        match self.holder(address) {
            Some(holder) => is_peer(holder),
            None => pool.contains(&address),
        }
    }

    fn leads_to(&self, address: IpAddr, place: Place) -> bool {
        self.holder(address) == Some(place) || place == Place::Lan && self.moves(address)
    }

    fn moves(&self, address: IpAddr) -> bool {
        self.moving.iter().any(|prefix| prefix.contains(&address))
    }

    fn owns(&self, place: Place, address: IpAddr) -> bool {
        self.holder(address) == Some(place)
            || is_diverted(address) && self.peer_of(address) == Some(place)
    }

    /// A peer may tell something about flows into the tunnel, and about one of a peer's that it might
    /// open itself. Who is outside may tell something about any flow that passes.
    fn permit_error(&self, teller: Place, flow: &Flow) -> bool {
        let in_tunnel = |end: End| self.holder(end.0).is_some_and(is_peer) || is_diverted(end.0);
        if is_peer(teller) && !in_tunnel(flow.client) && !in_tunnel(flow.service) {
            return false;
        }
        // Once the kernel has forgotten a flow, its next packet may open it the other way round.
        [[flow.client, flow.service], [flow.service, flow.client]].into_iter().any(|[from, to]| {
            let opener = self.holder(from.0);
            let passes =
                opener.is_some_and(|opener| self.may_open(opener, flow.protocol, from, to));
            let might_open_it = || {
                let own = |peer: usize| self.prefixes[peer].iter().map(IpNet::addr);
                let Place::Peer(peer) = teller else { return true };
                own(peer)
                    .filter(|own| own.is_ipv4() == to.0.is_ipv4())
                    .any(|own| self.may_open(teller, flow.protocol, (own, from.1), to))
            };
            passes && (in_tunnel(to) || might_open_it())
        })
    }

    /// Whether a LAN host sends it to the gateway's own address of a link, or it is an error about that:
    /// there the kernel does not tell where the source is routed, a known limit.
    fn is_to_link(&self, claim: &Claim, place: Place) -> bool {
        let [from, to] = claim.ends;
        let is_link = matches!(to.0, IpAddr::V6(address) if address.is_unicast_link_local());
        let is_back = self.holder(from.0) == Some(place);
        claim.from == Place::Lan && is_link && (is_back || place == Place::Gateway)
    }

    /// Whether it may answer a peer's flow that is translated, and that only addresses tell from others.
    fn is_answer_without_ports(&self, claim: &Claim, place: Place) -> bool {
        let Place::Peer(peer) = place else { return false };
        let [from, to] = claim.ends;
        let opens = |own: &IpNet| {
            own.addr().is_ipv4() == from.0.is_ipv4()
                && self.may_open(place, claim.protocol, (own.addr(), to.1), from)
        };
        claim.kind == "odd"
            && claim.from == Place::Lan
            && gateway_addresses().contains(&claim.addressed_to)
            && self.prefixes[peer].iter().any(opens)
    }

    /// Without a table, flows with the gateway itself are judged by no rule, nor is what other links
    /// send to prefixes outside the pool.
    fn is_open_without_table(&self, claim: &Claim, place: Place) -> bool {
        let pool: IpNet = POOL.parse().unwrap();
        match (claim.from, place) {
            (Place::Peer(peer), Place::Gateway) => {
                let source = claim.ends[0].0;
                let is_around = self.prefixes[peer].iter().any(|has| has.contains(&source));
                self.owns(claim.from, source) || is_around && self.moves(source)
            }
            (_, Place::Gateway) => true,
            (Place::Gateway, _) => true,
            (Place::Lan, Place::Peer(peer)) => {
                // The second: as an answer of the gateway's.
                [claim.addressed_to, claim.ends[0].0].iter().enumerate().any(|(at, to)| {
                    let is_around = self.prefixes[peer].iter().any(|has| has.contains(to));
                    is_around && (at == 1 || !pool.contains(to))
                })
            }
            _ => false,
        }
    }
}

/// Whether another program routes it to the LAN, although a peer has it.
pub fn is_diverted(address: IpAddr) -> bool {
    DIVERTED.iter().any(|prefix| prefix.parse::<IpNet>().unwrap().contains(&address))
}

/// Whether the gateway itself takes in what is sent to it by any link: addresses of many, of links, and
/// of any router.
fn is_of_links(address: IpAddr) -> bool {
    let [network4, network6] = TUNNEL.map(|network| network.parse::<IpNet>().unwrap());
    address.is_multicast()
        || [network4.network(), network4.broadcast(), network6.network()].contains(&address)
        || match address {
            IpAddr::V4(address) => address.is_broadcast(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
}

pub const fn is_peer(place: Place) -> bool {
    matches!(place, Place::Peer(_))
}
