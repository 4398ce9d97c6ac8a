//! Full size: everything in one transaction, then one element on top. Times are printed, with
//! those of the `nft` program beside them; nothing is asserted about them.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use gatepost::dataplane::nft::{Nft, NftError};
use gatepost::model::{FirewallChange, Profile, ProfileId};
use ipnet::IpNet;

use super::netns::Netns;
use super::table::{World, base, load, observed};

const PEERS: u32 = 100_000;
const RANGES: u32 = 10;

fn host(index: u32) -> IpNet {
    IpNet::from(std::net::IpAddr::from(Ipv4Addr::from(0x0a40_0002 + index)))
}

/// Peers spread over profiles of ten /24 each, all different.
fn world(peers: u32, profiles: u32) -> World {
    let profile = |id: u32| {
        let range = |index: u32| {
            let first = (11 << 24) + ((id * RANGES + index) << 9);
            (first, first + 255)
        };
        Arc::new(Profile { allow4: (0..RANGES).map(range).collect(), ..Profile::default() })
    };
    let holder = |index: u32| (host(index), ProfileId(1 + index % profiles));
    (
        (0..profiles).map(|id| (ProfileId(id + 1), profile(id))).collect(),
        (0..peers).map(holder).collect(),
    )
}

/// The same in nft's language, without the fixed part.
fn text(world: &World) -> String {
    let mut text = String::from("table inet same {\nchain deny { drop; }\n");
    for (id, profile) in &world.0 {
        writeln!(text, "chain p_{} {{\ncounter", id.0).unwrap();
        for (first, _) in profile.allow4.as_slice() {
            writeln!(text, "ct reply ip saddr {}/24 accept", Ipv4Addr::from(*first)).unwrap();
        }
        text.push_str("counter goto deny\n}\n");
    }
    text.push_str("map peer4 { type ipv4_addr : classid; elements = {");
    for (prefix, id) in &world.1 {
        write!(text, "{} : {:x}:{:x},", prefix.addr(), id.0 >> 16, id.0 & 0xffff).unwrap();
    }
    text.push_str("}; }\nmap profile { type classid : verdict; elements = {");
    for id in world.0.keys() {
        write!(text, "{:x}:{:x} : goto p_{},", id.0 >> 16, id.0 & 0xffff, id.0).unwrap();
    }
    text.push_str("}; }\n}\n");
    text
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Loads a world, reads it back, and changes one peer and one profile on top.
fn measure(profiles: u32) {
    let (netns, other) = (Netns::new(), Netns::new());
    netns.enter();
    let mut nft = Nft::open().unwrap();
    let mut world = world(PEERS, profiles);
    let start = Instant::now();
    nft.apply(&load(&base(), &world), None).unwrap();
    let loaded = millis(start);
    let start = Instant::now();
    let read = nft.observe().unwrap().unwrap();
    let observe = millis(start);
    assert_eq!(nft.difference(), None);
    assert!(read == observed(&base(), world.clone()), "what was loaded is read back");

    let mut added: Vec<f64> = (0..100)
        .map(|index| {
            let change = FirewallChange {
                assign: [(host(PEERS + index), ProfileId(1))].into(),
                ..FirewallChange::default()
            };
            let start = Instant::now();
            nft.apply(&change, Some(&read)).unwrap();
            millis(start)
        })
        .collect();
    added.sort_unstable_by(f64::total_cmp);
    let mut edited = (*world.0[&ProfileId(1)]).clone();
    edited.allow4 = edited.allow4.as_slice()[1..].iter().copied().collect();
    let change = FirewallChange {
        put_profiles: [(ProfileId(1), (false, Arc::new(edited)))].into(),
        ..FirewallChange::default()
    };
    let start = Instant::now();
    nft.apply(&change, Some(&read)).unwrap();
    let edit = millis(start);
    println!(
        "{PEERS} peers, {profiles} profiles of {RANGES}: load {loaded:.0} ms, read back \
         {observe:.0} ms, one peer more {:.3} ms (p99 {:.3}), one profile edited {edit:.3} ms",
        added[50], added[99],
    );
    if profiles <= 1_000 {
        world.1.remove(&host(0));
        let text = text(&world);
        let start = Instant::now();
        other.load(&text);
        let load = millis(start);
        let start = Instant::now();
        other.run("nft add element inet same peer4 '{ 10.64.0.2 : 0:1 }'");
        println!("the same with nft: load {load:.0} ms, one peer more {:.1} ms", millis(start));
    }
}

#[test]
fn a_full_gateway_loads_in_one_transaction() {
    measure(1_000);
}

#[test]
#[ignore = "minutes of work and gigabytes of memory: run by hand"]
fn every_peer_different() {
    measure(20_000);
    measure(100_000);
}

#[test]
fn a_full_size_change_refused_at_its_very_end_changes_nothing() {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    nft.apply(&load(&base(), &world(10, 2)), None).unwrap();
    let before = nft.observe().unwrap().unwrap();
    let generation = nft.generation().unwrap();
    // Everything is new but the last profile, whose chain is there already.
    let mut change = load(&base(), &world(PEERS, 1_000));
    change.load_base = None;
    change.put_profiles.retain(|id, _| *id > ProfileId(2));
    change.assign.retain(|_, id| *id > ProfileId(2));
    let (_, profile) = world(1, 1).0.pop_first().unwrap();
    change.put_profiles.insert(ProfileId(1_001), (true, profile));
    netns.run("nft add chain inet gatepost p_1001");
    let refused = nft.apply(&change, Some(&before)).unwrap_err();
    assert!(matches!(refused, NftError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("p_1001"), "{refused}");
    assert_eq!(nft.generation().unwrap(), generation + 1, "only nft's change was made");
    let after = nft.observe().unwrap().unwrap();
    assert_eq!(after.assignments(), before.assignments());
}
