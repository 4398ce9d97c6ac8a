//! A table that the version before loaded, as this version finds it.

use std::collections::BTreeSet;

use gatepost::model::{DesiredFirewall, FirewallChange};
use gatepost::plan::firewall::{self, FirewallDiff};

use super::network::{LAN4, LAN6, Network, Stream, connect, serve};
use super::packets::{nothing, world};
use super::table::{base, observed, profile};

#[test]
fn the_table_of_the_version_before_is_replaced_at_once_and_cuts_no_flow() {
    let mut network = Network::new();
    network.gateway.load(include_str!("former.nft"));
    serve(&network.lan, 80);
    let mut streams = [LAN4, LAN6].map(|to| connect(&network.alice, to, 80).unwrap());
    let table = network.nft.observe().unwrap();
    let found = table.as_ref().unwrap();
    assert_eq!((found.base(), found.guards("wg0")), (None, true), "it judges, but is not ours");

    let world = world(profile(&["172.16.1.0/24", "fd10::/64"], &[]), nothing());
    let assignments = world.1.iter().map(|(prefix, id)| (*prefix, world.0[id].clone())).collect();
    let desired = DesiredFirewall { base: base(), assignments };
    let none = BTreeSet::new();
    let diff = firewall::diff(&desired, table.as_ref(), None, &none, &none);
    let FirewallDiff { fence: None, close: None, policy: Some(change), open: None } = diff else {
        panic!("not one change: {diff:?}")
    };
    assert!(
        matches!(&change, FirewallChange { load_base: Some(_), assign, .. } if !assign.is_empty())
    );
    network.nft.apply(&change, table.as_ref()).unwrap();
    assert!(streams.iter_mut().all(Stream::echoes));
    assert_eq!(network.nft.observe().unwrap(), Some(observed(&base(), world)));
}

#[test]
fn a_table_whose_chains_were_emptied_does_not_pass_for_that_of_the_version_before() {
    let mut network = Network::new();
    for (edit, guards) in [
        ("flush chain inet gatepost input", false),
        ("insert rule inet gatepost input accept", false),
        ("insert rule inet gatepost input counter", true),
    ] {
        network.gateway.load(&format!("flush ruleset\n{}", include_str!("former.nft")));
        network.gateway.run(&format!("nft {edit}"));
        assert_eq!(network.nft.observe().unwrap().unwrap().guards("wg0"), guards, "{edit}");
    }
}
