//! Real packets through the rules, IPv4 and IPv6.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use gatepost::dataplane::nft::Nft;
use gatepost::model::{FirewallBase, FirewallChange, Masquerade, Profile, ProfileId};

use super::network::{
    GATEWAY4, GATEWAY6, LAN4, LAN6, Network, PUBLIC4, PUBLIC6, Stream, asks, asks_in_vain, connect,
    is_refused, pings, pings_in_vain, serve,
};
use super::table::{World, base, load, many, profile};

pub const ALICE: [&str; 2] = ["10.64.0.2/32", "fd64::2/128"];
const BOB: [&str; 2] = ["10.64.0.3/32", "fd64::3/128"];

/// Alice has profile 1, Bob profile 2.
pub fn world(alice: Arc<Profile>, bob: Arc<Profile>) -> World {
    numbered([1, 2], alice, bob)
}

pub fn numbered(ids: [u32; 2], alice: Arc<Profile>, bob: Arc<Profile>) -> World {
    let [alices, bobs] = ids.map(ProfileId);
    let mut assignments = BTreeMap::new();
    for (prefixes, id) in [(ALICE, alices), (BOB, bobs)] {
        for prefix in prefixes {
            assignments.insert(prefix.parse().unwrap(), id);
        }
    }
    ([(alices, alice), (bobs, bob)].into(), assignments)
}

pub fn nothing() -> Arc<Profile> {
    profile(&[], &[])
}

pub fn network(base: &FirewallBase, world: &World) -> Network {
    let mut network = Network::new();
    network.nft.apply(&load(base, world), None).unwrap();
    network
}

/// Gives a profile other ranges in place.
pub fn edit(nft: &mut Nft, id: u32, new: Arc<Profile>) {
    let observed = nft.observe().unwrap().unwrap();
    let change = FirewallChange {
        put_profiles: [(ProfileId(id), (false, new))].into(),
        ..FirewallChange::default()
    };
    nft.apply(&change, Some(&observed)).unwrap();
}

#[test]
fn a_peer_reaches_what_its_profile_allows_and_nothing_else() {
    let world = world(profile(&["172.16.1.0/24", "fd10::/64"], &[]), nothing());
    let network = network(&base(), &world);
    serve(&network.lan, 80);
    for (allowed, denied) in [(LAN4, PUBLIC4), (LAN6, PUBLIC6)] {
        assert!(connect(&network.alice, allowed, 80).is_ok());
        assert!(asks(&network.alice, allowed, 80));
        assert!(pings(&network.alice, allowed));
        assert!(connect(&network.alice, denied, 80).is_err());
        assert!(asks_in_vain(&network.alice, denied, 80));
        assert!(pings_in_vain(&network.alice, denied));
        assert!(connect(&network.bob, allowed, 80).is_err());
        assert!(asks_in_vain(&network.bob, allowed, 80));
        assert!(pings_in_vain(&network.bob, allowed));
    }
    let listing = network.gateway.run("nft list table inet gatepost");
    assert!(listing.contains("10.64.0.3") && listing.contains("fd64::3"));
    let told = network.gateway.run("nft list set inet gatepost denied4");
    assert!(told.contains("10.64.0.3"), "denied packets reach the log rule: {told}");
}

#[test]
fn an_address_without_a_profile_reaches_nothing() {
    let mut network = network(&base(), &Default::default());
    serve(&network.lan, 80);
    assert!(connect(&network.alice, LAN4, 80).is_err());
    assert!(connect(&network.alice, LAN6, 80).is_err());
    // An assignment to a missing profile denies, too.
    let change = FirewallChange {
        assign: ALICE.map(|prefix| (prefix.parse().unwrap(), ProfileId(9))).into(),
        ..FirewallChange::default()
    };
    let observed = network.nft.observe().unwrap();
    network.nft.apply(&change, observed.as_ref()).unwrap();
    assert!(connect(&network.alice, LAN4, 80).is_err());
    assert!(connect(&network.alice, LAN6, 80).is_err());
}

#[test]
fn a_large_profile_is_judged_like_a_small_one() {
    let mut large = (*many(100, 1)).clone();
    let wanted = profile(&["172.16.1.2", "fd10::2"], &[]);
    large.allow4 =
        large.allow4.as_slice().iter().chain(wanted.allow4.as_slice()).copied().collect();
    large.allow6 =
        large.allow6.as_slice().iter().chain(wanted.allow6.as_slice()).copied().collect();
    let network = network(&base(), &world(Arc::new(large), nothing()));
    serve(&network.lan, 80);
    for (allowed, denied) in [(LAN4, PUBLIC4), (LAN6, PUBLIC6)] {
        assert!(connect(&network.alice, allowed, 80).is_ok());
        assert!(connect(&network.alice, denied, 80).is_err());
    }
}

#[test]
fn an_icmp_error_about_a_dns_query_comes_back() {
    let servers = || profile(&[], &[LAN4, LAN6]);
    // A profile with a chain of its own, and one in a block.
    for ids in [[1, 2], [1_025, 1_026]] {
        let network = network(&base(), &numbered(ids, servers(), nothing()));
        for server in [LAN4, LAN6] {
            let refused = is_refused(&network.alice, server, 53);
            assert!(refused, "the closed port of {server} is not reported to {ids:?}");
            assert!(!is_refused(&network.alice, server, 80));
            assert!(!is_refused(&network.bob, server, 53));
        }
    }
}

#[test]
fn narrowing_stops_live_flows_and_only_those() {
    let lan = || profile(&["172.16.1.0/24", "fd10::/64"], &[]);
    let mut network = network(&base(), &world(lan(), lan()));
    serve(&network.lan, 80);
    for (address, narrowed) in
        [(LAN4, ["fd10::/64", "10.0.0.0/8"]), (LAN6, ["172.16.1.0/24", "fd00::/16"])]
    {
        let mut alice = connect(&network.alice, address, 80).unwrap();
        let mut bob = connect(&network.bob, address, 80).unwrap();
        assert!(alice.echoes() && bob.echoes());
        edit(&mut network.nft, 1, profile(&narrowed, &[]));
        assert!(alice.is_silent(), "a live flow goes on after it was denied");
        assert!(bob.echoes(), "another peer's flow stopped");
        edit(&mut network.nft, 1, lan());
        assert!((0..5).any(|_| alice.hears()), "the flow resumes when it is granted again");
    }
}

#[test]
fn unassigning_stops_live_flows() {
    let lan = || profile(&["172.16.1.0/24", "fd10::/64"], &[]);
    let mut network = network(&base(), &world(lan(), lan()));
    serve(&network.lan, 80);
    let mut alice = connect(&network.alice, LAN4, 80).unwrap();
    let mut bob = connect(&network.bob, LAN4, 80).unwrap();
    let observed = network.nft.observe().unwrap();
    let change =
        FirewallChange { unassign: vec![ALICE[0].parse().unwrap()], ..FirewallChange::default() };
    network.nft.apply(&change, observed.as_ref()).unwrap();
    assert!(alice.is_silent());
    assert!(bob.echoes());
}

#[test]
fn reloading_and_repairing_disturb_no_live_flow() {
    let world = world(profile(&["172.16.1.0/24", "fd10::/64"], &[]), nothing());
    // A flow that is translated cannot outlive packets that are not: the server resets it.
    let base = FirewallBase { masquerade: Masquerade::None, ..base() };
    let mut network = network(&base, &world);
    serve(&network.lan, 80);
    let mut streams = [LAN4, LAN6].map(|to| connect(&network.alice, to, 80).unwrap());
    assert!(streams.iter_mut().all(Stream::echoes));
    let base = FirewallBase { deny_log: None, ..base };
    network.nft.apply(&load(&base, &world), None).unwrap();
    assert!(streams.iter_mut().all(Stream::echoes), "after the base was loaded anew");

    network.gateway.run("nft flush ruleset");
    assert!(streams.iter_mut().all(Stream::echoes), "nothing is filtered");
    network.nft.apply(&load(&base, &world), None).unwrap();
    assert!(streams.iter_mut().all(Stream::echoes), "after the ruleset was repaired");
}

#[test]
fn masquerade_as_configured() {
    let everything = profile(&["0.0.0.0/0", "::/0"], &[]);
    let world = world(everything, nothing());
    let gateway: [IpAddr; 2] = ["172.16.1.1".parse().unwrap(), "fd10::1".parse().unwrap()];
    let alice: [IpAddr; 2] = ["10.64.0.2".parse().unwrap(), "fd64::2".parse().unwrap()];
    let mut network = Network::new();
    serve(&network.lan, 80);
    for (masquerade, private, public) in [
        (Masquerade::All, gateway, gateway),
        (Masquerade::Internet, alice, gateway),
        (Masquerade::None, alice, alice),
    ] {
        let base = FirewallBase { masquerade, ..base() };
        network.nft.apply(&load(&base, &world), None).unwrap();
        let seen = |to: &str| connect(&network.alice, to, 80).unwrap().1;
        assert_eq!([seen(LAN4), seen(LAN6)], private, "{masquerade:?}");
        assert_eq!([seen(PUBLIC4), seen(PUBLIC6)], public, "{masquerade:?}");
    }
}

#[test]
fn a_translated_flow_outlives_a_change_of_masquerade() {
    let everything = profile(&["0.0.0.0/0", "::/0"], &[]);
    let world = world(everything, nothing());
    let mut network = network(&base(), &world);
    serve(&network.lan, 80);
    let mut streams = [LAN4, LAN6].map(|to| connect(&network.alice, to, 80).unwrap());
    assert!(streams.iter_mut().all(Stream::echoes));
    for masquerade in [Masquerade::None, Masquerade::Internet, Masquerade::All] {
        let base = FirewallBase { masquerade, ..base() };
        network.nft.apply(&load(&base, &world), None).unwrap();
        assert!(streams.iter_mut().all(Stream::echoes), "{masquerade:?}");
    }
}

#[test]
fn dns_servers_are_reached_on_port_53_alone() {
    let network =
        network(&base(), &world(profile(&[], &[LAN4, GATEWAY4, LAN6, GATEWAY6]), nothing()));
    for port in [53, 80] {
        serve(&network.lan, port);
        serve(&network.gateway, port);
    }
    for server in [LAN4, LAN6, GATEWAY4, GATEWAY6] {
        assert!(asks(&network.alice, server, 53), "{server}");
        assert!(connect(&network.alice, server, 53).is_ok(), "{server}");
        assert!(asks_in_vain(&network.alice, server, 80), "{server}");
        assert!(connect(&network.alice, server, 80).is_err(), "{server}");
        assert!(asks_in_vain(&network.bob, server, 53), "{server}");
    }
    assert!(asks_in_vain(&network.alice, PUBLIC4, 53));
    assert!(pings_in_vain(&network.alice, LAN4));
}

#[test]
fn the_gateway_itself_is_judged_but_answers_pings() {
    let network = network(&base(), &world(profile(&[GATEWAY4, GATEWAY6], &[]), nothing()));
    serve(&network.gateway, 80);
    serve(&network.bob, 80);
    for address in [GATEWAY4, GATEWAY6] {
        assert!(pings(&network.alice, address) && pings(&network.bob, address));
        assert!(connect(&network.alice, address, 80).is_ok());
        assert!(connect(&network.bob, address, 80).is_err());
    }
    for other in ["172.16.1.1", "fd10::1"] {
        assert!(pings_in_vain(&network.bob, other), "only the tunnel's own address always answers");
        assert!(connect(&network.bob, other, 80).is_err());
    }
    for bob in ["10.64.0.3", "fd64::3"] {
        assert!(pings(&network.gateway, bob), "what the gateway opens is not filtered");
        assert!(connect(&network.gateway, bob, 80).is_ok());
    }
}

#[test]
fn between_peers_the_opener_of_the_flow_is_judged() {
    let network = network(&base(), &world(profile(&["10.64.0.3", "fd64::3"], &[]), nothing()));
    serve(&network.alice, 80);
    serve(&network.bob, 80);
    for (alice, bob) in [("10.64.0.2", "10.64.0.3"), ("fd64::2", "fd64::3")] {
        assert!(connect(&network.alice, bob, 80).is_ok());
        assert!(pings(&network.alice, bob));
        assert!(connect(&network.bob, alice, 80).is_err());
        assert!(pings_in_vain(&network.bob, alice));
    }
}

#[test]
fn flows_toward_peers_are_refused_unless_allowed() {
    let world = world(nothing(), profile(&["0.0.0.0/0", "::/0"], &[]));
    let mut network = network(&base(), &world);
    serve(&network.alice, 80);
    serve(&network.lan, 80);
    let alice = ["10.64.0.2", "fd64::2"];
    for address in alice {
        assert!(connect(&network.lan, address, 80).is_err());
        assert!(asks_in_vain(&network.lan, address, 80));
        assert!(pings_in_vain(&network.lan, address));
    }
    let base = FirewallBase { allow_inbound: true, masquerade: Masquerade::None, ..base() };
    network.nft.apply(&load(&base, &world), None).unwrap();
    for (address, lan) in alice.into_iter().zip([LAN4, LAN6]) {
        let mut stream = connect(&network.lan, address, 80).unwrap();
        assert!(stream.echoes());
        assert!(asks(&network.lan, address, 80));
        assert!(pings(&network.lan, address));
        assert!(connect(&network.alice, lan, 80).is_err(), "only answers pass");
    }
    // A peer that was revoked, and is still in the device.
    let mut streams = alice.map(|address| connect(&network.lan, address, 80).unwrap());
    let unassign = ["10.64.0.2/32", "fd64::2/128"].map(|place| place.parse().unwrap()).into();
    let change = FirewallChange { unassign, ..FirewallChange::default() };
    let observed = network.nft.observe().unwrap();
    network.nft.apply(&change, observed.as_ref()).unwrap();
    for (address, stream) in alice.into_iter().zip(&mut streams) {
        assert!(stream.is_silent(), "{address}: its place is gone");
        assert!(asks_in_vain(&network.lan, address, 80) && pings_in_vain(&network.lan, address));
    }
}

#[test]
fn a_forged_source_opens_nothing() {
    // Bob may reach Alice; a host in the LAN sends with Bob's address.
    let network = network(&base(), &world(nothing(), profile(&["10.64.0.2", "fd64::2"], &[])));
    network.lan.run("ip addr add 10.64.0.3/32 dev lo && ip addr add fd64::3/128 dev lo nodad");
    // The gateway's neighbour entry must be there: a forger's own question gets no answer.
    assert!(pings(&network.lan, "172.16.1.1") && pings(&network.lan, "fd10::1"));
    let echoes = || network.alice.run("nstat -asz IcmpInEchos Icmp6InEchos | awk '{print $2}'");
    let before = echoes();
    for (from, to) in [("10.64.0.3", "10.64.0.2"), ("fd64::3", "fd64::2")] {
        assert!(!network.lan.succeeds(&format!("ping -n -c 1 -W 1 -I {from} {to}")));
    }
    assert_eq!(echoes(), before, "a forged packet reached a peer");
    // One in the pool, and one that only its direction gives away.
    let listing = network.gateway.run("nft list table inet gatepost");
    let dropped = listing.matches("counter packets 1 bytes 84 drop").count();
    assert_eq!(dropped, 1, "the packets were really sent: {listing}");
    let inbound = network.gateway.run("nft list chain inet gatepost inbound");
    assert!(inbound.contains("counter packets 1 "), "the packets were really sent: {inbound}");
    assert!(pings(&network.bob, "10.64.0.2") && pings(&network.bob, "fd64::2"));
    assert_ne!(echoes(), before, "the real one is let through, and counted");
}

#[test]
fn segments_fit_the_tunnel() {
    let network = network(&base(), &world(profile(&["0.0.0.0/0", "::/0"], &[]), nothing()));
    serve(&network.lan, 80);
    // The bridge carries 1420 bytes, the peer assumes 1500.
    for (address, headers) in [(LAN4, 40), (LAN6, 60)] {
        let stream = connect(&network.alice, address, 80).unwrap();
        let timestamps = 12;
        assert_eq!(stream.max_segment_bytes(), 1420 - headers - timestamps);
    }
}

#[test]
fn the_longest_site_prefix_decides() {
    let (lan, nothing) = (profile(&["172.16.1.0/24", "fd10::/64"], &[]), nothing());
    let mut world = world(Arc::clone(&nothing), nothing);
    world.0.insert(ProfileId(3), lan);
    let sites = [
        ("10.9.0.0/16", 3),
        ("10.9.8.0/24", 1),
        ("10.9.8.128/25", 3),
        ("10.9.8.129/32", 1),
        ("fd65::/32", 3),
        ("fd65::/64", 1),
    ];
    world.1.extend(sites.map(|(prefix, id)| (prefix.parse().unwrap(), ProfileId(id))));
    let mut network = network(&base(), &world);
    serve(&network.lan, 80);
    network
        .gateway
        .run("ip route add 10.9.0.0/16 via 10.64.0.2 && ip route add fd65::/32 via fd64::2");
    let allowed = |network: &Network, source: &str| {
        network.alice.add_address(source, "v0");
        let lan = if source.contains(':') { LAN6 } else { LAN4 };
        network.alice.succeeds(&format!("ping -n -c 1 -W 1 -I {source} {lan}"))
    };
    assert!(allowed(&network, "10.9.1.1"));
    assert!(!allowed(&network, "10.9.8.1"));
    assert!(allowed(&network, "10.9.8.130"));
    assert!(!allowed(&network, "10.9.8.129"), "a host's own address is the longest of all");
    assert!(allowed(&network, "fd65:0:0:1::1"));
    assert!(!allowed(&network, "fd65::1"));

    let observed = network.nft.observe().unwrap();
    let change = FirewallChange {
        assign: [("10.9.1.0/28".parse().unwrap(), ProfileId(1))].into(),
        unassign: vec!["10.9.8.0/24".parse().unwrap()],
        ..FirewallChange::default()
    };
    network.nft.apply(&change, observed.as_ref()).unwrap();
    assert!(!allowed(&network, "10.9.1.1"), "a new length takes its place in the order");
    assert!(allowed(&network, "10.9.8.1"));
}

#[test]
fn counters_survive_an_edit_of_their_profile() {
    counters_of([1, 2]);
    counters_of([1_025, 1_026]);
}

fn counters_of([id, other]: [u32; 2]) {
    let world = numbered([id, other], profile(&["172.16.1.0/24"], &[]), nothing());
    let (id, other) = (ProfileId(id), ProfileId(other));
    let mut network = network(&base(), &world);
    assert!(pings(&network.alice, LAN4));
    assert!(pings_in_vain(&network.alice, PUBLIC4));
    let read = network.nft.read_counters_of(id).unwrap().unwrap();
    assert_eq!((read.allowed.packets, read.denied.packets), (2, 1), "a ping has an answer");
    assert_eq!((read.allowed.bytes, read.denied.bytes), (168, 84));
    edit(&mut network.nft, id.0, profile(&["172.16.0.0/16", "10.0.0.0/8"], &[LAN6]));
    assert!(pings(&network.alice, LAN4));
    let read = network.nft.read_counters_of(id).unwrap().unwrap();
    assert_eq!((read.allowed.packets, read.denied.packets), (4, 1));
    assert_eq!(network.nft.read_counters_of(other).unwrap(), Some(Default::default()));
    assert_eq!(network.nft.read_counters_of(ProfileId(3)).unwrap(), None);
}
