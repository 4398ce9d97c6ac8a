//! The gateway's own sockets to an address that changes hands.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use gatepost::dataplane::Backend;
use gatepost::plan::Step;
use ipnet::IpNet;

use crate::netns::Netns;
use crate::rig::{Gateway, interface};
use crate::runner::Test;

pub const TESTS: &[Test] =
    &[("sockets_to_an_address_that_changes_hands_are_destroyed_and_no_other", destroyed)];

const OLD_HOLDER: [&str; 2] = ["10.2.0.2", "fd02::2"];
const OTHER: [&str; 2] = ["10.2.0.3", "fd02::3"];
const PORT: u16 = 7000;

fn destroyed(backend: Backend) {
    let netns = Netns::new("Bs");
    let peers = Netns::new("Bp");
    netns.plug("veth", &peers);
    for address in ["10.2.0.1/24", "fd02::1/64"] {
        netns.exec(&format!("ip address add {address} dev veth nodad"));
    }
    for (address, length) in [(OLD_HOLDER, [24, 64]), (OTHER, [24, 64])]
        .into_iter()
        .flat_map(|(addresses, lengths)| addresses.into_iter().zip(lengths))
    {
        peers.exec(&format!("ip address add {address}/{length} dev veth nodad"));
    }
    let listener = peers.enter(|| TcpListener::bind(("::", PORT)).unwrap());
    netns.enter(|| {
        let mut gateway = Gateway::open(interface(), backend);
        let mut all = Vec::new();
        for address in OLD_HOLDER.into_iter().chain(OTHER).chain(["::ffff:10.2.0.2"]) {
            let to = SocketAddr::new(address.parse().unwrap(), PORT);
            let tcp = TcpStream::connect(to).unwrap();
            let udp = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            udp.connect(to).unwrap();
            let accepted = listener.accept().unwrap().0;
            all.push((address, tcp, udp, accepted));
        }
        let prefixes: BTreeSet<IpNet> =
            ["10.2.0.2/32", "fd02::2/128"].map(|prefix| prefix.parse().unwrap()).into();
        let outcome = gateway.apply(vec![Step::CutFlows { prefixes }]);
        assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
        assert!(!outcome.sockets_may_be_left, "{outcome:?}");
        for (address, mut tcp, udp, mut accepted) in all {
            let lives = OTHER.contains(&address);
            assert_eq!(tcp.write_all(b"x").is_ok(), lives, "TCP to {address}");
            assert_eq!(udp.peer_addr().is_ok(), lives, "UDP to {address}");
            if lives {
                accepted.read_exact(&mut [0]).unwrap();
            } else {
                let ended = accepted.read(&mut [0]).unwrap_err().kind();
                assert_eq!(ended, ErrorKind::ConnectionReset, "the old holder knows: {address}");
            }
        }
    });
}
