//! Packets that were judged for one peer and wait for the userspace device while an address passes to
//! another peer.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Instant;

use gatepost::dataplane::Backend;
use gatepost::model::PublicKey;
use gatepost::plan::Step;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::device::pid;
use crate::engine::{client_key, eventually, with_session};
use crate::netns::Netns;
use crate::rig::{Gateway, counters, peer, prefixes, private_key};
use crate::runner::Test;
use crate::tunnel::Client;

pub const TESTS: &[Test] = &[
    ("the_next_holder_of_an_address_receives_no_packet_that_waited_for_the_former", next_holder),
    ("a_peer_around_a_prefix_that_is_taken_away_receives_no_packet_that_waited_for_it", outer_peer),
    ("a_peer_that_gets_a_part_of_another_prefix_receives_no_packet_that_waited_for_it", inner_peer),
];

/// How many packets wait for the device. Its link's queue holds more.
const WAITING: usize = 3_000;
const QUEUE: usize = 4_000;
const HANDOVERS: u32 = 20;

/// The device's process does not run until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(device: Pid) -> Self {
        kill(device, Signal::SIGSTOP).unwrap();
        eventually("the device is stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{device}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
        });
        Self(device)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A connection to the device on which requests wait for each other.
struct Requests(UnixStream);

impl Requests {
    fn open(gateway: &Gateway) -> Self {
        let name = format!("gatepost/{}", gateway.name);
        let address = SocketAddr::from_abstract_name(name).unwrap();
        Self(UnixStream::connect_addr(&address).unwrap())
    }

    fn send(&mut self, request: &str) {
        self.0.write_all(format!("set=1\n{request}\n").as_bytes()).unwrap();
    }

    /// What the device answers to the next request.
    fn answer(&mut self) -> Errno {
        let mut answer = String::new();
        while !answer.ends_with("\n\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            answer.push(byte[0].into());
        }
        let errno: i32 = answer.trim().strip_prefix("errno=").unwrap().parse().unwrap();
        Errno::from_raw(-errno)
    }

    /// Waits until this request, which was sent once, is carried out. Meanwhile it may be refused.
    fn await_done(&mut self, request: &str) {
        eventually("what gives is carried out", || match self.answer() {
            Errno::UnknownErrno => true,
            Errno::ETIMEDOUT => {
                self.send(request);
                false
            }
            errno => panic!("{request}: {errno}"),
        });
    }
}

fn of_peer(key: &PublicKey, lines: &str) -> String {
    let key: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("public_key={key}\nupdate_only=true\n{lines}\n")
}

fn next_key() -> PublicKey {
    private_key(3).public_key()
}

/// A gateway with two peers that have a session, the client and another, and a long queue.
fn with_two(test: impl FnOnce(&Netns, &mut Gateway, [&Client; 2]) + Send) {
    with_session(|netns, gateway, client| {
        let other = Client::numbered(3, Backend::Userspace, netns);
        gateway.apply_all(vec![Step::AddPeer { key: next_key(), peer: peer(&["10.7.0.3/32"]) }]);
        eventually("the other has a session", || other.reaches("10.7.0.1"));
        netns.exec(&format!("ip link set {} txqueuelen {QUEUE}", gateway.name));
        netns.exec(&format!("ip route add 10.50.0.0/16 dev {}", gateway.name));
        netns.exec(&format!("ip route add fd50::/16 dev {}", gateway.name));
        test(netns, gateway, [client, &other]);
    });
}

fn send(addresses: &[&str], count: usize) {
    let sockets = ["10.7.0.1:0", "[fd07::1]:0"].map(|from| UdpSocket::bind(from).unwrap());
    for address in addresses.iter().cycle().take(count) {
        let address: std::net::IpAddr = address.parse().unwrap();
        sockets[usize::from(address.is_ipv6())].send_to(b"x", (address, 7000)).unwrap();
    }
}

/// How many packets have come out of the client's tunnel.
fn received(client: &Client) -> usize {
    counters(&client.netns, client.name.as_str()).received
}

/// Sends requests while packets to these addresses wait in the queue of the device, which does not run.
fn request_behind_packets(
    netns: &Netns,
    gateway: &Gateway,
    to: &[&str],
    requests: &[&str],
) -> Requests {
    let lost = || counters(netns, gateway.name.as_str()).lost;
    let mut connection = Requests::open(gateway);
    let lost_before = lost();
    let stopped = Stopped::stop(pid(&gateway.name));
    send(to, WAITING);
    assert_eq!(lost(), lost_before, "the queue is too short");
    requests.iter().for_each(|request| connection.send(request));
    drop(stopped);
    connection
}

fn next_holder(_: Backend) {
    const ADDRESSES: [&str; 2] = ["10.7.0.2", "fd07::2"];
    with_two(|netns, gateway, [client, next]| {
        let (former, before) = (received(client), received(next));
        let take = of_peer(&client_key(), "remove=true");
        let give = of_peer(&next_key(), "allowed_ip=10.7.0.2/32\nallowed_ip=fd07::2/128");
        let mut requests = request_behind_packets(netns, gateway, &ADDRESSES, &[&take, &give]);
        assert_eq!(requests.answer(), Errno::UnknownErrno);
        let taken = Instant::now();
        requests.await_done(&give);
        println!("behind {WAITING} packets the next holder had waited {:?}", taken.elapsed());
        send(&ADDRESSES, ADDRESSES.len());
        // Packets keep their order, so these come last.
        eventually("the next holder is reached", || received(next) >= before + ADDRESSES.len());
        assert_eq!(received(next), before + ADDRESSES.len(), "packets of before came");
        assert!(received(client) < former + WAITING, "no packet waited any more");

        let give_back = of_peer(&next_key(), "replace_allowed_ips=true\nallowed_ip=10.7.0.3/32");
        let begun = Instant::now();
        for request in [&give_back, &give].into_iter().cycle().take(2 * HANDOVERS as usize) {
            requests.send(request);
            requests.await_done(request);
        }
        println!("an idle device hands over in {:?}", begun.elapsed() / HANDOVERS);
    });
}

fn outer_peer(_: Backend) {
    const ADDRESSES: [&str; 2] = ["10.50.1.9", "fd50:1::9"];
    with_two(|netns, gateway, [client, outer]| {
        gateway.apply_all(vec![
            Step::WidenPeer {
                key: client_key(),
                allowed_ips: prefixes(&["10.50.1.0/24", "fd50:1::/32"]),
            },
            Step::WidenPeer {
                key: next_key(),
                allowed_ips: prefixes(&["10.50.0.0/16", "fd50::/16"]),
            },
        ]);
        let (former, before) = (received(client), received(outer));
        let take = of_peer(&client_key(), "replace_allowed_ips=true\nallowed_ip=10.7.0.2/32");
        let mut requests = request_behind_packets(netns, gateway, &ADDRESSES, &[&take]);
        assert_eq!(requests.answer(), Errno::UnknownErrno);
        let mut sent = 0;
        eventually("the outer peer is reached", || {
            send(&ADDRESSES, ADDRESSES.len());
            sent += ADDRESSES.len();
            received(outer) > before
        });
        gateway.apply(vec![Step::NarrowPeer {
            key: client_key(),
            allowed_ips: prefixes(&["10.7.0.2/32"]),
        }]);
        gateway.check();
        assert!(received(outer) <= before + sent, "packets of before came");
        assert!(received(client) < former + WAITING, "no packet waited any more");
    });
}

fn inner_peer(_: Backend) {
    const ADDRESSES: [&str; 2] = ["10.50.1.9", "fd50:1::9"];
    with_two(|netns, gateway, [_, inner]| {
        let outer = prefixes(&["10.50.0.0/16", "fd50::/16"]);
        gateway.apply_all(vec![Step::WidenPeer { key: client_key(), allowed_ips: outer }]);
        let before = received(inner);
        let give = of_peer(&next_key(), "allowed_ip=10.50.1.0/24\nallowed_ip=fd50:1::/32");
        let mut requests = request_behind_packets(netns, gateway, &ADDRESSES, &[&give]);
        requests.await_done(&give);
        send(&ADDRESSES, ADDRESSES.len());
        eventually("the inner peer is reached", || received(inner) >= before + ADDRESSES.len());
        assert_eq!(received(inner), before + ADDRESSES.len(), "packets of before came");
    });
}
