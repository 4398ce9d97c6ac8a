//! The gateway tells hosts in the LAN how much fits through the tunnel.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use gatepost::model::{FirewallBase, Masquerade};

use super::network::{LAN4, LAN6, within};
use super::packets::{network, world};
use super::services::eventually;
use super::table::{base, profile};

const ALICE: [&str; 2] = ["10.64.0.2", "fd64::2"];
const LAN: [&str; 2] = [LAN4, LAN6];
const PORT: u16 = 9000;
/// What fills a packet of the LAN, and is too much for the tunnel.
const BYTES: [usize; 2] = [1500 - 28, 1500 - 48];

fn bound(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address.parse::<IpAddr>().unwrap(), PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

/// A host cuts its packets once it has heard that. No router may.
#[test]
fn lan_hosts_hear_what_fits_through_the_tunnel_whoever_opened_the_flow() {
    for allow_inbound in [false, true] {
        let base = FirewallBase { allow_inbound, masquerade: Masquerade::None, ..base() };
        let reach = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
        let network = network(&base, &world(reach.clone(), reach));
        for (at, (alice, lan)) in ALICE.into_iter().zip(LAN).enumerate() {
            let peer = within(&network.alice, || bound(alice));
            let host = within(&network.lan, || bound(lan));
            let ends = [&peer, &host].map(|socket| socket.local_addr().unwrap());
            if !allow_inbound {
                peer.send_to(b"?", ends[1]).unwrap();
            }
            let mut sent = 0;
            eventually("a large datagram comes in pieces", || {
                let too_big = host.send_to(&[0; 1500][..BYTES[at]], ends[0]);
                sent += usize::from(too_big.is_ok());
                peer.recv(&mut [0; 2000]).is_ok_and(|came| came == BYTES[at])
            });
            assert!(sent > 1, "{alice}: the first one fitted");
        }
    }
}
