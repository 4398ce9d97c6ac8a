//! Packets: a client with its own WireGuard reaches the gateway, and is cut off.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use gatepost::dataplane::{Backend, Dataplane, spawn_device, stop_device};
use gatepost::model::InterfaceName;
use gatepost::plan::Step;

use crate::netns::Netns;
use crate::rig::{Gateway, PORT, interface, peer, private_key};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("an_encrypted_ping_passes_and_stops_with_the_peer", ping),
    ("the_flows_of_an_address_are_cut", flows),
];

/// A client in a namespace of its own, joined to the gateway's, configured by `wg` and `ip`.
struct Client {
    netns: Netns,
    name: InterfaceName,
}

impl Client {
    fn new(backend: Backend, gateway: &Netns) -> Self {
        let client = Self { netns: Netns::new("Bc"), name: interface() };
        gateway.connect("192.0.2.1/24", &client.netns, "192.0.2.2/24");
        let name = &client.name;
        if backend == Backend::Kernel {
            client.netns.exec(&format!("ip link add {name} type wireguard"));
        } else {
            let exe = std::env::current_exe().unwrap();
            client.netns.enter(|| spawn_device(&exe, name)).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), private_key(2).expose_text()).unwrap();
        let server = private_key(1).public_key();
        // One command each: a userspace device needs its key before its peer.
        client.netns.exec(&format!("wg set {name} private-key {}", file.path().display()));
        client.netns.exec(&format!(
            "wg set {name} peer {server} endpoint 192.0.2.1:{PORT} allowed-ips 10.7.0.0/24,fd07::/64"
        ));
        client.netns.exec(&format!("ip address add 10.7.0.2/24 dev {name}"));
        client.netns.exec(&format!("ip address add fd07::2/64 dev {name} nodad"));
        client.netns.exec(&format!("ip link set {name} up"));
        client
    }

    fn reaches(&self, address: &str) -> bool {
        self.netns.succeeds(&format!("ping -n -c 1 -W 2 {address}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = stop_device(&self.name);
    }
}

fn ping(backend: Backend) {
    let netns = Netns::new("Bg");
    let client = Client::new(backend, &netns);
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), backend);
        assert!(!client.reaches("10.7.0.1"));
        let key = private_key(2).public_key();
        let peer = peer(&["10.7.0.2/32", "fd07::2/128"]);
        gateway.apply_all(vec![Step::AddPeer { key, peer }]);
        // The client tries again every five seconds after its first, unanswered handshake.
        assert!((0..8).any(|_| client.reaches("10.7.0.1")));
        assert!(client.reaches("fd07::1"));
        let traffic = gateway.host.observe().unwrap().traffic[&key];
        assert_eq!(traffic.endpoint.unwrap().ip(), "192.0.2.2".parse::<IpAddr>().unwrap());
        assert!(traffic.rx_bytes > 0 && traffic.tx_bytes > 0, "{traffic:?}");
        let age = SystemTime::now().duration_since(traffic.last_handshake.unwrap()).unwrap();
        assert!(age < Duration::from_secs(60), "{age:?}");
        gateway.apply_all(vec![Step::RemovePeer { key }]);
        assert!(!client.reaches("10.7.0.1"));
    });
}

fn flows(backend: Backend) {
    let netns = Netns::new("Bg");
    let other = Netns::new("Bo");
    netns.connect("192.0.2.1/24", &other, "192.0.2.2/24");
    netns.exec("nft add table inet t");
    netns.exec("nft add chain inet t c { type filter hook input priority 0 ; }");
    netns.exec("nft add rule inet t c ct state new accept");
    let server = netns.enter(|| UdpSocket::bind("192.0.2.1:7000").unwrap());
    other.enter(|| {
        for port in [7001, 7002] {
            let socket = UdpSocket::bind(("192.0.2.2", port)).unwrap();
            socket.send_to(b"x", "192.0.2.1:7000").unwrap();
            server.recv_from(&mut [0; 9]).unwrap();
        }
    });
    netns.enter(|| {
        let mut gateway = Gateway::open(interface(), backend);
        let mut cut = |prefix: &str| {
            let outcome =
                gateway.apply(vec![Step::CutFlows { prefixes: [prefix.parse().unwrap()].into() }]);
            assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
            outcome.flows_cut
        };
        assert_eq!(cut("192.0.2.77/32"), 0);
        assert_eq!(cut("192.0.2.2/32"), 2);
        assert_eq!(cut("192.0.2.0/24"), 0);
    });
}
