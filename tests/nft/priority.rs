//! The priority by which links and queues of the host sort packets.

use nix::sys::socket::{setsockopt, sockopt};

use super::network::{GATEWAY4, LAN4, LAN6, within};
use super::packets::{network, nothing, numbered};
use super::raw::{send, udp};
use super::table::{base, profile};

const ALICE4: &str = "10.64.0.2";
const ALICE6: &str = "fd64::2";
const PORT: u16 = 9000;

#[test]
fn what_passes_keeps_the_priority_of_its_type_of_service_and_the_class_of_another_program() {
    // Profiles with chains of their own, and in a block.
    for ids in [[1, 2], [1_025, 1_026]] {
        let world = numbered(ids, profile(&["172.16.1.0/24"], &[]), nothing());
        let network = network(&base(), &world);
        network.gateway.load(&format!(
            "table inet theirs {{
                chain classes {{
                    type filter hook forward priority -150; policy accept;
                    udp dport {} meta priority set 1:7
                }}
                chain leaving {{
                    type filter hook postrouting priority 0; policy accept;
                    oifname lan0 udp dport {PORT} meta priority 0:6 counter
                    oifname lan0 udp dport {PORT} meta priority 0:2 counter
                    oifname lan0 udp dport {PORT} meta priority 0:4 counter
                    oifname lan0 udp dport {PORT} meta priority 0:0 counter
                    oifname lan0 udp dport {} meta priority 1:7 counter
                }}
            }}",
            PORT + 1,
            PORT + 1
        ));
        // A different number of each.
        for (number, tos) in [0x10, 0x08, 0x18, 0xa0].into_iter().enumerate() {
            let mut packet = udp((ALICE4, 5000), (LAN4, PORT));
            packet[1] = tos;
            (0..=number).for_each(|_| send(&network.alice, LAN4, &packet));
        }
        send(&network.alice, LAN4, &udp((ALICE4, 5000), (LAN4, PORT + 1)));
        let listing = network.gateway.run("nft list chain inet theirs leaving");
        let counted: Vec<&str> = listing
            .lines()
            .filter_map(|line| line.split_once("packets ")?.1.split(' ').next())
            .collect();
        assert_eq!(counted, ["1", "2", "3", "4", "1"], "{listing}");
    }
}

/// The kernel gives IPv6 no priority by its type of service, so none is lost. What a socket of the gateway
/// itself asked for (`SO_PRIORITY`) is lost where our output hook judges the packet: as the docs say.
#[test]
fn what_passes_without_a_type_of_service_has_no_priority() {
    let world = numbered([1, 2], profile(&["fd10::/64", GATEWAY4], &[]), nothing());
    let network = network(&base(), &world);
    network.gateway.load(&format!(
        "table inet theirs {{
            chain leaving {{
                type filter hook postrouting priority 0; policy accept;
                oifname lan0 udp dport {PORT} meta priority 0:0 counter
                oifname wg0 udp sport {PORT} meta priority 0:6 counter
                oifname wg0 udp sport {PORT} meta priority 0:0 counter
            }}
        }}"
    ));
    for traffic_class in [0x00, 0x10] {
        let mut packet = udp((ALICE6, 5000), (LAN6, PORT));
        packet[0] = 0x60 | traffic_class >> 4;
        packet[1] = traffic_class << 4;
        send(&network.alice, LAN6, &packet);
    }
    let server = within(&network.gateway, || std::net::UdpSocket::bind((GATEWAY4, PORT)).unwrap());
    setsockopt(&server, sockopt::Priority, &6).unwrap();
    let client = within(&network.alice, || std::net::UdpSocket::bind((ALICE4, 5000)).unwrap());
    client.send_to(b"?", (GATEWAY4, PORT)).unwrap();
    let from = server.recv_from(&mut [0; 16]).unwrap().1;
    server.send_to(b"!", from).unwrap();
    client.recv(&mut [0; 16]).unwrap();
    let listing = network.gateway.run("nft list chain inet theirs leaving");
    let counted: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split_once("packets ")?.1.split(' ').next())
        .collect();
    assert_eq!(counted, ["2", "0", "1"], "{listing}");
}
