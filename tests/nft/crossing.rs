//! Packets that are on their way through the rules at the moment of a change are judged by one of both policies.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gatepost::model::{FirewallChange, Profile, ProfileId};

use super::network::{LAN4, Network, bind, within};
use super::packets::{ALICE, network, nothing, world};
use super::table::{base, profile};

const PORT: u16 = 9000;
/// Each is met by a packet with a chance of some percent, where it can be met.
const CHANGES: u32 = 400;
const SENDERS: usize = 2;

/// Moves Alice from one profile to another again and again while she floods the LAN. Returns how many of her
/// datagrams came there.
fn flooded(network: &mut Network, profile: impl Fn(u32) -> Arc<Profile>) -> usize {
    let ear = bind(&network.lan, LAN4, PORT);
    ear.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let over = AtomicBool::new(false);
    let send = |alice: &_| {
        within(alice, || {
            let socket = UdpSocket::bind(("10.64.0.2", 0)).unwrap();
            while !over.load(Ordering::Relaxed) {
                // What is denied may be answered with an error.
                let _ = socket.send_to(b"?", (LAN4, PORT));
            }
        });
    };
    let Network { alice, nft, .. } = network;
    thread::scope(|scope| {
        (0..SENDERS).for_each(|_| drop(scope.spawn(|| send(alice))));
        let heard = scope.spawn(|| {
            let mut heard = 0;
            loop {
                match ear.recv(&mut [0; 16]) {
                    Ok(_) => heard += 1,
                    Err(_) if over.load(Ordering::Relaxed) => return heard,
                    Err(_) => {}
                }
            }
        });
        let mut observed = nft.observe().unwrap();
        for number in 0..CHANGES {
            // Profile 2 is Bob's.
            let [former, new] = if number % 2 == 0 { [1, 3] } else { [3, 1] }.map(ProfileId);
            let change = FirewallChange {
                put_profiles: [(new, (true, profile(number)))].into(),
                assign: ALICE.map(|prefix| (prefix.parse().unwrap(), new)).into(),
                remove_profiles: vec![former],
                ..FirewallChange::default()
            };
            nft.apply(&change, observed.as_ref()).unwrap();
            observed = nft.observe().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        heard.join().unwrap()
    })
}

/// A host that no test has, another one each time.
fn elsewhere(number: u32) -> String {
    format!("172.16.{}.{}", 100 + number / 250, number % 250)
}

#[test]
fn a_packet_that_meets_a_change_is_denied_where_both_policies_deny_it() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    let passed = flooded(&mut network, |number| profile(&[&elsewhere(number)], &[]));
    assert_eq!(passed, 0, "packets passed that neither policy allows");
}

#[test]
fn a_packet_that_meets_a_change_passes_where_both_policies_allow_it() {
    let mut network = network(&base(), &world(profile(&[LAN4], &[]), nothing()));
    let passed = flooded(&mut network, |number| profile(&[LAN4, &elsewhere(number)], &[]));
    let denied = network.gateway.run("nft list chain inet gatepost judge");
    assert!(denied.contains("counter packets 0 bytes 0 goto deny"), "{denied}");
    assert!(passed > 0, "nothing was sent");
}
