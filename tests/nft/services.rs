//! Real packets between peers and the gateway itself, IPv4 and IPv6.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost::dataplane::nft::labels_flows;
use gatepost::model::{FirewallBase, FirewallChange, Openings, Profile, ProfileId};
use nix::net::if_::if_nametoindex;

use super::netns::Netns;
use super::network::{
    GATEWAY4, GATEWAY6, LAN4, LAN6, Network, Stream, asks, asks_in_vain, bind, connect,
    forget_flows, pings, pings_in_vain, serve, within,
};
use super::packets::{edit, network, nothing, world};
use super::raw::{Ear, ip, send};
use super::table::{base, load, openings, profile};

const ALICE: [&str; 2] = ["10.64.0.2", "fd64::2"];
const BOB: [&str; 2] = ["10.64.0.3", "fd64::3"];
const GATEWAY: [&str; 2] = [GATEWAY4, GATEWAY6];
/// A port of services: the kernel gives it to no socket that asks for none.
const SERVICE: u16 = 7_000;
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a datagram that must not come is awaited; one that must come, for as long as [`PATIENCE`].
const SILENCE: Duration = Duration::from_millis(200);

fn may_reach_the_gateway() -> Arc<Profile> {
    profile(&GATEWAY, &[])
}

/// Whether a datagram gets from one socket to the other in time.
fn arrives(from: &UdpSocket, to: &UdpSocket, patience: Duration) -> bool {
    to.set_read_timeout(Some(patience)).unwrap();
    // Our own firewall lets a sender know at once.
    let sent = from.send_to(b"x", to.local_addr().unwrap());
    sent.is_ok() && to.recv(&mut [0; 16]).is_ok()
}

#[track_caller]
pub fn eventually(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < deadline, "not in time: {what}");
    }
}

#[test]
fn a_stream_of_a_service_ends_with_its_policy() {
    for (alice, gateway) in ALICE.into_iter().zip(GATEWAY) {
        let mut network = network(&base(), &world(may_reach_the_gateway(), nothing()));
        let server = bind(&network.gateway, gateway, SERVICE);
        let client = bind(&network.alice, alice, SERVICE);
        assert!(arrives(&client, &server, PATIENCE) && arrives(&server, &client, PATIENCE));
        edit(&mut network.nft, 1, nothing());
        assert!(
            !arrives(&server, &client, SILENCE),
            "{alice}: the stream went on without a policy"
        );
        assert!(!arrives(&client, &server, SILENCE));
        edit(&mut network.nft, 1, may_reach_the_gateway());
        assert!(
            arrives(&server, &client, PATIENCE),
            "{alice}: it resumes when it is granted again"
        );
    }
}

#[test]
fn a_service_whose_flow_was_forgotten_does_not_become_the_opener() {
    for (alice, gateway) in ALICE.into_iter().zip(GATEWAY) {
        let mut network = network(&base(), &world(may_reach_the_gateway(), nothing()));
        let server = bind(&network.gateway, gateway, SERVICE);
        let client = bind(&network.alice, alice, SERVICE);
        assert!(arrives(&client, &server, PATIENCE));
        edit(&mut network.nft, 1, nothing());
        forget_flows(&network.gateway);
        assert!(!arrives(&server, &client, SILENCE), "{alice}: the service's packet opened a flow");
        assert!(
            !arrives(&client, &server, SILENCE),
            "{alice}: the peer's packet passed as an answer"
        );
    }
}

/// Alice's address goes to Bob, who may reach the gateway, while a server still has something to
/// send to her.
#[test]
fn the_next_holder_of_an_address_gets_no_segment_of_a_session() {
    for at in 0..2 {
        let (alice, gateway) = (ALICE[at], GATEWAY[at]);
        let mut network =
            network(&base(), &world(may_reach_the_gateway(), may_reach_the_gateway()));
        let (mut server, _client) = session(&network, gateway);
        let observed = network.nft.observe().unwrap();
        let place = format!("{alice}/{}", if at == 0 { 32 } else { 128 }).parse().unwrap();
        let mut change = FirewallChange { unassign: vec![place], ..FirewallChange::default() };
        network.nft.apply(&change, observed.as_ref()).unwrap();
        server.write_all(b"for alice").unwrap();
        forget_flows(&network.gateway);
        let ear = Ear::new(&network.bob, &format!("tcp sport {SERVICE}"));
        give_to_bob(&network, alice);
        change = FirewallChange { assign: [(place, ProfileId(2))].into(), ..change };
        change.unassign.clear();
        let observed = network.nft.observe().unwrap();
        network.nft.apply(&change, observed.as_ref()).unwrap();
        eventually("the server sends its segment again", || {
            let inbound = network.gateway.run("nft list chain inet gatepost inbound");
            !inbound.contains("packets 0 ")
        });
        assert!(!ear.hears(), "{alice}: a segment of the session came");
        assert!(connect_from(&network.bob, alice, gateway).is_ok());
        ear.must_hear("it would have been heard");
    }
}

/// A TCP connection of Alice to a server on the gateway: both ends.
fn session(network: &Network, gateway: &str) -> (TcpStream, TcpStream) {
    let address = SocketAddr::new(gateway.parse().unwrap(), SERVICE);
    let listener = within(&network.gateway, || TcpListener::bind(address).unwrap());
    let client = within(&network.alice, || TcpStream::connect_timeout(&address, PATIENCE).unwrap());
    let server = listener.accept().unwrap().0;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    (server, client)
}

/// Bob takes an address over.
fn give_to_bob(network: &Network, address: &str) {
    network.bob.add_address(address, "v0");
    network
        .gateway
        .run(&format!("ip neigh replace {address} lladdr 02:00:00:00:00:03 nud permanent dev wg0"));
}

fn connect_from(netns: &Netns, source: &str, to: &str) -> std::io::Result<TcpStream> {
    netns.run(&format!("ip route replace {to} dev v0 src {source}"));
    let to = SocketAddr::new(to.parse().unwrap(), SERVICE);
    within(netns, || TcpStream::connect_timeout(&to, PATIENCE))
}

#[test]
fn a_kernel_with_connection_labels_is_known_without_a_change() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    network.nft.observe().unwrap();
    let before = network.nft.generation().unwrap();
    assert!(labels_flows().unwrap());
    assert_eq!(network.nft.generation().unwrap(), before);
    assert!(network.nft.is_current().unwrap());
    network.nft.remove_table().unwrap();
    assert!(labels_flows().unwrap());
    assert_eq!(network.nft.observe().unwrap(), None);
}

#[test]
fn the_gateway_opens_what_it_may() {
    let nobody = world(nothing(), nothing());
    let mut network = network(&base(), &nobody);
    serve(&network.bob, SERVICE);
    let opens = |network: &Network, bob: &str| {
        [
            connect(&network.gateway, bob, SERVICE).is_ok_and(|mut stream| stream.echoes()),
            asks(&network.gateway, bob, SERVICE),
            pings(&network.gateway, bob),
        ]
    };
    let opens_nothing = |network: &Network, bob: &str| {
        connect(&network.gateway, bob, SERVICE).is_err()
            && asks_in_vain(&network.gateway, bob, SERVICE)
            && pings_in_vain(&network.gateway, bob)
    };
    for bob in BOB {
        assert_eq!(opens(&network, bob), [true; 3], "{bob}");
        assert!(connect(&network.bob, GATEWAY4, SERVICE).is_err());
    }
    let closed = FirewallBase { gateway_opens: None, ..base() };
    network.nft.apply(&load(&closed, &nobody), None).unwrap();
    for bob in BOB {
        assert!(opens_nothing(&network, bob), "{bob}");
    }
    let inbound = FirewallBase { allow_inbound: true, ..closed };
    network.nft.apply(&load(&inbound, &nobody), None).unwrap();
    for bob in BOB {
        assert_eq!(opens(&network, bob), [true; 3], "{bob}: whoever is outside may open");
    }
}

#[test]
fn a_flow_that_the_gateway_opened_goes_on_until_it_may_not() {
    let nobody = world(nothing(), nothing());
    let mut network = network(&base(), &nobody);
    serve(&network.bob, SERVICE);
    let mut streams = BOB.map(|bob| connect(&network.gateway, bob, SERVICE).unwrap());
    network.nft.apply(&load(&base(), &nobody), None).unwrap();
    assert!(streams.iter_mut().all(|stream| stream.echoes()), "the rules were loaded anew");
    let closed = FirewallBase { gateway_opens: None, ..base() };
    network.nft.apply(&load(&closed, &nobody), None).unwrap();
    assert!(streams.iter_mut().all(Stream::is_silent));
}

#[test]
fn datagrams_open_a_flow_from_ports_that_no_service_has() {
    let nobody = world(nothing(), nothing());
    let mut network = network(&base(), &nobody);
    let exchange = |network: &Network, at: usize, [from, to]: [u16; 2], patience| {
        let here = bind(&network.gateway, GATEWAY[at], from);
        let there = bind(&network.bob, BOB[at], to);
        arrives(&here, &there, patience) && arrives(&there, &here, patience)
    };
    for at in 0..2 {
        assert!(exchange(&network, at, [123, 123], PATIENCE), "NTP between servers");
        assert!(!exchange(&network, at, [123, SERVICE], SILENCE));
        assert!(!exchange(&network, at, [4_789; 2], SILENCE));
    }
    let udp_ports = [(4_789, 4_789), (32_768, 60_999)].into_iter().collect();
    let base = FirewallBase { gateway_opens: Some(Openings { udp_ports, ..openings() }), ..base() };
    network.nft.apply(&load(&base, &nobody), None).unwrap();
    for at in 0..2 {
        assert!(exchange(&network, at, [4_789; 2], PATIENCE), "as configured");
    }
}

#[test]
fn packets_of_a_listed_protocol_pass_both_ways() {
    const PROTOCOL: u8 = 253;
    fn sent_both_ways(network: &Network, at: usize) -> [Ear<'_>; 2] {
        let ears =
            [&network.bob, &network.gateway].map(|netns| Ear::new(netns, "meta l4proto 253"));
        for (netns, from, to) in
            [(&network.gateway, GATEWAY[at], BOB[at]), (&network.bob, BOB[at], GATEWAY[at])]
        {
            let mut packet = Vec::new();
            ip(from, to).write(&mut packet, PROTOCOL.into(), b"payload").unwrap();
            send(netns, to, &packet);
        }
        ears
    }
    let nobody = world(nothing(), nothing());
    let mut network = network(&base(), &nobody);
    for at in 0..2 {
        assert_eq!(sent_both_ways(&network, at).map(|ear| ear.hears()), [false; 2], "not listed");
    }
    let listed = Openings { protocols: [PROTOCOL].into(), ..openings() };
    let base = FirewallBase { gateway_opens: Some(listed), ..base() };
    network.nft.apply(&load(&base, &nobody), None).unwrap();
    for at in 0..2 {
        for ear in sent_both_ways(&network, at) {
            ear.must_hear("it is listed");
        }
    }
}

#[test]
fn errors_that_the_gateway_makes_reach_the_peer() {
    let lan = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
    let network = network(&base(), &world(lan, nothing()));
    serve(&network.lan, 80);
    for (address, headers) in [(LAN4, 28), (LAN6, 48)] {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        let refused = within(&network.bob, || TcpStream::connect_timeout(&to, PATIENCE));
        let refused = refused.unwrap_err().kind();
        assert_ne!(refused, ErrorKind::TimedOut, "our own reject");
        network.gateway.run("ip link set lan0 mtu 1300");
        let ping = format!("ping -n -c 2 -W 1 -M do -s {} {address}", 1_400 - headers);
        network.alice.output(&ping);
        eventually("the first packet of a flow was too big", || {
            network.alice.run(&format!("ip route get {address}")).contains("mtu 1300")
        });
        let hops = network.alice.output(&format!("ping -n -c 1 -W 10 -t 1 {address}"));
        let hops = String::from_utf8(hops.stdout).unwrap();
        assert!(hops.contains("ime to live exceeded") || hops.contains("Hop limit"), "{hops}");
    }
}

#[test]
fn multicast_of_the_gateway_reaches_no_peer_and_no_log() {
    let network = network(&base(), &world(nothing(), nothing()));
    let index = within(&network.gateway, || if_nametoindex("wg0").unwrap());
    network.gateway.run("ip route add 224.0.0.0/4 dev wg0");
    let ear = Ear::new(&network.alice, "udp dport 5353");
    network.alice.run("ip addr add 10.64.0.99/24 dev v0 && ip link set v0 allmulticast on");
    let ask_all = |to: SocketAddr| {
        let from = bind(&network.gateway, GATEWAY[usize::from(to.is_ipv6())], 0);
        from.set_broadcast(true).unwrap();
        let _ = from.send_to(b"x", to);
    };
    for many in ["224.0.0.1:5353", "10.64.0.255:5353"] {
        ask_all(many.parse().unwrap());
    }
    ask_all(SocketAddrV6::new("ff02::1".parse().unwrap(), 5353, 0, index).into());
    assert!(!ear.hears());
    let deny = network.gateway.run("nft list chain inet gatepost deny");
    assert!(deny.contains("counter packets 0 "), "{deny}");
    network.gateway.run("nft flush ruleset");
    ask_all("224.0.0.1:5353".parse().unwrap());
    ear.must_hear("without rules it would have come");
}
