//! Packets that ask to be led on from the gateway, to where no policy lets their sender go: source routes
//! of IPv4 and routing headers of IPv6, on a host whose administrator allows them.

use std::net::IpAddr;

use super::netns::Netns;
use super::network::{GATEWAY4, GATEWAY6, LAN4, LAN6, Network, pings};
use super::packets::{network, nothing, world};
use super::raw::{Ear, ip, send, udp};
use super::table::{base, profile};

const ALICE: [&str; 2] = ["10.64.0.2", "fd64::2"];
const GATEWAY: [&str; 2] = [GATEWAY4, GATEWAY6];
const GATEWAY_IN_LAN: [&str; 2] = ["172.16.1.1", "fd10::1"];
const BOB: [&str; 2] = ["10.64.0.3", "fd64::3"];
const LOOSE: u8 = 131;
const STRICT: u8 = 137;
/// Where a route's next address stands: the first one, the second one, or behind the only one.
const FIRST: u8 = 4;
const SECOND: u8 = 8;
/// Where it stands when a route of two addresses is travelled.
const TRAVELLED: u8 = 12;
const UDP_PORT: u16 = 40_002;

/// A packet to the gateway, and where it would come if it were led on.
struct Led<'a> {
    packet: Vec<u8>,
    hearer: &'a Netns,
    ear: fn(&'a Netns, &str) -> Ear<'a>,
    heard: String,
}

#[test]
fn no_packet_of_a_peer_is_led_on_from_the_gateway() {
    let mut network = network(&base(), &world(profile(&GATEWAY, &[]), nothing()));
    allow_routes(&network);
    assert!(pings(&network.gateway, LAN4) && pings(&network.gateway, LAN6), "neighbours");
    for (at, gateway) in GATEWAY.into_iter().enumerate() {
        for led in all(&network, at) {
            let ear = (led.ear)(led.hearer, &led.heard);
            send(&network.alice, gateway, &led.packet);
            assert!(!ear.hears(), "{} came: {:02x?}", led.heard, led.packet);
        }
        assert!(pings(&network.alice, gateway), "the gateway answers as before");
    }
    // Without the rules this host leads all of them on.
    network.nft.remove_table().unwrap();
    for (at, gateway) in GATEWAY.into_iter().enumerate() {
        for led in all(&network, at) {
            let ear = (led.ear)(led.hearer, &led.heard);
            send(&network.alice, gateway, &led.packet);
            ear.must_hear(&format!("{} comes: {:02x?}", led.heard, led.packet));
        }
    }
}

#[test]
fn no_refusal_takes_the_way_of_a_source_route_back() {
    let mut network = network(&base(), &world(profile(&GATEWAY, &[]), nothing()));
    allow_routes(&network);
    let denied = || udp((ALICE[0], 40_001), (LAN4, UDP_PORT));
    // As if it had come by way of Bob: the answer would go there first.
    let led = || with_source_route(denied(), LOOSE, TRAVELLED, &["192.0.2.1", BOB[0]]);
    let refusal = |to| format!("ip daddr {to} icmp type destination-unreachable");
    let at_bob = || Ear::of_arrivals(&network.bob, &refusal(BOB[0]));
    let ear = at_bob();
    send(&network.alice, LAN4, &led());
    assert!(!ear.hears(), "the refusal went to another peer");
    let ear = Ear::new(&network.alice, &refusal(ALICE[0]));
    send(&network.alice, LAN4, &denied());
    ear.must_hear("others are refused as before");
    // A firewall that refuses it with an answer sends that to Bob.
    network.nft.remove_table().unwrap();
    network.gateway.load(
        "table inet other { chain forward { type filter hook forward priority 0; \
         iifname wg0 reject with icmpx admin-prohibited; }; }",
    );
    let ear = at_bob();
    send(&network.alice, LAN4, &led());
    ear.must_hear("an answer takes the way back on this kernel");
}

fn allow_routes(network: &Network) {
    for netns in [&network.gateway, &network.lan, &network.bob] {
        netns.run(
            "for conf in /proc/sys/net/ipv4/conf/*/accept_source_route \
                 /proc/sys/net/ipv6/conf/*/accept_source_route /proc/sys/net/ipv6/conf/*/seg6_enabled
             do echo 1 >$conf; done",
        );
    }
}

fn all<'a>(network: &'a Network, at: usize) -> Vec<Led<'a>> {
    let datagram = || udp((ALICE[at], 40_001), (GATEWAY[at], UDP_PORT));
    let led = |hearer: &'a Netns, next: &str, routed: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let ip = if at == 0 { "ip" } else { "ip6" };
        let heard = format!("{ip} daddr {next} udp dport {UDP_PORT}");
        let is_gateway = std::ptr::eq(hearer, &network.gateway);
        let ear = if is_gateway { Ear::new } else { Ear::of_arrivals };
        Led { packet: routed(datagram()), hearer, ear, heard }
    };
    if at == 1 {
        let header = |next: &str| {
            let next = next.to_owned();
            move |packet| with_routing_header(packet, &next)
        };
        return vec![
            led(&network.lan, LAN6, &header(LAN6)),
            led(&network.bob, BOB[1], &header(BOB[1])),
        ];
    }
    let option = |kind: u8, next_at: u8, route: &'static [&'static str]| {
        move |packet| with_source_route(packet, kind, next_at, route)
    };
    let mut ping = Vec::new();
    ip(ALICE[0], GATEWAY4).icmpv4_echo_request(7, 1).write(&mut ping, b"answer").unwrap();
    vec![
        led(&network.lan, LAN4, &option(LOOSE, FIRST, &[LAN4])),
        led(&network.lan, LAN4, &option(STRICT, FIRST, &[LAN4])),
        led(&network.bob, BOB[0], &option(LOOSE, FIRST, &[BOB[0]])),
        led(&network.lan, LAN4, &option(LOOSE, SECOND, &["192.0.2.1", LAN4])),
        led(&network.gateway, GATEWAY_IN_LAN[0], &option(LOOSE, FIRST, &[GATEWAY_IN_LAN[0]])),
        // The answer takes the same way back.
        Led {
            packet: with_source_route(ping, LOOSE, SECOND, &[LAN4]),
            hearer: &network.lan,
            ear: Ear::of_arrivals,
            heard: format!("ip daddr {LAN4} icmp type echo-reply"),
        },
    ]
}

/// Puts the option into an IPv4 packet without options.
fn with_source_route(mut packet: Vec<u8>, kind: u8, next_at: u8, route: &[&str]) -> Vec<u8> {
    const HEADER_BYTES: usize = 20;
    let addresses = route.iter().flat_map(|address| octets(address));
    let length = u8::try_from(3 + route.len() * 4).unwrap();
    let option: Vec<u8> = [kind, length, next_at].into_iter().chain(addresses).chain([0]).collect();
    packet[0] += u8::try_from(option.len() / 4).unwrap();
    packet.splice(HEADER_BYTES..HEADER_BYTES, option);
    // The kernel writes length and checksum itself.
    packet
}

/// Puts a segment routing header into an IPv6 packet: to its destination, then on to `next`.
fn with_routing_header(mut packet: Vec<u8>, next: &str) -> Vec<u8> {
    const LENGTH: std::ops::Range<usize> = 4..6;
    const NEXT_HEADER: usize = 6;
    const DESTINATION: std::ops::Range<usize> = 24..40;
    const HEADER_BYTES: usize = 40;
    const ROUTING: u8 = 43;
    const SEGMENTS: u8 = 4;
    let protocol = std::mem::replace(&mut packet[NEXT_HEADER], ROUTING);
    let mut header = vec![protocol, 4, SEGMENTS, 1, 1, 0, 0, 0];
    header.extend(octets(next));
    header.extend_from_slice(&packet[DESTINATION]);
    let length = u16::try_from(packet.len() - HEADER_BYTES + header.len()).unwrap();
    packet[LENGTH].copy_from_slice(&length.to_be_bytes());
    packet.splice(HEADER_BYTES..HEADER_BYTES, header);
    packet
}

fn octets(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}
