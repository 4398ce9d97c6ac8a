//! What policies cost: to load, to change, and for each packet. Beside each figure stands the same
//! by the `nft` program, or without a firewall, in the same run.
//!
//! Needs root. Works in network namespaces of its own. `GATEPOST_BENCH_ROUNDS` says how often a
//! packet's cost is measured (9). With the argument `foreign` it measures only packets that do not
//! concern us, with `former` what version 0.1.0 and this one cost with few peers.
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "figures.rs"]
mod figures;
#[path = "policy/forward.rs"]
mod forward;
#[path = "../nft/full.rs"]
mod full;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../nft/netns.rs"]
mod netns;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../nft/table.rs"]
mod table;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use figures::{millis, quantile, timed};
use gatepost::dataplane::nft::Nft;
use gatepost::model::{FirewallChange, ObservedFirewall, ProfileId};

use full::{RANGES, host, profile, world};
use netns::Netns;
use table::{base, load, observed};

/// Peers and distinct profiles. In the last ones no user is like another.
const SIZES: [(u32, u32); 4] =
    [(10_000, 1_000), (100_000, 1_000), (100_000, 20_000), (100_000, 100_000)];
const ADDED: u32 = 200;
const ADDED_OF_ITS_OWN: u32 = 20;
const ADDED_BY_NFT: u32 = 9;

fn main() {
    if let Some(asked) = std::env::args().find_map(|arg| forward::Asked::named(&arg)) {
        return forward::measure(asked);
    }
    println!("\nload and change: `inet gatepost` by netlink, beside `nft` with the same table");
    println!(
        "profiles are of {RANGES} prefixes; one more: one address gets a profile, median (p99); its own: one that nobody else has; less: a profile loses a prefix"
    );
    println!(
        "{:>9} {:>9} {:>10} {:>10} {:>10} {:>18} {:>9} {:>8} {:>10} {:>10} {:>10}",
        "peers",
        "profiles",
        "load",
        "nft -f",
        "read back",
        "one more",
        "nft add",
        "ratio",
        "its own",
        "first less",
        "last less"
    );
    for (peers, profiles) in SIZES {
        // A thread's namespace is left with the thread.
        std::thread::scope(|scope| scope.spawn(|| measure(peers, profiles)).join().unwrap());
    }
    forward::measure(forward::Asked::All);
}

fn measure(peers: u32, profiles: u32) {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    let world = world(peers, profiles);
    let whole = load(&base(), &world);
    let loaded = timed(|| nft.apply(&whole, None).unwrap());
    let mut read = None;
    let observe = timed(|| read = nft.observe().unwrap());
    let read = read.unwrap();
    assert!(read == observed(&base(), world), "what was loaded is read back");

    let (text, program) = reload(&netns);
    let added = add(&mut nft, &read, peers);
    let own = quantile(&add_own(&mut nft, &read, peers, profiles), 50);
    // The first has a chain; the last one of many is in a block.
    let edited = [1, profiles].map(|id| quantile(&edit(&mut nft, read.clone(), ProfileId(id)), 50));
    let one_more = quantile(&added, 50);
    let ratio = program.as_secs_f64() / one_more.as_secs_f64();
    let one_more = format!("{:.3} ({:.3}) ms", millis(one_more), millis(quantile(&added, 99)));
    println!(
        "{peers:>9} {profiles:>9} {:>7.0} ms {:>7.0} ms {:>7.0} ms {one_more:>18} {:>6.1} ms {ratio:>6.0} x {:>7.2} ms {:>7.2} ms {:>7.2} ms",
        millis(loaded),
        millis(text),
        millis(observe),
        millis(program),
        millis(own),
        millis(edited[0]),
        millis(edited[1]),
    );
}

/// The time of the call that adds one element, each.
fn add(nft: &mut Nft, read: &ObservedFirewall, peers: u32) -> Vec<Duration> {
    let one = |index: u32| {
        let assign = [(host(peers + index), ProfileId(1))].into();
        let change = FirewallChange { assign, ..FirewallChange::default() };
        timed(|| nft.apply(&change, Some(read)).unwrap())
    };
    (0..ADDED).map(one).collect()
}

/// The time of the call that adds one element with a profile like nobody else's, each.
fn add_own(nft: &mut Nft, read: &ObservedFirewall, peers: u32, profiles: u32) -> Vec<Duration> {
    let mut table = Some(read.clone());
    let one = |index: u32| {
        let id = ProfileId(profiles + 1 + index);
        let change = FirewallChange {
            put_profiles: [(id, (true, profile(profiles + index)))].into(),
            assign: [(host(peers + ADDED + index), id)].into(),
            ..FirewallChange::default()
        };
        let took = timed(|| nft.apply(&change, table.as_ref()).unwrap());
        ObservedFirewall::apply(&mut table, &change);
        took
    };
    (0..ADDED_OF_ITS_OWN).map(one).collect()
}

/// The time of the call that takes one range from one profile, each.
fn edit(nft: &mut Nft, read: ObservedFirewall, id: ProfileId) -> Vec<Duration> {
    let mut read = Some(read);
    let one = |_| {
        let table = read.as_ref().unwrap();
        let mut edited = (*table.profiles()[&id]).clone();
        edited.allow4 = edited.allow4.as_slice()[1..].iter().copied().collect();
        let change = FirewallChange {
            put_profiles: [(id, (false, Arc::new(edited)))].into(),
            ..FirewallChange::default()
        };
        let took = timed(|| nft.apply(&change, Some(table)).unwrap());
        ObservedFirewall::apply(&mut read, &change);
        took
    };
    (1..RANGES).map(one).collect()
}

/// What stands in our table, as text, loaded by `nft -f` elsewhere; then one element by `nft add`.
fn reload(ours: &Netns) -> (Duration, Duration) {
    let theirs = Netns::new();
    let text = tempfile::NamedTempFile::new().unwrap();
    let listing = File::create(text.path()).unwrap();
    let listed = ours.command("nft -s list table inet gatepost").stdout(listing).status().unwrap();
    assert!(listed.success(), "nft lists our table");
    let loaded = timed(|| theirs.run(&format!("nft -f {}", text.path().display())));
    let one = |index: u32| {
        let element = format!("10.128.0.{index} : 0:1");
        timed(|| theirs.run(&format!("nft add element inet gatepost peer4 '{{ {element} }}'")))
    };
    let added: Vec<Duration> = (0..ADDED_BY_NFT).map(one).collect();
    (loaded, quantile(&added, 50))
}
