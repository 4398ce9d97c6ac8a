//! Sets that an agent left which was killed between the two transactions of a change.

use std::net::IpAddr;

use gatepost::dataplane::nft::NftError;
use gatepost::model::{FirewallChange, ProfileId};

use super::packets::{network, nothing, world};
use super::table::{base, many};

const STRANGER: &str = "203.0.113.7";

/// A profile that gets a set of its own.
fn added() -> FirewallChange {
    FirewallChange {
        put_profiles: [(ProfileId(7), (true, many(40, 9)))].into(),
        ..FirewallChange::default()
    }
}

#[test]
fn set_that_was_left_gives_the_next_profile_nothing() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    let read = network.nft.observe().unwrap();
    for family in ["4 { type ipv4_addr", "6 { type ipv6_addr"] {
        network.gateway.load(&format!("add set inet gatepost p_7_{family}; flags interval; }}"));
    }
    network.gateway.run(&format!("nft add element inet gatepost p_7_4 '{{ {STRANGER} }}'"));
    network.nft.apply(&added(), read.as_ref()).unwrap();
    let read = network.nft.observe().unwrap().unwrap();
    assert_eq!(network.nft.difference(), None);
    let stranger: IpAddr = STRANGER.parse().unwrap();
    assert!(!read.profiles()[&ProfileId(7)].allows(stranger), "the sets were merged");
    assert_eq!(read.profiles()[&ProfileId(7)], many(40, 9));
}

#[test]
fn set_that_a_rule_looks_up_is_not_replaced() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    let read = network.nft.observe().unwrap();
    network.gateway.load(
        "add set inet gatepost p_7_4 { type ipv4_addr; flags interval; }
         add chain inet gatepost theirs
         add rule inet gatepost theirs ip saddr @p_7_4 accept",
    );
    let before = network.gateway.run("nft -s list table inet gatepost");
    let refused = network.nft.apply(&added(), read.as_ref()).unwrap_err();
    assert!(matches!(refused, NftError::Refused { .. }), "{refused}");
    assert_eq!(network.gateway.run("nft -s list table inet gatepost"), before);
}
