//! What a peer loses while one of its prefixes comes and goes.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gatepost::dataplane::{Backend, Dataplane};
use gatepost::model::{AllowedIps, Peer};
use gatepost::plan::Step;

use crate::netns::Netns;
use crate::rig::{Gateway, interface, peer, prefixes, private_key};
use crate::tunnel::Client;

/// So many packets are under way at a time, which every socket has room for.
const WINDOW: u64 = 32;
const KEPT: [&str; 2] = ["192.168.7.1", "fd50:7::1"];
const GATEWAY: [&str; 2] = ["10.7.0.1:7000", "[fd07::1]:7000"];

/// What was sent from the prefixes that the peer keeps, and what became of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Flood {
    pub sent: u64,
    pub lost: u64,
}

/// Takes a prefix from a peer and gives it back `changes` times, while at least `packets` pass through
/// prefixes that the peer keeps, of both families. Prints the rate and what is lost; the same with `wg set`,
/// which replaces all prefixes of the peer.
pub fn measure(backend: Backend, changes: u64, packets: u64) {
    let netns = Netns::new("Bg");
    let client = Client::new(backend, &netns);
    for address in KEPT {
        client.netns.exec(&format!("ip address add {address} dev {} ", client.name));
    }
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), backend);
        let (key, neighbour) = (private_key(2).public_key(), private_key(3).public_key());
        let name = gateway.name.clone();
        let kept: AllowedIps =
            prefixes(&["10.7.0.2/32", "fd07::2/128", "192.168.7.1/32", "fd50:7::1/128"]);
        let other = prefixes(&["192.168.8.0/24", "fd50:8::/64"]);
        gateway.apply_all(vec![
            Step::AddPeer { key, peer: Peer { allowed_ips: kept.clone(), ..Peer::default() } },
            Step::AddPeer { key: neighbour, peer: peer(&["192.168.0.0/16", "fd50::/16"]) },
        ]);
        netns.exec(&format!("wg set {name} peer {neighbour} endpoint 192.0.2.2:9"));
        for network in ["192.168.0.0/16", "fd50::/16"] {
            netns.exec(&format!("ip route add {network} dev {name}"));
        }
        assert!((0..8).any(|_| client.reaches("10.7.0.1")));

        let start = Instant::now();
        let flood = flooded(&client, packets, |number| {
            gateway.apply(vec![Step::WidenPeer { key, allowed_ips: other.clone() }]);
            gateway.apply(vec![Step::NarrowPeer { key, allowed_ips: kept.clone() }]);
            number + 1 < changes
        });
        let secs = start.elapsed().as_secs_f64();
        let to_neighbour = gateway.host.observe().unwrap().traffic[&neighbour].tx_bytes;
        println!(
            "{changes} changes, {} packets in {secs:.1} s ({:.0} and {:.0} a second): {} lost, {to_neighbour} bytes to the neighbour",
            flood.sent, changes as f64 / secs, flood.sent as f64 / secs, flood.lost,
        );
        let few = changes / 20 + 1;
        let all = format!("{kept},{other}");
        let flood = flooded(&client, 0, |number| {
            netns.exec(&format!("wg set {name} peer {key} allowed-ips {all}"));
            netns.exec(&format!("wg set {name} peer {key} allowed-ips {kept}"));
            number + 1 < few
        });
        let to_neighbour = gateway.host.observe().unwrap().traffic[&neighbour].tx_bytes;
        println!(
            "wg set: {few} changes, {} packets: {} lost, {to_neighbour} bytes to the neighbour",
            flood.sent, flood.lost,
        );
    });
}

/// Sends through both kept prefixes until `change` has said for the last time that it goes on, and `packets`
/// were sent.
fn flooded(client: &Client, packets: u64, mut change: impl FnMut(u64) -> bool) -> Flood {
    let (done, total) = (AtomicBool::new(false), AtomicU64::new(0));
    let servers = GATEWAY.map(|address| UdpSocket::bind(address).unwrap());
    let sockets = KEPT.map(|address| client.netns.enter(|| UdpSocket::bind((address, 0)).unwrap()));
    std::thread::scope(|scope| {
        for server in &servers {
            server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            scope.spawn(|| {
                let mut datagram = [0; 8];
                while let Ok((8, from)) = server.recv_from(&mut datagram) {
                    server.send_to(&datagram, from).unwrap();
                }
            });
        }
        let talks: Vec<_> = sockets
            .iter()
            .zip(GATEWAY)
            .map(|(socket, to)| scope.spawn(|| talk(socket, to, &done, &total)))
            .collect();
        let mut number = 0;
        while change(number) || total.load(Ordering::Relaxed) < packets {
            number += 1;
        }
        done.store(true, Ordering::Relaxed);
        talks.into_iter().map(|talk| talk.join().unwrap()).fold(Flood::default(), |sum, one| {
            Flood { sent: sum.sent + one.sent, lost: sum.lost + one.lost }
        })
    })
}

/// Sends numbered packets, a window at a time, and counts those without an answer.
fn talk(socket: &UdpSocket, to: &str, done: &AtomicBool, total: &AtomicU64) -> Flood {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut flood, mut datagram) = (Flood::default(), [0; 8]);
    while !done.load(Ordering::Relaxed) {
        let numbers = flood.sent..flood.sent + WINDOW;
        for number in numbers.clone() {
            socket.send_to(&number.to_be_bytes(), to).unwrap();
        }
        let mut missing: BTreeSet<u64> = numbers.collect();
        while !missing.is_empty() && socket.recv_from(&mut datagram).is_ok() {
            missing.remove(&u64::from_be_bytes(datagram));
        }
        flood.sent += WINDOW;
        flood.lost += missing.len() as u64;
        total.fetch_add(WINDOW, Ordering::Relaxed);
    }
    socket.send_to(b"end", to).unwrap();
    flood
}
