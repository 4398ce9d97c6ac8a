//! IPv6 flows, counted in the kernel's own list.

use std::net::UdpSocket;

use gatepost::dataplane::Backend;
use gatepost::plan::Step;

use crate::netns::Netns;
use crate::rig::{Gateway, interface};
use crate::runner::Test;

pub const TESTS: &[Test] = &[("the_ipv6_flows_of_an_address_are_cut_and_no_other", ipv6)];

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
