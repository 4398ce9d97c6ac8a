//! Packets that no socket would send, and what comes of them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use super::netns::Netns;
use super::network::within;
use super::services::eventually;

/// The least that each family takes for a path.
pub const SMALL_MTU: [u16; 2] = [600, 1290];

/// The beginning of a packet.
pub fn ip(from: &str, to: &str) -> PacketBuilderStep<IpHeaders> {
    match [from, to].map(|address| address.parse().unwrap()) {
        [IpAddr::V4(from), IpAddr::V4(to)] => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        [IpAddr::V6(from), IpAddr::V6(to)] => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    }
}

pub fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(from.0, to.0).udp(from.1, to.1).write(&mut bytes, b"forged").unwrap();
    bytes
}

/// What a router with this address tells the sender of a packet: it is too big.
pub fn too_big(router: &str, packet: &[u8], sender: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let [next_hop_mtu, mtu] = SMALL_MTU;
    let ip = ip(router, sender);
    let written = if sender.contains(':') {
        ip.icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu.into() }).write(&mut bytes, packet)
    } else {
        let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
        ip.icmpv4(Icmpv4Type::DestinationUnreachable(needed)).write(&mut bytes, packet)
    };
    written.unwrap();
    bytes
}

/// Sends a packet as it is.
pub fn send(netns: &Netns, to: &str, packet: &[u8]) {
    let to = SocketAddr::new(to.parse().unwrap(), 0);
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    within(netns, || {
        let raw = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
        // Our own firewall may refuse it.
        let _ = sendto(raw.as_raw_fd(), packet, &SockaddrStorage::from(to), MsgFlags::empty());
    });
}

/// Counts what comes in, behind our own rules.
pub struct Ear<'a>(&'a Netns);

impl<'a> Ear<'a> {
    pub fn new(netns: &'a Netns, packets: &str) -> Self {
        Self::at(netns, "input priority 100", packets)
    }

    /// Counts also what is not for this host.
    pub fn of_arrivals(netns: &'a Netns, packets: &str) -> Self {
        Self::at(netns, "prerouting priority 100", packets)
    }

    fn at(netns: &'a Netns, hook: &str, packets: &str) -> Self {
        netns.load(&format!(
            "table inet ear\ndelete table inet ear
             table inet ear {{
               chain heard {{ type filter hook {hook}; {packets} counter
               }}
             }}"
        ));
        Self(netns)
    }

    /// Whether anything has come so far.
    pub fn hears(&self) -> bool {
        !self.0.run("nft list table inet ear").contains("packets 0 ")
    }

    /// Something must come, at last.
    #[track_caller]
    pub fn must_hear(&self, what: &str) {
        eventually(what, || self.hears());
    }
}
