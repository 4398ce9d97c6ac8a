//! A table that belongs to the agent's socket, which kernels from 6.9 know.

use std::collections::BTreeSet;

use gatepost::dataplane::nft::{Nft, NftError, Ownership, labels_flows};
use gatepost::model::{DesiredFirewall, FirewallChange, ProfileId};
use gatepost::plan::firewall::{self, FirewallDiff};

use super::netns::Netns;
use super::network::{LAN4, LAN6, Network, Stream, connect, serve};
use super::packets::{nothing, world};
use super::services::eventually;
use super::table::{World, base, load, observed, profile};

fn one_peer() -> World {
    let assigned = ("10.64.0.2/32".parse().unwrap(), ProfileId(1));
    ([(ProfileId(1), profile(&["10.0.0.0/8"], &[]))].into(), [assigned].into())
}

fn owner() -> Nft {
    let nft = Nft::open_with(Ownership::Taken).unwrap();
    assert_eq!(nft.ownership(), Ownership::Taken, "this kernel keeps no owned table");
    nft
}

fn loaded() -> (Netns, Nft) {
    let netns = Netns::new();
    netns.enter();
    let mut nft = owner();
    nft.apply(&load(&base(), &one_peer()), None).unwrap();
    assert_eq!(nft.observe().unwrap(), Some(observed(&base(), one_peer())));
    (netns, nft)
}

/// The result of a change; `None`: the table still has another owner. A process that another test is starting
/// may hold a former owner's socket for a moment longer.
fn unless_owned<T>(changed: Result<T, NftError>) -> Option<T> {
    match changed {
        Err(NftError::OtherOwner { .. }) => None,
        changed => Some(changed.unwrap()),
    }
}

/// Everything that another program may try.
const EDITS: [&str; 6] = [
    "nft delete table inet gatepost",
    "nft flush table inet gatepost",
    "nft insert rule inet gatepost forward accept",
    "nft add element inet gatepost peer4 '{ 10.64.0.9 : 0:1 }'",
    "nft flush map inet gatepost peer4",
    "nft add table inet gatepost '{ flags dormant; }'",
];

#[test]
fn no_other_program_changes_an_owned_table() {
    let (netns, mut nft) = loaded();
    for edit in EDITS {
        assert!(!netns.succeeds(edit), "{edit}");
    }
    netns.run("nft add table inet other");
    netns.run("nft flush ruleset");
    assert!(!netns.run("nft list tables").contains("other"), "nothing was flushed");
    assert!(nft.is_current().unwrap(), "what others do elsewhere is followed");
    assert_eq!(nft.observe().unwrap(), Some(observed(&base(), one_peer())));
    assert_eq!(nft.difference(), None);

    let mut second = owner();
    let read = second.observe().unwrap();
    assert_eq!(read, Some(observed(&base(), one_peer())), "others may read it");
    let change = FirewallChange {
        unassign: vec!["10.64.0.2/32".parse().unwrap()],
        ..FirewallChange::default()
    };
    let refused = second.apply(&change, read.as_ref()).unwrap_err();
    assert!(matches!(refused, NftError::OtherOwner { .. }), "{refused}");
    assert!(matches!(second.remove_table(), Err(NftError::OtherOwner { .. })));
    assert!(labels_flows().unwrap(), "what this kernel can do is found out beside it");
    nft.apply(&change, read.as_ref()).unwrap();
    assert!(nft.remove_table().unwrap());
}

#[test]
fn an_owned_table_outlives_its_owner_and_is_taken_over_by_the_next() {
    let (netns, nft) = loaded();
    drop(nft);
    let mut reader = Nft::open_with(Ownership::Respected).unwrap();
    assert_eq!(reader.observe().unwrap(), Some(observed(&base(), one_peer())));
    assert_eq!(reader.difference(), None);
    drop(reader);
    // A process that another test is starting may hold the owner's socket for a moment longer.
    let insertion = "nft insert rule inet gatepost forward counter";
    eventually("the table has no owner", || netns.succeeds(insertion));

    let mut next = owner();
    let edited = next.observe().unwrap();
    assert_eq!(next.difference().unwrap().to_string(), "chain forward");
    for edit in EDITS {
        assert!(!netns.succeeds(edit), "{edit}: it was not taken over");
    }
    next.apply(&load(&base(), &one_peer()), edited.as_ref()).unwrap();
    assert_eq!(next.observe().unwrap(), Some(observed(&base(), one_peer())));
    netns.run("nft flush ruleset");
    assert_eq!(next.observe().unwrap(), Some(observed(&base(), one_peer())));

    drop(next);
    let mut last = Nft::open_with(Ownership::Respected).unwrap();
    eventually("the table has no owner", || unless_owned(last.remove_table()) == Some(true));
    assert_eq!(last.observe().unwrap(), None);
}

/// An upgrade, a changed option and a way back.
#[test]
fn a_table_gets_and_loses_its_owner_in_one_change_that_cuts_no_flow() {
    let mut network = Network::new();
    let world = world(profile(&["172.16.1.0/24", "fd10::/64"], &[]), nothing());
    network.nft.apply(&load(&base(), &world), None).unwrap();
    serve(&network.lan, 80);
    let mut streams = [LAN4, LAN6].map(|to| connect(&network.alice, to, 80).unwrap());
    let assignments = world.1.iter().map(|(prefix, id)| (*prefix, world.0[id].clone())).collect();
    let desired = DesiredFirewall { base: base(), assignments };
    for ownership in [Ownership::Taken, Ownership::Shared] {
        let mut nft = Nft::open_with(ownership).unwrap();
        let table = nft.observe().unwrap();
        let found = table.as_ref().unwrap();
        assert_eq!((found.base(), found.guards("wg0")), (None, true), "{ownership:?}");
        assert!(nft.difference().unwrap().to_string().contains("flags"), "{ownership:?}");
        let none = BTreeSet::new();
        let diff = firewall::diff(&desired, table.as_ref(), None, &none, &none);
        let FirewallDiff { fence: None, close: None, policy: Some(change), open: None } = diff
        else {
            panic!("not one change: {diff:?}")
        };
        eventually("the table has no other owner", || {
            unless_owned(nft.apply(&change, table.as_ref())).is_some()
        });
        assert_eq!(nft.observe().unwrap(), Some(observed(&base(), world.clone())));
        assert!(streams.iter_mut().all(Stream::echoes), "{ownership:?}");
        network.gateway.run("nft flush ruleset");
        let stays = ownership == Ownership::Taken;
        assert_eq!(nft.observe().unwrap().is_some(), stays, "{ownership:?}");
    }
}
