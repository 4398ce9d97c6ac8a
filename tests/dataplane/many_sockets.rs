//! How long closing the gateway's own sockets to some addresses takes among many sockets.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use gatepost::dataplane::Backend;
use gatepost::plan::Step;
use ipnet::IpNet;
use nix::sys::resource::{Resource, setrlimit};

use crate::netns::Netns;
use crate::rig::{Gateway, interface};

/// A port of every address has room for fewer connections than this.
const CONNECTIONS_TO_AN_ADDRESS: u32 = 10_000;

/// Opens `count` sockets, half of them TCP, and prints how long it takes to close those to some addresses.
pub fn measure(backend: Backend, count: u32) {
    let room = u64::from(count) + 1_000;
    setrlimit(Resource::RLIMIT_NOFILE, room, room).unwrap();
    let netns = Netns::new("Bs");
    netns.exec("ip link set lo up");
    netns.exec("ip route add local 10.128.0.0/9 dev lo");
    netns.enter(|| {
        let listener = TcpListener::bind("0.0.0.0:7000").unwrap();
        let to = |number: u32| Ipv4Addr::from(0x0a80_0000 + number);
        let mut sockets = Vec::new();
        // Each connection has two ends.
        for number in 0..count / 4 {
            let address = to(number / CONNECTIONS_TO_AN_ADDRESS);
            sockets.push(TcpStream::connect((address, 7000)).unwrap());
            sockets.push(listener.accept().unwrap().0);
        }
        let datagrams: Vec<UdpSocket> = (0..count / 2)
            .map(|number| {
                let from = to(0x7f_0000 + number / CONNECTIONS_TO_AN_ADDRESS);
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.connect((to(0x1_0000 + number), 7001)).unwrap();
                socket
            })
            .collect();
        println!("{} sockets are open", sockets.len() + datagrams.len());
        let mut gateway = Gateway::open(interface(), backend);
        let mut next = 0x10_0000;
        for at_once in [1, 1, 1, 4, 64, 65] {
            let cut = (next..next + at_once).map(|host| IpNet::from(IpAddr::from(to(host))));
            let prefixes = cut.collect();
            next += at_once;
            let start = Instant::now();
            let outcome = gateway.apply(vec![Step::CutFlows { prefixes }]);
            let took = start.elapsed();
            assert!(outcome.refused.is_empty(), "{outcome:?}");
            let left = if outcome.sockets_may_be_left { ", and some may be left" } else { "" };
            println!("{at_once:5} addresses: {took:8.2?}{left}");
        }
    });
}
