//! Our link in a VRF: its packets come under the name of that one.

use super::network::{LAN4, LAN6, Network};
use super::packets::{nothing, world};
use super::raw::{Ear, send, udp};
use super::table::{WG, base, load, profile};
use gatepost::model::FirewallBase;

const PORT: u16 = 9000;
/// Of no pool: those of the pool are dropped before, as if another link brought them.
const PEER: [&str; 2] = ["10.80.0.2", "fd64::2"];
/// Of the gateway, in the LAN.
const NEAR: [&str; 2] = ["172.16.1.1", "fd10::1"];
const FLOOD: u16 = 50;

fn flood(network: &Network, targets: [&str; 2]) {
    for number in 0..FLOOD {
        for (from, to) in PEER.into_iter().zip(targets) {
            send(&network.alice, to, &udp((from, 5000 + number), (to, PORT)));
        }
    }
}

/// Not every kernel has VRFs; that of the guest does.
#[test]
fn no_packet_of_a_peer_passes_while_our_link_is_in_a_vrf() {
    let mut network = Network::new();
    if !network.gateway.succeeds("ip link add vrf9 type vrf table 99") {
        return println!("this kernel has no VRFs");
    }
    network.gateway.run(&format!("ip link set vrf9 up; ip link set {WG} master vrf9"));
    let forwarded = Ear::new(&network.lan, &format!("udp dport {PORT}"));
    flood(&network, [LAN4, LAN6]);
    forwarded.must_hear("without a table packets pass through the VRF");
    // Even what a profile allows: no policy speaks of VRFs.
    let reach = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
    let open = FirewallBase { allow_inbound: true, ..base() };
    for (base, alice) in [(base(), nothing()), (base(), reach.clone()), (open, reach)] {
        network.nft.apply(&load(&base, &world(alice, nothing())), None).unwrap();
        let forwarded = Ear::new(&network.lan, &format!("udp dport {PORT}"));
        let let_in = Ear::new(&network.gateway, &format!("udp dport {PORT}"));
        flood(&network, [LAN4, LAN6]);
        flood(&network, NEAR);
        assert!(!forwarded.hears(), "a packet was forwarded");
        assert!(!let_in.hears(), "a packet came in");
        let shown = network
            .gateway
            .run("nft list chain inet gatepost forward; nft list chain inet gatepost input");
        let dropped = shown.matches(&format!("packets {} ", 2 * FLOOD)).count();
        assert_eq!(dropped, 2, "all were dropped because of the VRF: {shown}");
        // Between other links everything passes as before.
        assert!(network.gateway.succeeds(&format!("ping -n -c 1 -W 10 {LAN4}")));
    }
}
