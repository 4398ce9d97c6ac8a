//! Profiles without a chain of their own judge packets like those with one.

use std::sync::Arc;

use gatepost::model::ProfileId;

use super::network::{
    GATEWAY4, GATEWAY6, LAN4, LAN6, PUBLIC4, PUBLIC6, asks, asks_in_vain, connect, pings,
    pings_in_vain, serve,
};
use super::packets::{edit, network, nothing, numbered};
use super::table::{base, many, profile};

#[test]
fn a_profile_in_a_block_is_judged_like_one_with_a_chain() {
    const IDS: [u32; 2] = [1_025, 1_026];
    let reached = ["172.16.1.1-172.16.1.2", "fd10::2-fd10::ffff"];
    let world = numbered(IDS, profile(&reached, &[GATEWAY4, GATEWAY6]), nothing());
    let mut network = network(&base(), &world);
    network.gateway.load(
        "table inet after { chain forward { type filter hook forward priority 0; policy accept;
           meta priority != none counter
         }
         }",
    );
    for port in [53, 80] {
        serve(&network.lan, port);
        serve(&network.gateway, port);
    }
    for (allowed, denied, server) in [(LAN4, PUBLIC4, GATEWAY4), (LAN6, PUBLIC6, GATEWAY6)] {
        assert!(connect(&network.alice, allowed, 80).is_ok());
        assert!(asks(&network.alice, allowed, 80) && pings(&network.alice, allowed));
        assert!(connect(&network.alice, denied, 80).is_err());
        assert!(asks_in_vain(&network.alice, denied, 53) && pings_in_vain(&network.alice, denied));
        assert!(connect(&network.alice, server, 53).is_ok() && asks(&network.alice, server, 53));
        assert!(connect(&network.alice, server, 80).is_err());
        assert!(
            connect(&network.bob, allowed, 80).is_err() && asks_in_vain(&network.bob, server, 53)
        );

        let mut live = connect(&network.alice, allowed, 80).unwrap();
        assert!(live.echoes());
        edit(&mut network.nft, IDS[0], profile(&["172.16.1.3", "fd10::ffff"], &[]));
        assert!(live.is_silent(), "a live flow goes on after it was denied");
        edit(&mut network.nft, IDS[0], profile(&reached, &[GATEWAY4, GATEWAY6]));
        assert!((0..5).any(|_| live.hears()), "the flow resumes when it is granted again");
    }
    let after = network.gateway.run("nft list table inet after");
    assert!(after.contains("counter packets 0 "), "no packet keeps our number: {after}");
}

#[test]
fn a_profile_moves_between_a_block_and_a_chain() {
    let mut large = (*many(40, 9)).clone();
    let wanted = profile(&["172.16.1.2", "fd10::2"], &[]);
    large.allow4 =
        large.allow4.as_slice().iter().chain(wanted.allow4.as_slice()).copied().collect();
    let mut network = network(&base(), &numbered([1_025, 1_026], wanted, nothing()));
    serve(&network.lan, 80);
    let mut live = connect(&network.alice, LAN4, 80).unwrap();
    for profile in [Arc::new(large), profile(&["172.16.0.0/16"], &[])] {
        edit(&mut network.nft, 1_025, Arc::clone(&profile));
        assert!(live.echoes() && connect(&network.alice, LAN6, 80).is_err());
        let read = network.nft.observe().unwrap().unwrap();
        assert_eq!(network.nft.difference(), None);
        assert_eq!(read.profiles()[&ProfileId(1_025)], profile);
    }
}
