//! Packets: a client with its own WireGuard reaches the gateway, and is cut off.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use gatepost::dataplane::{Backend, Dataplane, spawn_device, stop_device};
use gatepost::model::{AllowedIps, InterfaceName, Peer};
use gatepost::plan::Step;

use crate::netns::Netns;
use crate::rig::{Gateway, PORT, interface, peer, prefixes, private_key};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("an_encrypted_ping_passes_and_stops_with_the_peer", ping),
    ("the_flows_of_an_address_are_cut", flows),
    ("what_a_narrowed_peer_keeps_loses_no_packet_and_its_neighbour_gets_none", narrowed),
    ("no_peer_speaks_as_one_whose_prefix_lies_within_its_own", nested),
];

/// A client in a namespace of its own, joined to the gateway's, configured by `wg` and `ip`.
pub struct Client {
    pub netns: Netns,
    pub name: InterfaceName,
    /// Its link to the gateway, which has the same name there.
    pub cable: String,
}

impl Client {
    pub fn new(backend: Backend, gateway: &Netns) -> Self {
        Self::numbered(2, backend, gateway)
    }

    /// One of several. The number is that of its private key, and the last part of its addresses.
    pub fn numbered(number: u8, backend: Backend, gateway: &Netns) -> Self {
        let cable = format!("veth{number}");
        let client = Self { netns: Netns::new("Bc"), name: interface(), cable };
        let (name, cable) = (&client.name, &client.cable);
        gateway.plug(cable, &client.netns);
        gateway.exec(&format!("ip address add 192.0.{number}.1/24 dev {cable}"));
        client.netns.exec(&format!("ip address add 192.0.{number}.2/24 dev {cable}"));
        if backend == Backend::Kernel {
            client.netns.exec(&format!("ip link add {name} type wireguard"));
        } else {
            let exe = std::env::current_exe().unwrap();
            client.netns.enter(|| spawn_device(&exe, name)).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), private_key(number).expose_text()).unwrap();
        let server = private_key(1).public_key();
        // One command each: a userspace device needs its key before its peer.
        client.netns.exec(&format!("wg set {name} private-key {}", file.path().display()));
        client.netns.exec(&format!(
            "wg set {name} peer {server} endpoint 192.0.{number}.1:{PORT} \
             allowed-ips 10.7.0.0/24,fd07::/64"
        ));
        client.netns.exec(&format!("ip address add 10.7.0.{number}/24 dev {name}"));
        client.netns.exec(&format!("ip address add fd07::{number}/64 dev {name} nodad"));
        client.netns.exec(&format!("ip link set {name} up"));
        client
    }

    pub fn reaches(&self, address: &str) -> bool {
        self.netns.succeeds(&format!("ping -n -c 1 -W 2 {address}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.netns.enter(|| stop_device(&self.name));
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

/// A peer's other prefix comes and goes, inside a network of a neighbour, while its packets flow.
fn narrowed(backend: Backend) {
    const ROUNDS: usize = 40;
    let netns = Netns::new("Bg");
    let client = Client::new(backend, &netns);
    client.netns.exec(&format!("ip address add 192.168.7.1/32 dev {}", client.name));
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), backend);
        let (key, neighbour) = (private_key(2).public_key(), private_key(3).public_key());
        // Many prefixes before the one whose packets flow.
        let many = (0..1_000).map(|n| format!("10.8.{}.{}/32", n / 250, n % 250));
        let kept = many.chain(["10.7.0.2/32".into(), "192.168.7.1/32".into()]);
        let kept: AllowedIps = kept.map(|text| text.parse().unwrap()).collect();
        let other: AllowedIps = prefixes(&["192.168.8.0/24"]);
        gateway.apply_all(vec![
            Step::AddPeer { key, peer: Peer { allowed_ips: kept.clone(), ..Peer::default() } },
            Step::AddPeer { key: neighbour, peer: peer(&["192.168.0.0/16"]) },
        ]);
        // What is sent to the neighbour counts there, if only as a handshake.
        let name = gateway.name.clone();
        netns.exec(&format!("wg set {name} peer {neighbour} endpoint 192.0.2.2:9"));
        netns.exec(&format!("ip route add 192.168.0.0/16 dev {name}"));
        assert!((0..8).any(|_| client.reaches("10.7.0.1")));

        let server = UdpSocket::bind("10.7.0.1:7000").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let socket = client.netns.enter(|| UdpSocket::bind("192.168.7.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let done = AtomicBool::new(false);
        let (sent, answered) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut datagram = [0; 9];
                while let Ok((len, from)) = server.recv_from(&mut datagram) {
                    if datagram[..len] == *b"end" {
                        return;
                    }
                    server.send_to(&datagram[..len], from).unwrap();
                }
            });
            let talk = scope.spawn(|| {
                let (mut sent, mut answered) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    socket.send_to(b"x", "10.7.0.1:7000").unwrap();
                    sent += 1;
                    answered += usize::from(socket.recv_from(&mut [0; 9]).is_ok());
                }
                socket.send_to(b"end", "10.7.0.1:7000").unwrap();
                (sent, answered)
            });
            for _ in 0..ROUNDS {
                gateway.apply(vec![Step::WidenPeer { key, allowed_ips: other.clone() }]);
                gateway.apply(vec![Step::NarrowPeer { key, allowed_ips: kept.clone() }]);
            }
            done.store(true, Ordering::Relaxed);
            talk.join().unwrap()
        });
        assert!(sent > ROUNDS, "{sent} packets are too few");
        assert_eq!(answered, sent, "packets of a prefix that the peer kept were lost");
        gateway.check();
        let traffic = gateway.host.observe().unwrap().traffic;
        assert_eq!(traffic.get(&neighbour).map_or(0, |it| it.tx_bytes), 0);
    });
}

/// A peer with a site prefix forges a source of another peer's prefix that lies within its own.
fn nested(backend: Backend) {
    let netns = Netns::new("Bg");
    let client = Client::new(backend, &netns);
    const SOURCES: [[&str; 2]; 2] = [["10.50.1.9", "10.50.2.9"], ["fd50:1::9", "fd50:2::9"]];
    for source in SOURCES.concat() {
        client.netns.exec(&format!("ip address add {source} dev {} nodad", client.name));
    }
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), backend);
        let key = private_key(2).public_key();
        let outer = peer(&["10.7.0.2/32", "10.50.0.0/16", "fd07::2/128", "fd50::/16"]);
        let inner = peer(&["10.50.1.0/24", "fd50:1::/32"]);
        gateway.apply_all(vec![
            Step::AddPeer { key, peer: outer },
            Step::AddPeer { key: private_key(3).public_key(), peer: inner },
            Step::AddRoute { prefix: "10.50.0.0/16".parse().unwrap() },
            Step::AddRoute { prefix: "fd50::/16".parse().unwrap() },
        ]);
        assert!((0..8).any(|_| client.reaches("10.7.0.1")));
        for ([forged, own], to) in SOURCES.into_iter().zip(["10.7.0.1", "fd07::1"]) {
            let to = (to.parse::<IpAddr>().unwrap(), 7000);
            let server = UdpSocket::bind(to).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.netns.enter(|| {
                for (source, text) in [(forged, b"forged"), (own, b"my own")] {
                    let source = (source.parse::<IpAddr>().unwrap(), 0);
                    UdpSocket::bind(source).unwrap().send_to(text, to).unwrap();
                }
            });
            // They come in order: the first that comes is the second that was sent.
            let mut datagram = [0; 9];
            let (len, from) = server.recv_from(&mut datagram).unwrap();
            assert_eq!(&datagram[..len], b"my own", "from {from}");
        }
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
