//! Packets that a hostile peer, a hostile LAN host, and the gateway's own services send.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::permit::{Claim, DIVERTED, End, Flow, Rules};
use super::wire::{self, Body, octets, packet, payload};
use crate::lab::{self, PEERS, Place};
use crate::packet::Protocol;
use crate::probe::SERVICE_PORTS;
use crate::set::Chance;

/// Bytes that one of them sends, and what they claim.
pub struct Shot {
    pub packets: Vec<Vec<u8>>,
    pub claim: Claim,
    /// The flow that it belongs to.
    pub flow: Option<usize>,
}

/// What a sender knows.
pub struct View<'a> {
    /// Addresses that mean something to the rules.
    pub addresses: &'a [IpAddr],
    pub flows: &'a [Flow],
    /// Of the sender.
    pub own: &'a [IpAddr],
    /// What others may do.
    pub rules: &'a Rules,
}

const LAN_SOURCES: [&str; 4] = ["10.20.30.40", "8.8.4.4", "fd20::40", "2a00::1"];
const ODD_SOURCES: [&str; 9] = [
    "10.0.2.99",
    "fd64::299",
    "127.0.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "fe80::1",
    "ff02::1",
];
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// With those of a reset, an end, a push, and none.
const FLAGS: [u8; 7] = [SYN, SYN | ACK, ACK, 0x18, 0x04, 0x11, 0];
const FRAGMENTED_BYTES: usize = 600;

/// Addresses that are the LAN's.
pub fn lan_sources() -> Vec<IpAddr> {
    LAN_SOURCES.iter().map(|source| source.parse().unwrap()).chain(diverted()).collect()
}

/// Those of them that are in sites of peers, too.
fn diverted() -> impl Iterator<Item = IpAddr> {
    DIVERTED.into_iter().map(|prefix| prefix.parse::<IpNet>().unwrap().hosts().nth(5).unwrap())
}

/// Any packet of this number.
pub fn any(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    match chance.numbers.u8(..14) {
        0..3 => request(from, view, number, chance),
        3..6 => of_flow(from, view, number, chance),
        6..8 => error(from, view, number, chance),
        8..10 => fragments(from, view, number, chance),
        10..12 => as_another(from, view, number, chance),
        12 => with_headers(from, view, number, chance),
        _ => odd(from, view, number, chance),
    }
}

/// What a peer may send, sent by anyone else.
fn as_another(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    const TRIES: usize = 32;
    let of_tunnel: Vec<IpAddr> = (0..PEERS).flat_map(lab::sources).chain(diverted()).collect();
    for _ in 0..TRIES {
        let ends = ends(&View { own: &of_tunnel, ..*view }, number, chance);
        let protocol = any_protocol(chance);
        let may = view
            .rules
            .peer_of(ends[0].0)
            .filter(|peer| *peer != from && view.rules.may_open(*peer, protocol, ends[0], ends[1]));
        let crosses = ![Some(from), may].contains(&view.rules.holder(ends[1].0));
        if may.is_some() && crosses {
            let body = opening(protocol, ends, &payload(number, 1));
            let claim = Claim::new("as another", from, protocol, ends);
            return alone(packet(ends[0].0, ends[1].0, &[], &body), claim);
        }
    }
    request(from, view, number, chance)
}

/// The first packet of a flow.
fn opening(protocol: Protocol, ends: [End; 2], mark: &[u8]) -> Body {
    match protocol {
        Protocol::Tcp => Body::tcp(ends, SYN, mark),
        Protocol::Udp => Body::udp(ends, mark),
        Protocol::Icmp => {
            let kind = if ends[0].0.is_ipv4() { 8 } else { 128 };
            let [high, low] = ends[0].1.to_be_bytes();
            Body::icmp(ends, kind, 0, [high, low, 0, 0], mark)
        }
    }
}

/// What one end of a flow sends by right: the client its first packet, the service the answer to it.
pub fn honest(from: Place, flow: &Flow, back: bool, number: u32) -> Shot {
    let mark = payload(number, 1);
    let mut ends = [flow.client, flow.service];
    let mut shown = [flow.outside.unwrap_or(flow.client), flow.service];
    if back {
        ends.reverse();
        shown.reverse();
    }
    let shown = if back && from == Place::Lan { shown } else { ends };
    let body = match flow.protocol {
        Protocol::Tcp => Body::tcp(shown, if back { SYN | ACK } else { SYN }, &mark),
        Protocol::Udp => Body::udp(shown, &mark),
        Protocol::Icmp => echo(shown, back, &mark),
    };
    let mut claim = Claim::new("honest", from, flow.protocol, ends);
    claim.is_of_flow = true;
    claim.addressed_to = shown[1].0;
    alone(packet(shown[0].0, shown[1].0, &[], &body), claim)
}

fn alone(packet: Vec<u8>, claim: Claim) -> Shot {
    Shot { packets: vec![packet], claim, flow: None }
}

/// A source, mostly the sender's own, and a destination of its family.
fn ends(view: &View<'_>, number: u32, chance: &mut Chance) -> [End; 2] {
    let port = *chance.numbers.choice(&SERVICE_PORTS).unwrap();
    loop {
        let to = *chance.numbers.choice(view.addresses).unwrap();
        let from = match chance.numbers.u8(..5) {
            0 => ODD_SOURCES[chance.numbers.usize(..ODD_SOURCES.len())].parse().unwrap(),
            1 => *chance.numbers.choice(view.addresses).unwrap(),
            _ => *chance.numbers.choice(view.own).unwrap(),
        };
        if from.is_ipv4() == to.is_ipv4() {
            return [(from, 1024 + (number % 30_000) as u16), (to, port)];
        }
    }
}

fn body(protocol: Protocol, ends: [End; 2], mark: &[u8], chance: &mut Chance) -> Body {
    let is_ipv4 = ends[0].0.is_ipv4();
    match protocol {
        Protocol::Udp => Body::udp(ends, mark),
        Protocol::Tcp => Body::tcp(ends, *chance.numbers.choice(&FLAGS).unwrap(), mark),
        Protocol::Icmp => {
            let kinds = if is_ipv4 { [8, 0] } else { [128, 129] };
            let kind = kinds[usize::from(chance.once_in(4))];
            let [high, low] = ends[0].1.to_be_bytes();
            Body::icmp(ends, kind, 0, [high, low, 0, 0], mark)
        }
    }
}

fn request(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    let ends = ends(view, number, chance);
    let protocol = any_protocol(chance);
    let body = body(protocol, ends, &payload(number, 1), chance);
    alone(packet(ends[0].0, ends[1].0, &[], &body), Claim::new("request", from, protocol, ends))
}

fn any_protocol(chance: &mut Chance) -> Protocol {
    *chance.numbers.choice(&[Protocol::Icmp, Protocol::Tcp, Protocol::Udp]).unwrap()
}

/// A packet that one of a flow's ends might send, whichever end really sends it.
fn of_flow(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    let Some(at) = any_flow(view, chance) else { return request(from, view, number, chance) };
    let flow = &view.flows[at];
    let mut ends = [flow.client, flow.service];
    let back = chance.once_in(2);
    if back {
        ends.reverse();
    }
    let mut shown = ends;
    // Who is outside sees a translated flow.
    if let Some(outside) = flow.outside.filter(|_| back && from == Place::Lan) {
        shown[1] = outside;
    }
    let body = flow_body(flow.protocol, shown, back, &payload(number, 1), chance);
    let mut claim = Claim::new("packet of a flow", from, flow.protocol, ends);
    claim.is_of_flow = true;
    claim.addressed_to = shown[1].0;
    Shot { flow: Some(at), ..alone(packet(shown[0].0, shown[1].0, &[], &body), claim) }
}

fn any_flow(view: &View<'_>, chance: &mut Chance) -> Option<usize> {
    (!view.flows.is_empty()).then(|| chance.numbers.usize(..view.flows.len()))
}

fn flow_body(
    protocol: Protocol,
    ends: [End; 2],
    back: bool,
    mark: &[u8],
    chance: &mut Chance,
) -> Body {
    match protocol {
        Protocol::Icmp => echo(ends, back, mark),
        _ => body(protocol, ends, mark, chance),
    }
}

fn echo(ends: [End; 2], back: bool, mark: &[u8]) -> Body {
    let kind = match (ends[0].0.is_ipv4(), back) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    let [high, low] = ends[usize::from(back)].1.to_be_bytes();
    Body::icmp(ends, kind, 0, [high, low, 0, 0], mark)
}

/// An ICMP error to one end of a flow about a packet that it sent.
fn error(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    const REDIRECT: u8 = 5;
    let Some(at) = any_flow(view, chance) else { return request(from, view, number, chance) };
    let flow = view.flows[at].clone();
    let of_service = chance.once_in(2);
    let mut quoted = [flow.client, flow.service];
    let outside = flow.outside.filter(|_| chance.once_in(2) || of_service);
    quoted[0] = outside.unwrap_or(flow.client);
    if of_service {
        quoted.reverse();
    }
    let mark = payload(number, 1);
    let inner = flow_body(flow.protocol, quoted, of_service, &mark, chance);
    let inner = packet(quoted[0].0, quoted[1].0, &[], &inner);
    let source = own_like(quoted[0].0, view, chance);
    let told = [(source, 0), (quoted[0].0, 0)];
    let kinds: &[(u8, u8)] = match source {
        IpAddr::V4(_) => &[(3, 4), (3, 1), (3, 3), (11, 0), (12, 0), (REDIRECT, 1), (4, 0)],
        IpAddr::V6(_) => &[(2, 0), (1, 0), (1, 4), (3, 0), (4, 1)],
    };
    let (kind, code) = *chance.numbers.choice(kinds).unwrap();
    let rest = if kind == REDIRECT { [10, 0, 2, 10] } else { [0, 0, 5, 10] };
    let body = Body::icmp(told, kind, code, rest, &inner);
    let victim = if of_service { flow.service } else { flow.client };
    let mut claim = Claim::new("error", from, flow.protocol, [(source, 0), victim]);
    claim.addressed_to = quoted[0].0;
    claim.never = kind == REDIRECT && source.is_ipv4() && from != Place::Lan;
    claim.about = Some(flow);
    alone(packet(source, quoted[0].0, &[], &body), claim)
}

/// A source of the sender's, of this family; now and then another's.
fn own_like(to: IpAddr, view: &View<'_>, chance: &mut Chance) -> IpAddr {
    let among = if chance.once_in(5) { view.addresses } else { view.own };
    let fitting: Vec<_> = among.iter().filter(|own| own.is_ipv4() == to.is_ipv4()).collect();
    chance.numbers.choice(fitting).map_or(to, |own| *own)
}

/// A datagram in parts: in another order, overlapping, with another port behind the first one, or
/// with a part missing.
fn fragments(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    let ends = ends(view, number, chance);
    let mark = payload(number, FRAGMENTED_BYTES);
    let body = Body::udp(ends, &mark);
    let other_port = SERVICE_PORTS[usize::from(ends[1].1 == SERVICE_PORTS[0])];
    let other = Body::udp([ends[0], (ends[1].0, other_port)], &mark);
    let id = number as u16;
    let end = body.bytes.len();
    let part = |body: &Body, first: usize, after: usize| {
        wire::fragment(ends[0].0, ends[1].0, body, first..after, after == end, id)
    };
    let head = |body: &Body| part(body, 0, 304);
    let tail = part(&body, 304, end);
    let packets = match chance.numbers.u8(..8) {
        0 => vec![head(&body), tail],
        1 => vec![tail, head(&body)],
        2 => vec![head(&body), part(&body, 296, end)],
        3 => vec![head(&body), head(&other), tail],
        4 => vec![head(&other), part(&body, 0, 8), part(&body, 8, end)],
        5 => vec![part(&body, 0, 8), part(&body, 8, end)],
        6 => vec![tail.clone(), tail],
        _ => vec![part(&body, 0, 40), part(&other, 0, 304), tail],
    };
    Shot { packets, claim: Claim::new("fragments", from, Protocol::Udp, ends), flow: None }
}

/// A packet with extension headers, or with options: source routes to another place among them, mostly by
/// way of the gateway, which would lead it on.
fn with_headers(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    let gateway = lab::gateway_addresses();
    let addresses = if chance.once_in(3) { view.addresses } else { &gateway[..] };
    let ends = ends(&View { addresses, ..*view }, number, chance);
    let protocol = any_protocol(chance);
    let body = body(protocol, ends, &payload(number, 1), chance);
    let claim = Claim::new("with headers", from, protocol, ends);
    if ends[1].0.is_ipv6() {
        let via = own_of_family(view.addresses, false, chance);
        let body = body.behind(&headers(ends[1].0, via, chance));
        return alone(packet(ends[0].0, ends[1].0, &[], &body), claim);
    }
    let IpAddr::V4(via) = own_of_family(view.addresses, true, chance) else { unreachable!() };
    let options = options(via, chance);
    alone(packet(ends[0].0, ends[1].0, &options, &body), claim)
}

fn own_of_family(addresses: &[IpAddr], ipv4: bool, chance: &mut Chance) -> IpAddr {
    let fitting: Vec<_> = addresses.iter().filter(|at| at.is_ipv4() == ipv4).collect();
    **chance.numbers.choice(&fitting).unwrap()
}

fn options(via: Ipv4Addr, chance: &mut Chance) -> Vec<u8> {
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    let route = |kind: u8| [&[kind, 7, 4], &via.octets()[..], &[0]].concat();
    let travelled = |next: u8| {
        let places = [[192, 0, 2, 1], via.octets()].concat();
        [&[LOOSE_SOURCE_ROUTE, 11, next], &places[..], &[0]].concat()
    };
    match chance.numbers.u8(..6) {
        0 => route(LOOSE_SOURCE_ROUTE),
        1 => route(STRICT_SOURCE_ROUTE),
        2 => travelled(8),
        // It has come to its end: an answer takes it back.
        3 => travelled(12),
        // Records the route.
        4 => [&[7, 39, 4][..], &[0; 37]].concat(),
        // Asks routers to look at it.
        _ => vec![148, 4, 0, 0],
    }
}

fn headers(to: IpAddr, via: IpAddr, chance: &mut Chance) -> Vec<(u8, &'static [u8])> {
    const PADDING: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let route = |kind: u8| -> &'static [u8] {
        [&[2, kind, 1, 0, 0, 0, 0], &octets(via)[..]].concat().leak()
    };
    let segments = || -> &'static [u8] {
        [&[4, 4, 1, 1, 0, 0, 0], &octets(via)[..], &octets(to)].concat().leak()
    };
    match chance.numbers.u8(..9) {
        0 => vec![(HOP_BY_HOP, PADDING)],
        1 => vec![(DESTINATION, PADDING), (DESTINATION, PADDING)],
        2 => vec![(FRAGMENT, &[0, 0, 0, 0, 0, 0, 9])],
        3 => vec![(DESTINATION, PADDING), (FRAGMENT, &[0, 0, 0, 0, 0, 0, 8])],
        4 => vec![(AUTHENTICATION, &[2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0])],
        5 => vec![(ROUTING, route(0))],
        6 => vec![(ROUTING, route(2))],
        7 => vec![(HOP_BY_HOP, PADDING), (ROUTING, segments())],
        _ => vec![(ROUTING, segments())],
    }
}

/// Other protocols, packets within packets, and what neighbours on a link tell each other.
fn odd(from: Place, view: &View<'_>, number: u32, chance: &mut Chance) -> Shot {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_REDIRECT: u8 = 137;
    const TIMESTAMP: u8 = 13;
    let ends = ends(view, number, chance);
    let mark = payload(number, 40);
    let is_ipv4 = ends[0].0.is_ipv4();
    let mut claim = Claim::new("odd", from, Protocol::Tcp, ends);
    let body = match chance.numbers.u8(..4) {
        0 => Body { protocol: wire::OTHER, bytes: mark },
        1 => {
            let target = own_of_family(view.addresses, is_ipv4, chance);
            let inner = [ends[0], (target, ends[1].1)];
            let inner = packet(inner[0].0, inner[1].0, &[], &Body::udp(inner, &mark));
            let protocol = if is_ipv4 { wire::IP_IN_IP } else { wire::IP6_IN_IP };
            Body { protocol, bytes: inner }
        }
        2 if is_ipv4 => Body::icmp(ends, TIMESTAMP, 0, [0; 4], &mark),
        3 if is_ipv4 => Body { protocol: wire::NO_NEXT_HEADER, bytes: mark },
        2 => Body::icmp(ends, ROUTER_ADVERTISEMENT, 0, [64, 0, 255, 255], &mark),
        _ => Body::icmp(ends, NEIGHBOUR_REDIRECT, 0, [0; 4], &mark),
    };
    claim.never = body.protocol == wire::ICMP6 && from != Place::Lan;
    // Without ports, all packets between two addresses are one flow.
    claim.is_of_flow = true;
    alone(packet(ends[0].0, ends[1].0, &[], &body), claim)
}

/// Addresses of all places, some that none has, and those that the rules name.
pub fn addresses(of_rules: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let unused = ["10.0.2.99", "fd64::299", "10.0.1.2", "fd64::102"];
    let unused = unused.map(|at| at.parse::<IpAddr>().unwrap());
    let mut addresses: Vec<IpAddr> = (0..PEERS).flat_map(lab::sources).collect();
    addresses.extend(lab::gateway_addresses());
    addresses.extend(lan_sources());
    addresses.extend(unused);
    addresses.extend(of_rules);
    addresses
}
