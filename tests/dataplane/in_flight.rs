//! Packets that are between the userspace device's decision and the kernel while a peer changes.

use std::net::UdpSocket;
use std::time::Duration;

use gatepost::dataplane::Backend;
use gatepost::plan::Step;
use nix::sys::socket::{setsockopt, sockopt};

use crate::engine::{client_key, eventually, with_session};
use crate::netns::Netns;
use crate::rig::{PORT, add, counters, key as key_of, peer, prefixes};
use crate::runner::Test;
use crate::tunnel::Client;

pub const TESTS: &[Test] =
    &[("no_packet_follows_the_answer_that_its_prefix_is_taken_away", a_prefix_is_taken_away)];

/// Rules that match nothing, and how often a packet passes them all: far longer than its decryption takes.
const RULES: usize = 1_000;
const PASSES: usize = 60;
/// Datagrams that are sent at once, and how often.
const BURST: usize = 50;
const BURSTS: usize = 16;
/// More than there can be handshakes and keepalives meanwhile.
const HANDSHAKES: usize = 10;
/// How many of them must be on their way for the test to mean something.
const WAITING: usize = 20;
const ATTEMPTS: usize = 10;

/// Makes the kernel slow to take what comes by a link, so that packets queue up before it.
fn slow_down(netns: &Netns, link: &str) {
    let rules = "meta mark 77 drop\n".repeat(RULES);
    let jumps = "jump long\n".repeat(PASSES);
    let script = format!(
        "table inet slow {{\nchain long {{\n{rules}}}\n\
         chain in {{ type filter hook prerouting priority 0;\n\
         iifname != \"{link}\" accept\n{jumps}}}\n}}\n"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    netns.exec(&format!("nft -f {}", file.path().display()));
}

/// Reads what has come, and returns how many datagrams that were.
fn drain(socket: &UdpSocket) -> usize {
    std::iter::from_fn(|| socket.recv(&mut [0; 9]).ok()).count()
}

/// What a link has sent, and what it lost before, in packets.
fn sent(netns: &Netns, link: &str) -> (usize, usize) {
    let counters = counters(netns, link);
    (counters.sent, counters.lost)
}

/// Whether datagrams wait in the gateway's socket.
fn waits_for_the_gateway() -> bool {
    let sockets = ["udp", "udp6"].map(|family| format!("/proc/thread-self/net/{family}"));
    let sockets = sockets.map(|file| std::fs::read_to_string(file).unwrap());
    sockets.iter().flat_map(|table| table.lines().skip(1)).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&format!(":{PORT:04X}")) && !fields[4].ends_with(":00000000")
    })
}

/// The client sends to port 7000, and returns when all of that has left it.
fn flood(client: &Client, socket: &UdpSocket) {
    let counts =
        || (sent(&client.netns, client.name.as_str()), sent(&client.netns, &client.cable).0);
    let ((read, lost), encrypted) = counts();
    for _ in 0..BURSTS {
        for _ in 0..BURST {
            socket.send_to(b"x", "10.7.0.1:7000").unwrap();
        }
        // The client's own queue holds no more.
        std::thread::sleep(Duration::from_millis(1));
    }
    // A handshake that is counted with them stands for one of the last, which is not awaited.
    for _ in 0..HANDSHAKES {
        socket.send_to(b"x", "10.7.0.1:9").unwrap();
    }
    eventually("the client has sent it all", || {
        let (now, encrypted_now) = counts();
        now.0 + now.1 >= read + lost + BURSTS * BURST + HANDSHAKES
            && encrypted_now - encrypted >= now.0 - read
    });
}

fn a_prefix_is_taken_away(_: Backend) {
    with_session(|netns, gateway, client| {
        slow_down(netns, gateway.name.as_str());
        let server = UdpSocket::bind("10.7.0.1:7000").unwrap();
        setsockopt(&server, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        server.set_nonblocking(true).unwrap();
        let socket = client.netns.enter(|| UdpSocket::bind("10.7.0.2:7001").unwrap());
        let (key, address) = (client_key(), prefixes(&["10.7.0.2/32"]));
        let rest = prefixes(&["fd07::2/128"]);
        for taking in [Step::RemovePeer { key }, Step::NarrowPeer { key, allowed_ips: rest }] {
            let what = taking.to_string();
            // On a busy machine the client sends no faster than the kernel takes.
            let mut waiting = (0..ATTEMPTS).map(|_| {
                flood(client, &socket);
                drain(&server);
                gateway.apply(vec![taking.clone()]);
                let came_before_the_answer = drain(&server);
                // What it had not read by then it reads before the peer has the prefix again.
                eventually("the gateway has read all", || !waits_for_the_gateway());
                gateway.apply(vec![add(9, &["10.7.0.9/32"]), Step::RemovePeer { key: key_of(9) }]);
                let giving = match gateway.observed.peers.contains_key(&key) {
                    true => Step::WidenPeer { key, allowed_ips: address.clone() },
                    false => Step::AddPeer { key, peer: peer(&["10.7.0.2/32", "fd07::2/128"]) },
                };
                gateway.apply(vec![giving]);
                // Packets keep their order, so this one comes last.
                eventually("packets pass again", || client.reaches("10.7.0.1"));
                assert_eq!(drain(&server), 0, "came after the answer to {what}");
                came_before_the_answer
            });
            assert!(
                waiting.any(|packets| packets > WAITING),
                "too few were on their way at {what}"
            );
        }
    });
}
