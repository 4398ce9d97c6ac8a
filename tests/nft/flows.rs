//! A limit of open flows keeps one peer from filling the kernel's table of flows for all.

use std::num::NonZeroU32;

use gatepost::model::{FirewallBase, Masquerade, ProfileId};

use super::network::{GATEWAY4, GATEWAY6, LAN4, LAN6, connect, pings, serve, within};
use super::packets::{network, nothing, numbered, world};
use super::raw::{Ear, ip, send, udp};
use super::table::{base, profile};

#[test]
fn one_peer_opens_no_more_flows_than_its_limit_and_others_open_theirs() {
    const MOST: u32 = 5;
    let base = FirewallBase { flows_per_address: NonZeroU32::new(MOST), ..base() };
    for ids in [[1, 2], [1_025, 1_026]] {
        let reach = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
        let network = network(&base, &numbered(ids, reach.clone(), reach));
        serve(&network.lan, 80);
        for to in [LAN4, LAN6] {
            let mut open: Vec<_> =
                (0..MOST).map(|_| connect(&network.alice, to, 80).unwrap()).collect();
            assert!(connect(&network.alice, to, 80).is_err(), "{to}: one more");
            assert!(connect(&network.bob, to, 80).unwrap().echoes(), "{to}: the other peer");
            assert!(open.iter_mut().all(|stream| stream.echoes()), "{to}: those that are open");
        }
    }
}

/// Where the kernel has no room to count another address, that address opens nothing.
#[test]
fn address_that_cannot_be_counted_opens_no_flow() {
    let base = FirewallBase { flows_per_address: NonZeroU32::new(5), ..base() };
    let reach = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
    let network = network(&base, &numbered([1, 2], reach.clone(), reach));
    serve(&network.lan, 80);
    let listing = network.gateway.run("nft -s list table inet gatepost");
    assert_eq!(listing.matches("size 1048576").count(), 2, "{listing}");
    let small = listing.replace("size 1048576", "size 1");
    network.gateway.load(&format!("flush ruleset\n{small}"));
    for to in [LAN4, LAN6] {
        let mut first = connect(&network.alice, to, 80).unwrap();
        assert!(connect(&network.bob, to, 80).is_err(), "{to}: there is room for one address");
        assert!(connect(&network.alice, to, 80).unwrap().echoes(), "{to}: which opens more");
        assert!(first.echoes(), "{to}: an open flow goes on");
    }
}

/// A ping of the gateway is always answered, but each number that pings have opens a flow.
#[test]
fn pings_of_the_gateway_count_as_flows() {
    const MOST: u16 = 5;
    let flows_per_address = NonZeroU32::new(MOST.into());
    let base = FirewallBase { flows_per_address, ..base() };
    let network = network(&base, &world(nothing(), nothing()));
    for (alice, gateway, replies) in [
        ("10.64.0.2", GATEWAY4, "icmp type echo-reply"),
        ("fd64::2", GATEWAY6, "icmpv6 type echo-reply"),
    ] {
        let answered = (0..3 * MOST).filter(|number| {
            let ear = Ear::new(&network.alice, replies);
            send(&network.alice, gateway, &echo(alice, gateway, *number));
            ear.hears()
        });
        assert_eq!(answered.count(), usize::from(MOST), "{alice}");
        assert!(pings(&network.bob, gateway), "{alice}: the other peer");
    }
}

fn echo(from: &str, to: &str, number: u16) -> Vec<u8> {
    let (ip, mut bytes) = (ip(from, to), Vec::new());
    let written = match to.contains(':') {
        true => ip.icmpv6_echo_request(number, 1).write(&mut bytes, b"ping"),
        false => ip.icmpv4_echo_request(number, 1).write(&mut bytes, b"ping"),
    };
    written.unwrap();
    bytes
}

/// The limit counts addresses, not peers.
#[test]
fn each_address_of_a_site_has_the_limit_for_itself() {
    const MOST: usize = 3;
    const SITE: [&str; 2] = ["10.64.9.1", "10.64.9.2"];
    let flows_per_address = NonZeroU32::new(MOST as u32);
    let base = FirewallBase { flows_per_address, masquerade: Masquerade::None, ..base() };
    let mut rows = world(profile(&["172.16.1.0/24"], &[]), nothing());
    rows.1.insert("10.64.9.0/24".parse().unwrap(), ProfileId(1));
    let network = network(&base, &rows);
    network.gateway.run("ip route add 10.64.9.0/24 dev wg0");
    for source in SITE {
        let opened = (0..2 * MOST as u16).filter(|number| {
            let ear = Ear::new(&network.lan, &format!("ip saddr {source}"));
            send(&network.alice, LAN4, &udp((source, 5000 + number), (LAN4, 9000)));
            ear.hears()
        });
        assert_eq!(opened.count(), MOST, "{source}");
    }
    // What one floods costs another nothing.
    let socket = within(&network.alice, || std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    let ear = Ear::new(&network.lan, "ip saddr 10.64.0.2");
    within(&network.alice, || socket.send_to(b"x", (LAN4, 9000)).unwrap());
    ear.must_hear("the peer's own address has its own limit");
}
