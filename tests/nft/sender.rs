//! Who really sent a packet: forged sources, and ICMP errors about the flows of others.

use std::net::UdpSocket;
use std::time::Duration;

use gatepost::model::{FirewallBase, Masquerade};

use super::netns::Netns;
use super::network::{GATEWAY4, GATEWAY6, LAN4, LAN6, Network, bind, pings};
use super::packets::{network, nothing, world};
use super::raw::{Ear, SMALL_MTU, send, too_big, udp};
use super::services::eventually;
use super::table::{base, load, networks, profile};

const ALICE: [&str; 2] = ["10.64.0.2", "fd64::2"];
const BOB: [&str; 2] = ["10.64.0.3", "fd64::3"];
const GATEWAY: [&str; 2] = [GATEWAY4, GATEWAY6];
const GATEWAY_IN_LAN: [&str; 2] = ["172.16.1.1", "fd10::1"];
const LAN: [&str; 2] = [LAN4, LAN6];
const ALL_OF_LAN: [&str; 2] = ["172.16.1.0/24", "fd10::/64"];
const ERRORS: [&str; 2] = ["icmp type destination-unreachable", "icmpv6 type packet-too-big"];
const HERE: u16 = 40_001;
const THERE: u16 = 40_002;

fn untranslated() -> FirewallBase {
    FirewallBase { masquerade: Masquerade::None, ..base() }
}

/// A flow that goes both ways: two sockets that know each other.
fn flow(opener: (&Netns, &str), answerer: (&Netns, &str)) -> (UdpSocket, UdpSocket) {
    let (from, to) = (bind(opener.0, opener.1, HERE), bind(answerer.0, answerer.1, THERE));
    from.connect(to.local_addr().unwrap()).unwrap();
    to.connect(from.local_addr().unwrap()).unwrap();
    bring(b"?", &from, &to);
    bring(b"!", &to, &from);
    (from, to)
}

/// Sends a datagram until it arrives: a kernel that looks for its neighbour may lose the first.
fn bring(datagram: &[u8], from: &UdpSocket, to: &UdpSocket) {
    to.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let arrives = || {
        from.send(datagram).unwrap();
        to.recv(&mut [0; 8]).is_ok()
    };
    assert!((0..20).any(|_| arrives()), "{datagram:?} never arrived");
    to.set_read_timeout(None).unwrap();
}

/// This peer sends an error about a packet: what of it reaches the packet's sender.
fn tells<'a>(
    network: &'a Network,
    at: usize,
    teller: (&Netns, &str),
    packet: [(&str, u16); 2],
) -> Ear<'a> {
    let [(sender, _), _] = packet;
    let receiver = if sender == LAN[at] { &network.lan } else { &network.alice };
    let ear = Ear::new(receiver, ERRORS[at]);
    let [from, to] = packet;
    send(teller.0, sender, &too_big(teller.1, &udp(from, to), sender));
    ear
}

#[test]
fn only_peers_that_might_open_a_flow_send_errors_about_it() {
    for at in 0..2 {
        let [alice, bob, lan] = [ALICE[at], BOB[at], LAN[at]];
        let mut network = network(&untranslated(), &world(profile(&ALL_OF_LAN, &[]), nothing()));
        let _flow = flow((&network.alice, alice), (&network.lan, lan));
        let (to_lan, to_alice) = ([(alice, HERE), (lan, THERE)], [(lan, THERE), (alice, HERE)]);
        for packet in [to_lan, to_alice] {
            let ear = tells(&network, at, (&network.bob, bob), packet);
            assert!(!ear.hears(), "{bob} about {packet:?}");
        }
        tells(&network, at, (&network.alice, alice), to_alice).must_hear("Alice's own path");
        let both = world(profile(&ALL_OF_LAN, &[]), profile(&ALL_OF_LAN, &[]));
        network.nft.apply(&load(&untranslated(), &both), None).unwrap();
        tells(&network, at, (&network.bob, bob), to_alice).must_hear("Bob may go there");
    }
}

#[test]
fn no_peer_tells_errors_about_flows_outside_the_tunnel() {
    for at in 0..2 {
        let (bob, lan, gateway) = (BOB[at], LAN[at], GATEWAY_IN_LAN[at]);
        for allow_inbound in [false, true] {
            let base = FirewallBase { allow_inbound, ..untranslated() };
            let network = network(&base, &world(nothing(), profile(&ALL_OF_LAN, &[])));
            let _flow = flow((&network.gateway, gateway), (&network.lan, lan));
            let packet = udp((gateway, HERE), (lan, THERE));
            send(&network.bob, gateway, &too_big(bob, &packet, gateway));
            let route = network.gateway.run(&format!("ip route get {lan}"));
            assert!(!route.contains("mtu"), "a peer changed the gateway's own path: {route}");
        }
    }
}

#[test]
fn a_router_behind_a_site_peer_tells_the_size_of_the_path() {
    const SITE: [&str; 2] = ["10.9.0.0/16", "fd65::/32"];
    const ROUTER: [&str; 2] = ["10.9.0.1", "fd65::1"];
    const HOST: [&str; 2] = ["10.9.8.8", "fd65::8"];
    let mut world = world(profile(&ALL_OF_LAN, &[]), nothing());
    world.1.extend(SITE.map(|site| (site.parse().unwrap(), gatepost::model::ProfileId(1))));
    for at in 0..2 {
        let (host, lan, via) = (HOST[at], LAN[at], ALICE[at]);
        let network = network(&untranslated(), &world);
        network.gateway.run(&format!("ip route add {} via {via}", SITE[at]));
        network.alice.add_address(host, "v0");
        let from_site = flow((&network.alice, host), (&network.lan, lan));
        let router = (&network.alice, ROUTER[at]);
        let answer = [(lan, THERE), (host, HERE)];
        tells(&network, at, router, answer).must_hear("about an answer to the site");
        drop(from_site);
        let gateway = GATEWAY[at];
        let _flow = flow((&network.gateway, gateway), (&network.alice, host));
        let packet = udp((gateway, HERE), (host, THERE));
        send(&network.alice, gateway, &too_big(ROUTER[at], &packet, gateway));
        eventually("about the gateway's own packet", || {
            let route = network.gateway.run(&format!("ip route get {host}"));
            route.contains(&format!("mtu {}", SMALL_MTU[at]))
        });
    }
}

#[test]
fn no_other_link_brings_a_packet_of_a_peer() {
    for at in 0..2 {
        let [alice, bob, lan] = [ALICE[at], BOB[at], LAN[at]];
        let to_bob = profile(&[BOB[0], BOB[1], GATEWAY[0], GATEWAY[1]], &[]);
        // The other family's addresses are site prefixes: the pool has only one.
        let base = FirewallBase { networks: networks(&["fd64::/64"]), ..base() };
        let network = network(&base, &world(to_bob, nothing()));
        assert!(pings(&network.lan, GATEWAY_IN_LAN[at]), "the neighbours know each other");
        let _flow = flow((&network.alice, alice), (&network.bob, bob));
        let ear = Ear::new(&network.alice, "udp sport 40002");
        send(&network.lan, alice, &udp((bob, THERE), (alice, HERE)));
        assert!(!ear.hears(), "a packet inside an allowed flow");
        send(&network.bob, alice, &udp((bob, THERE), (alice, HERE)));
        ear.must_hear("the real one");

        let ear = Ear::new(&network.gateway, "udp dport 40002");
        send(&network.lan, GATEWAY[at], &udp((alice, HERE), (GATEWAY[at], THERE)));
        assert!(!ear.hears(), "a packet to a service of the gateway");
        send(&network.lan, GATEWAY[at], &udp((lan, HERE), (GATEWAY[at], THERE)));
        ear.must_hear("traffic of others to the tunnel address is left alone");
        assert!(pings(&network.gateway, GATEWAY[at]), "so is the gateway's own");
    }
}

#[test]
fn no_other_link_brings_a_packet_of_the_gateway_itself() {
    for at in 0..2 {
        let [alice, gateway] = [ALICE[at], GATEWAY[at]];
        for allow_inbound in [false, true] {
            let base = FirewallBase { allow_inbound, ..base() };
            let network = network(&base, &world(profile(&GATEWAY, &[]), nothing()));
            assert!(pings(&network.lan, GATEWAY_IN_LAN[at]), "the neighbours know each other");
            let (_client, service) = flow((&network.alice, alice), (&network.gateway, gateway));
            let ear = Ear::new(&network.alice, "udp sport 40002");
            send(&network.lan, alice, &udp((gateway, THERE), (alice, HERE)));
            assert!(!ear.hears(), "a packet that passes for an answer of the gateway");
            service.send(b"!").unwrap();
            ear.must_hear("the real one");
        }
    }
}

#[test]
fn a_site_prefix_comes_by_another_link_only_where_the_host_routes_it_there() {
    const SOURCE: [&str; 2] = ["10.9.8.8", "fd65::8"];
    const SITE: [&str; 2] = ["10.9.0.0/16", "fd65::/32"];
    for at in 0..2 {
        let base = FirewallBase { networks: networks(&SITE), ..base() };
        let network = network(&base, &world(nothing(), nothing()));
        assert!(pings(&network.lan, GATEWAY_IN_LAN[at]), "the neighbours know each other");
        let comes = || {
            let ear = Ear::new(&network.gateway, "udp dport 40002");
            let packet = udp((SOURCE[at], HERE), (GATEWAY_IN_LAN[at], THERE));
            send(&network.lan, GATEWAY_IN_LAN[at], &packet);
            ear
        };
        comes().must_hear("no route of ours");
        network.gateway.run(&format!("ip route replace {} via {}", SITE[at], ALICE[at]));
        assert!(!comes().hears(), "a peer's");
        network.gateway.run(&format!("ip route replace {} via {}", SITE[at], LAN[at]));
        comes().must_hear("the LAN's");
    }
}

/// Once the kernel knows the size of the path to it, its routing tells no link.
#[test]
fn first_address_of_a_site_comes_by_no_other_link_whatever_its_path_is() {
    const SITE: &str = "fd65::/32";
    const FIRST: &str = "fd65::";
    let base = FirewallBase { networks: networks(&[SITE, "fd64::/64"]), ..base() };
    let mut world = world(nothing(), nothing());
    world.1.insert(SITE.parse().unwrap(), gatepost::model::ProfileId(1));
    let network = network(&base, &world);
    network.gateway.run(&format!("ip route add {SITE} via {}", ALICE[1]));
    network.alice.add_address(FIRST, "v0");
    assert!(pings(&network.lan, GATEWAY_IN_LAN[1]), "the neighbours know each other");
    let _flow = flow((&network.gateway, GATEWAY6), (&network.alice, FIRST));
    let packet = udp((GATEWAY6, HERE), (FIRST, THERE));
    send(&network.lan, GATEWAY6, &too_big(LAN6, &packet, GATEWAY6));
    eventually("the size of the path is known", || {
        network.gateway.run(&format!("ip route get {FIRST}")).contains("mtu 1290")
    });
    // That of the tunnel is the gateway's own, too.
    for forged in [FIRST, "fd64::"] {
        let ear = Ear::new(&network.gateway, "udp dport 40002");
        send(&network.lan, GATEWAY6, &udp((forged, HERE), (GATEWAY6, THERE)));
        assert!(!ear.hears(), "{forged}");
        send(&network.lan, GATEWAY6, &udp((LAN6, HERE), (GATEWAY6, THERE)));
        ear.must_hear("another source is left alone");
    }
}
