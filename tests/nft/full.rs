//! A gateway of full size.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use gatepost::model::{Profile, ProfileId};
use ipnet::IpNet;

use super::table::World;

pub const RANGES: u32 = 10;

/// The tunnel address of a peer, by its number from 0.
pub fn host(index: u32) -> IpNet {
    IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a40_0002 + index)))
}

/// Ten /24 networks that no other number has.
pub fn profile(number: u32) -> Arc<Profile> {
    let range = |index: u32| {
        let first = (11 << 24) + ((number * RANGES + index) << 9);
        (first, first + 255)
    };
    Arc::new(Profile { allow4: (0..RANGES).map(range).collect(), ..Profile::default() })
}

/// Peers spread over profiles of ten /24 networks each, all different.
pub fn world(peers: u32, profiles: u32) -> World {
    let holder = |index: u32| (host(index), ProfileId(1 + index % profiles));
    (
        (0..profiles).map(|id| (ProfileId(id + 1), profile(id))).collect(),
        (0..peers).map(holder).collect(),
    )
}
