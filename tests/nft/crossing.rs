//! Packets that are on their way through the rules at the moment of a change are judged by one of both policies.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gatepost::model::{FirewallChange, Profile, ProfileId};

use super::netns::Netns;
use super::network::{LAN4, Network, bind, within};
use super::packets::{ALICE, network, nothing, world};
use super::table::{WG, base, load, profile};

const PORT: u16 = 9000;
/// Each is met by a packet with a chance of some percent, where it can be met.
const CHANGES: u32 = 200;
const SENDERS: usize = 2;

/// Sends datagrams from Alice to the LAN until it is over.
fn flood(alice: &Netns, over: &AtomicBool) {
    within(alice, || {
        let socket = UdpSocket::bind(("10.64.0.2", 0)).unwrap();
        while !over.load(Ordering::Relaxed) {
            // What is denied may be answered with an error.
            let _ = socket.send_to(b"?", (LAN4, PORT));
        }
    });
}

/// Profiles in chains of their own, in turn. Profile 2 is Bob's.
fn in_chains(number: u32) -> ProfileId {
    ProfileId(if number.is_multiple_of(2) { 1 } else { 3 })
}

/// After profile 1, the first profile of another block each time.
fn in_new_blocks(number: u32) -> ProfileId {
    ProfileId(number * 1_024 + 1)
}

/// Moves Alice from one of these profiles to the next again and again while she floods the LAN. Returns how many of
/// her datagrams came there.
fn flooded(
    network: &mut Network,
    id: fn(u32) -> ProfileId,
    profile: impl Fn(u32) -> Arc<Profile>,
) -> usize {
    let ear = bind(&network.lan, LAN4, PORT);
    ear.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let over = AtomicBool::new(false);
    let Network { alice, nft, .. } = network;
    thread::scope(|scope| {
        (0..SENDERS).for_each(|_| drop(scope.spawn(|| flood(alice, &over))));
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
            let [former, new] = [number, number + 1].map(id);
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
    for id in [in_chains, in_new_blocks] {
        let mut network = network(&base(), &world(nothing(), nothing()));
        let passed = flooded(&mut network, id, |number| profile(&[&elsewhere(number)], &[]));
        assert_eq!(passed, 0, "packets passed that neither policy allows");
    }
}

#[test]
fn a_packet_that_meets_a_change_passes_where_both_policies_allow_it() {
    let mut network = network(&base(), &world(profile(&[LAN4], &[]), nothing()));
    let passed =
        flooded(&mut network, in_chains, |number| profile(&[LAN4, &elsewhere(number)], &[]));
    let denied = network.gateway.run("nft list chain inet gatepost judge");
    assert!(denied.contains("counter packets 0 bytes 0 goto deny"), "{denied}");
    assert!(passed > 0, "nothing was sent");
}

/// While the kernel deletes the former table, its rules judge beside the new ones and find its maps empty.
#[test]
fn a_table_that_is_loaded_anew_denies_what_it_allows_for_an_instant_at_most() {
    const RELOADS: usize = 100;
    const PROFILES: u32 = 100;
    /// Measured: one of 2,500, and one of 30 where the kernel deletes all rules and sets before it unhooks a chain.
    const AT_MOST_ONE_OF: u64 = 300;
    let (mut profiles, mut places) = world(profile(&[LAN4], &[]), nothing());
    for number in 0..PROFILES {
        let id = ProfileId(10 + number);
        profiles.insert(id, profile(&[&elsewhere(number)], &[]));
        places.insert(format!("10.64.0.{}/32", 100 + number).parse().unwrap(), id);
    }
    let table = load(&base(), &(profiles, places));
    let mut network = Network::new();
    network.nft.apply(&table, None).unwrap();
    let counted = |priority: i32| {
        let hook = format!("type filter hook forward priority {priority}");
        format!("chain at{} {{ {hook}; iifname {WG} udp dport {PORT} counter; }}", priority + 500)
    };
    network.gateway.load(&format!("table inet probe {{\n{}\n{}\n}}", counted(-500), counted(500)));
    let _ear = bind(&network.lan, LAN4, PORT);
    let over = AtomicBool::new(false);
    let Network { alice, nft, .. } = &mut network;
    thread::scope(|scope| {
        (0..SENDERS).for_each(|_| drop(scope.spawn(|| flood(alice, &over))));
        for _ in 0..RELOADS {
            let observed = nft.observe().unwrap();
            nft.apply(&table, observed.as_ref()).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let listing = network.gateway.run("nft list table inet probe");
    let counts = listing.split("counter packets ").skip(1);
    let counts: Vec<u64> =
        counts.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect();
    let (came, passed) = (counts[0], counts[1]);
    println!("{} of {came} packets denied in {RELOADS} reloads", came - passed);
    assert!((came - passed) * AT_MOST_ONE_OF <= came, "{} of {came} denied", came - passed);
}
