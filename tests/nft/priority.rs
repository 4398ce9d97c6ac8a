//! The priority by which links and queues of the host sort packets.

use super::network::LAN4;
use super::packets::{network, nothing, numbered};
use super::raw::{send, udp};
use super::table::{base, profile};

const ALICE4: &str = "10.64.0.2";
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
