//! A profile that grows from rules to sets while its peer sends.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gatepost::model::ProfileId;

use super::network::{LAN4, LAN6, within};
use super::packets::{edit, network, nothing, world};
use super::table::{base, many, profile};

const RANGES: u32 = 100_000;
/// Less than the kernel takes for so many ranges.
const PAUSE: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends datagrams to both addresses until it is told to end, or a panic has told nobody.
fn flood(ends: &AtomicBool, sent: &AtomicU64) {
    let targets = [LAN4, LAN6].map(|to| SocketAddr::new(to.parse().unwrap(), 9));
    let sockets = ["0.0.0.0:0", "[::]:0"].map(|from| UdpSocket::bind(from).unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !ends.load(Ordering::Relaxed) && Instant::now() < deadline {
        for (socket, target) in sockets.iter().zip(targets) {
            socket.send_to(b"x", target).unwrap();
        }
        sent.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
}

#[test]
fn a_policy_that_outgrows_its_rules_denies_nothing_meanwhile() {
    let few = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
    let mut grown = (*many(RANGES, 1)).clone();
    grown.allow4 = grown.allow4.as_slice().iter().chain(few.allow4.as_slice()).copied().collect();
    grown.allow6 = grown.allow6.as_slice().iter().chain(few.allow6.as_slice()).copied().collect();
    let mut network = network(&base(), &world(few, nothing()));
    let (ends, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let counters = thread::scope(|scope| {
        scope.spawn(|| within(&network.alice, || flood(&ends, &sent)));
        let await_more = || {
            let (before, deadline) = (sent.load(Ordering::Relaxed), Instant::now() + PATIENCE);
            while sent.load(Ordering::Relaxed) < before + 10 && Instant::now() < deadline {
                thread::sleep(PAUSE);
            }
        };
        await_more();
        let before = sent.load(Ordering::Relaxed);
        edit(&mut network.nft, 1, Arc::new(grown));
        assert!(sent.load(Ordering::Relaxed) > before, "nothing was sent meanwhile");
        await_more();
        ends.store(true, Ordering::Relaxed);
        network.nft.read_counters_of(ProfileId(1)).unwrap().unwrap()
    });
    assert!(counters.allowed.packets > 0, "no packet was judged");
    assert_eq!(counters.denied.packets, 0, "of {}", counters.allowed.packets);
}
