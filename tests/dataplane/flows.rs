//! Flows that are cut, counted in the kernel's own list.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use gatepost::dataplane::Backend;
use gatepost::plan::Step;

use crate::engine::eventually;
use crate::netns::Netns;
use crate::rig::{Gateway, interface, key, peer};
use crate::runner::Test;
use crate::tracked::{Flow, others, track, tracked as all_tracked};

pub const TESTS: &[Test] = &[
    ("the_ipv6_flows_of_an_address_are_cut_and_no_other", ipv6),
    ("flows_of_an_address_are_found_without_a_list_of_all", without_a_list),
    ("flows_and_sockets_of_a_peer_within_the_prefix_of_a_site_are_left_alone", within_a_site),
    (
        "flows_and_sockets_of_another_link_within_the_prefix_of_a_site_are_left_alone",
        within_a_site_of_another_link,
    ),
    ("flows_in_a_flowtable_of_another_program_are_cut", in_a_flowtable),
];

const SERVER: &str = "fd02::1";
const OLD_HOLDER: &str = "fd02::2";
const OTHER: &str = "fd02::3";

fn ipv6(backend: Backend) {
    let netns = Netns::new("Bg");
    let clients = Netns::new("Bo");
    netns.plug("veth", &clients);
    netns.exec(&format!("ip address add {SERVER}/64 dev veth nodad"));
    for address in [OLD_HOLDER, OTHER] {
        clients.exec(&format!("ip address add {address}/64 dev veth nodad"));
    }
    netns.exec("nft add table inet t");
    netns.exec("nft add chain inet t c { type filter hook input priority 0 ; }");
    netns.exec("nft add rule inet t c ct state new accept");
    let server = netns.enter(|| UdpSocket::bind((SERVER, 7000)).unwrap());
    clients.enter(|| {
        for (address, port) in [(OLD_HOLDER, 7001), (OLD_HOLDER, 7002), (OTHER, 7001)] {
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket.send_to(b"x", (SERVER, 7000)).unwrap();
            server.recv_from(&mut [0; 9]).unwrap();
        }
    });
    netns.enter(|| {
        assert_eq!((tracked(OLD_HOLDER), tracked(OTHER)), (2, 1));
        let mut gateway = Gateway::open(interface(), backend);
        let mut cut = |prefix: &str| {
            let prefixes = [prefix.parse().unwrap()].into();
            let outcome = gateway.apply(vec![Step::CutFlows { prefixes }]);
            assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
            outcome.flows_cut
        };
        assert_eq!(cut("fd02::77/128"), 0);
        assert_eq!((tracked(OLD_HOLDER), tracked(OTHER)), (2, 1));
        assert_eq!(cut("fd02::2/128"), 2);
        assert_eq!((tracked(OLD_HOLDER), tracked(OTHER)), (0, 1));
        assert_eq!(cut("fd02::/120"), 1);
        assert_eq!(tracked(OTHER), 0);
    });
}

fn without_a_list(backend: Backend) {
    const OTHERS: u32 = 20_000;
    Netns::new("Bg").enter(|| {
        let holders = [("10.7.0.9", "10.7.0.90", "192.0.2.1"), ("fd07::9", "fd07::90", "fd02::1")];
        let flows = holders.into_iter().flat_map(|(holder, other, server)| {
            let opened = Flow::new(holder, server, 1);
            [opened, Flow { zone: 7, ..opened }, Flow::new(server, holder, 2)]
                .into_iter()
                .chain([Flow::new(other, server, 1), Flow::new(server, other, 2)])
        });
        track(others(OTHERS).chain(flows));
        assert_eq!(all_tracked(), OTHERS + 10);

        let mut gateway = Gateway::open(interface(), backend);
        let mut cut = |prefixes: &[&str]| {
            let prefixes = prefixes.iter().map(|text| text.parse().unwrap()).collect();
            let outcome = gateway.apply(vec![Step::CutFlows { prefixes }]);
            assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
            (outcome.flows_cut, outcome.flows_listed)
        };
        let all4 = OTHERS as usize + 5;
        assert_eq!(cut(&["10.7.0.8/32"]), (0, 0), "the first cut asks for the address alone, too");
        assert_eq!(cut(&["10.7.0.9/32"]), (3, 3));
        assert_eq!(cut(&["10.7.0.9/32"]), (0, 0));
        let four = ["10.128.0.1/32", "10.128.0.2/32", "10.128.0.3/32", "10.128.0.4/32"];
        assert_eq!(cut(&four), (32, all4 - 3), "so many are found in a list of all");
        assert_eq!(cut(&["10.7.0.0/24"]), (2, all4 - 35), "and so is a network");

        // Some kernels list all IPv6 flows but those that were asked for.
        assert_eq!(cut(&["fd07::8/128"]), (0, 5));
        assert_eq!(cut(&["fd07::9/128"]).0, 3);
        assert_eq!(cut(&["fd07::/64"]).0, 2);
        assert_eq!(all_tracked(), OTHERS - 32);
    });
}

fn within_a_site(backend: Backend) {
    let (netns, others) = (Netns::new("Bg"), Netns::new("Bo"));
    netns.plug("veth", &others);
    // An address is no network of the link.
    netns.exec("ip address add 10.7.1.1/32 dev veth");
    netns.exec("ip route add 10.7.1.2/32 dev veth src 10.7.1.1");
    others.exec("ip address add 10.7.1.2/24 dev veth");
    let listener = others.enter(|| TcpListener::bind(("10.7.1.2", 7000)).unwrap());
    netns.enter(|| {
        let mut gateway = Gateway::open(interface(), backend);
        let mut session = TcpStream::connect(("10.7.1.2", 7000)).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        gateway.observed.peers =
            [(key(1), peer(&["10.7.0.0/16"])), (key(2), peer(&["10.7.1.0/24"]))].into();
        cut_spares_the_other(&mut gateway, &mut session, &mut accepted);
        gateway.observed.peers.remove(&key(2));
        assert_eq!(cut_site(&mut gateway), 1, "without that peer the whole prefix was the site's");
        assert!(session.write_all(b"x").is_err());
    });
}

/// Withdraws the site, and returns how many flows were cut.
fn cut_site(gateway: &mut Gateway) -> usize {
    let prefixes = ["10.7.0.0/16".parse().unwrap()].into();
    let outcome = gateway.apply(vec![Step::CutFlows { prefixes }]);
    assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
    outcome.flows_cut
}

/// Of two flows only the site's is cut, and the session with an address that the site does not have goes on.
fn cut_spares_the_other(gateway: &mut Gateway, session: &mut TcpStream, accepted: &mut TcpStream) {
    let before = all_tracked();
    let [of_other, of_site] = ["10.7.1.9", "10.7.2.9"];
    track([of_other, of_site].into_iter().map(|opener| Flow::new(opener, "192.0.2.1", 1)));
    assert_eq!(cut_site(gateway), 1);
    assert_eq!(all_tracked(), before + 1);
    session.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
}

fn within_a_site_of_another_link(backend: Backend) {
    let (netns, others) = (Netns::new("Bg"), Netns::new("Bo"));
    netns.plug("veth", &others);
    netns.exec("ip address add 10.7.1.1/24 dev veth");
    others.exec("ip address add 10.7.1.2/24 dev veth");
    let listener = others.enter(|| TcpListener::bind(("10.7.1.2", 7000)).unwrap());
    netns.enter(|| {
        let mut gateway = Gateway::open(interface(), backend);
        let mut database = TcpStream::connect(("10.7.1.2", 7000)).unwrap();
        let mut accepted = listener.accept().unwrap().0;
        gateway.observed.peers = [(key(1), peer(&["10.7.0.0/16"]))].into();
        cut_spares_the_other(&mut gateway, &mut database, &mut accepted);
        netns.exec("ip link set veth down");
        assert!(cut_site(&mut gateway) >= 1, "without that link the site has the whole prefix");
        assert!(database.write_all(b"x").is_err());
    });
}

/// A flowtable that only has the device of the LAN takes what the LAN sends to a peer past every rule.
fn in_a_flowtable(backend: Backend) {
    const FLOWTABLE: &str =
        "table inet t { flowtable fast { hook ingress priority 0; devices = { lan }; }; }";
    const RULE: &str =
        "table inet t { chain c { type filter hook forward priority 0; flow add @fast; }; }";
    let [netns, client, lan] = ["Bg", "Bo", "Bl"].map(Netns::new);
    netns.plug("peer", &client);
    netns.plug("lan", &lan);
    for (host, link, number, other) in [(&client, "peer", 7, 8), (&lan, "lan", 8, 7)] {
        for (network, length) in [("10.x.0.", 24), ("fd0x::", 64)] {
            let network = |number: u8| network.replace('x', &number.to_string());
            netns.exec(&format!("ip address add {}1/{length} dev {link} nodad", network(number)));
            host.exec(&format!("ip address add {}2/{length} dev {link} nodad", network(number)));
            host.exec(&format!(
                "ip route add {}0/{length} via {}1",
                network(other),
                network(number)
            ));
        }
    }
    netns.exec("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let load = |text: &str| {
        netns.enter(|| Command::new("nft").arg(text).output().unwrap().status.success())
    };
    if !load(FLOWTABLE) {
        return println!("this kernel has no flowtables");
    }
    assert!(load(RULE));
    for (holder, server, prefix) in
        [("10.7.0.2", "10.8.0.2", "10.7.0.2/32"), ("fd07::2", "fd08::2", "fd07::2/128")]
    {
        let (ear, server) = (client.enter(|| listening(holder)), lan.enter(|| listening(server)));
        let (to, back) = (server.local_addr().unwrap(), ear.local_addr().unwrap());
        eventually("the flow is in the flowtable", || {
            ear.send_to(b"x", to).unwrap();
            let asked = server.recv(&mut [0; 9]).is_ok();
            server.send_to(b"x", back).unwrap();
            asked && ear.recv(&mut [0; 9]).is_ok() && netns.enter(offloaded) == 1
        });
        netns.exec("nft insert rule inet t c drop");
        server.send_to(b"past every rule", back).unwrap();
        eventually("a packet passes the rule that drops all", || ear.recv(&mut [0; 32]).is_ok());
        netns.enter(|| {
            let mut gateway = Gateway::open(interface(), backend);
            let prefixes = [prefix.parse().unwrap()].into();
            let outcome = gateway.apply(vec![Step::CutFlows { prefixes }]);
            assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
            assert_eq!((outcome.flows_cut, offloaded()), (1, 0), "{holder}: {outcome:?}");
        });
        for _ in 0..50 {
            server.send_to(b"too late", back).unwrap();
        }
        // It goes the same way, and behind all of that.
        lan.exec("ping -nqc 1 10.8.0.1");
        assert!(ear.recv(&mut [0; 32]).is_err(), "{holder}: a packet passed after the cut");
        netns.exec("nft flush chain inet t c");
        netns.exec("nft add rule inet t c flow add @fast");
    }
}

fn listening(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 7000)).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    socket
}

/// How many flows of this thread's namespace are in a flowtable.
fn offloaded() -> usize {
    let listed = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    listed.lines().filter(|flow| flow.contains("[OFFLOAD]")).count()
}

/// How many flows this address has opened, by the kernel's list of this thread's namespace.
fn tracked(address: &str) -> usize {
    let listed = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    let groups = address.segments().map(|group| format!("{group:04x}"));
    // The first source in a line is that of the first packet.
    let opened = format!("src={}", groups.join(":"));
    listed
        .lines()
        .filter(|flow| {
            flow.split_whitespace().find(|word| word.starts_with("src=")) == Some(&opened)
        })
        .count()
}
