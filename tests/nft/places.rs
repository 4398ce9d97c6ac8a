//! Addresses without a place in the table: of revoked peers, and while they change hands.

use gatepost::model::{FirewallBase, FirewallChange, Masquerade, ProfileId};
use ipnet::IpNet;

use super::network::{Network, asks_in_vain, connect, pings, pings_in_vain, serve};
use super::packets::{network, nothing, world};
use super::table::{base, profile};

const BOB: [&str; 2] = ["10.64.0.3", "fd64::3"];
const SERVICE: u16 = 7_000;

fn places() -> [IpNet; 2] {
    ["10.64.0.3/32", "fd64::3/128"].map(|place| place.parse().unwrap())
}

fn change(network: &mut Network, change: &FirewallChange) {
    let observed = network.nft.observe().unwrap();
    network.nft.apply(change, observed.as_ref()).unwrap();
}

/// A peer that was revoked, and cannot be removed from the device.
#[test]
fn flow_of_the_gateway_ends_with_the_place_of_its_peer() {
    let mut network = network(&base(), &world(nothing(), nothing()));
    serve(&network.bob, SERVICE);
    let mut streams = BOB.map(|bob| connect(&network.gateway, bob, SERVICE).unwrap());
    assert!(streams.iter_mut().all(|stream| stream.echoes()));
    let closings = [
        FirewallChange { unassign: places().into(), ..FirewallChange::default() },
        FirewallChange {
            assign: places().map(|place| (place, ProfileId::NOTHING)).into(),
            ..FirewallChange::default()
        },
    ];
    for closing in &closings {
        change(&mut network, closing);
        for (bob, stream) in BOB.into_iter().zip(&mut streams) {
            assert!(stream.is_silent(), "{bob}: a flow went on: {closing:?}");
            assert!(connect(&network.gateway, bob, SERVICE).is_err(), "{bob}: {closing:?}");
            assert!(
                asks_in_vain(&network.gateway, bob, SERVICE)
                    && pings_in_vain(&network.gateway, bob)
            );
        }
    }
    let assign = places().map(|place| (place, ProfileId(2))).into();
    change(&mut network, &FirewallChange { assign, ..FirewallChange::default() });
    for bob in BOB {
        let mut stream = connect(&network.gateway, bob, SERVICE).unwrap();
        assert!(stream.echoes() && pings(&network.gateway, bob), "{bob} has a place again");
    }
}

/// A host's own prefix within the site of another peer, which gets its packets while it changes hands.
#[test]
fn what_is_sent_to_a_closed_host_reaches_no_peer_around_it() {
    const SITES: [&str; 2] = ["10.9.0.0/16", "fd65::/32"];
    const HOSTS: [&str; 2] = ["10.9.8.8", "fd65::8"];
    const CLOSED: [&str; 2] = ["10.9.8.8/32", "fd65::8/128"];
    let mut world = world(profile(&SITES, &[]), nothing());
    world.1.extend(SITES.map(|site| (site.parse().unwrap(), ProfileId(2))));
    let base = FirewallBase { masquerade: Masquerade::None, ..base() };
    let mut network = network(&base, &world);
    for at in 0..2 {
        network.gateway.run(&format!("ip route add {} via {}", SITES[at], BOB[at]));
        network.bob.add_address(HOSTS[at], "v0");
        assert!(pings(&network.alice, HOSTS[at]), "Bob answers for his site");
        let place = CLOSED[at].parse().unwrap();
        let assign = [(place, ProfileId::NOTHING)].into();
        change(&mut network, &FirewallChange { assign, ..FirewallChange::default() });
        assert!(pings_in_vain(&network.alice, HOSTS[at]), "{} is closed", HOSTS[at]);
        let assign = [(place, ProfileId(2))].into();
        change(&mut network, &FirewallChange { assign, ..FirewallChange::default() });
        assert!(pings(&network.alice, HOSTS[at]), "{} is open again", HOSTS[at]);
    }
}
