//! A limit of open flows keeps one peer from filling the kernel's table of flows for all.

use std::num::NonZeroU32;

use gatepost::model::FirewallBase;

use super::network::{LAN4, LAN6, connect, serve};
use super::packets::{network, numbered};
use super::table::{base, profile};

#[test]
fn one_peer_opens_no_more_flows_than_its_limit_and_others_open_theirs() {
    const MOST: u32 = 5;
    let base = FirewallBase { flows_per_address: NonZeroU32::new(MOST), ..base() };
    for ids in [[1, 2], [1_025, 1_026]] {
        let reach = profile(&["172.16.1.0/24", "fd10::/64"], &[]);
        let network = network(&base, &numbered(ids, reach.clone(), reach));
        serve(&network.lan, 80);
        for to in [LAN4, LAN6] {
            let mut open: Vec<_> =
                (0..MOST).map(|_| connect(&network.alice, to, 80).unwrap()).collect();
            assert!(connect(&network.alice, to, 80).is_err(), "{to}: one more");
            assert!(connect(&network.bob, to, 80).unwrap().echoes(), "{to}: the other peer");
            assert!(open.iter_mut().all(|stream| stream.echoes()), "{to}: those that are open");
        }
    }
}
