//! The special-purpose blocks, which are *not* the internet.
//!
//! A policy with `full_tunnel` reaches every address outside these blocks. The list holds every
//! entry of the IANA registries [iana-ipv4-special-registry] and [iana-ipv6-special-registry]
//! (RFC 6890, RFC 8190) as of October 2025, also those marked globally reachable: no service stands
//! there that a user misses. It adds multicast (RFC 5771, RFC 4291) and the deprecated site-local
//! block (RFC 3879), from which old networks still number themselves. A block within another of
//! the list is left out.
//!
//! One entry needs an explanation: 64:ff9b::/96 (RFC 6052) is how a host without IPv4 reaches the IPv4
//! internet through a NAT64, but behind the NAT64 it leads to private IPv4 addresses just as well.
//! A gateway that relies on it grants it as an explicit destination.
//!
//! [iana-ipv4-special-registry]: https://www.iana.org/assignments/iana-ipv4-special-registry
//! [iana-ipv6-special-registry]: https://www.iana.org/assignments/iana-ipv6-special-registry

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{Address, Ranges};

/// A block that is not part of the internet, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SpecialBlock {
    pub prefix: IpNet,
    pub purpose: &'static str,
}

/// Every special-purpose block, IPv4 first, ascending.
pub const SPECIAL_BLOCKS: &[SpecialBlock] = &[
    v4([0, 0, 0, 0], 8, "this network (RFC 791)"),
    v4([10, 0, 0, 0], 8, "private (RFC 1918)"),
    v4([100, 64, 0, 0], 10, "shared address space (RFC 6598)"),
    v4([127, 0, 0, 0], 8, "loopback (RFC 1122)"),
    v4([169, 254, 0, 0], 16, "link-local (RFC 3927)"),
    v4([172, 16, 0, 0], 12, "private (RFC 1918)"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments (RFC 6890)"),
    v4([192, 0, 2, 0], 24, "documentation (RFC 5737)"),
    v4([192, 31, 196, 0], 24, "AS112 (RFC 7535)"),
    v4([192, 52, 193, 0], 24, "multicast tunnelling (RFC 7450)"),
    v4([192, 88, 99, 0], 24, "6to4 relay, deprecated (RFC 7526)"),
    v4([192, 168, 0, 0], 16, "private (RFC 1918)"),
    v4([192, 175, 48, 0], 24, "AS112 (RFC 7534)"),
    v4([198, 18, 0, 0], 15, "benchmarking (RFC 2544)"),
    v4([198, 51, 100, 0], 24, "documentation (RFC 5737)"),
    v4([203, 0, 113, 0], 24, "documentation (RFC 5737)"),
    v4([224, 0, 0, 0], 4, "multicast (RFC 5771)"),
    v4([240, 0, 0, 0], 4, "reserved and broadcast (RFC 1112)"),
    v6([0, 0, 0, 0, 0, 0], 128, 0, "unspecified (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0], 128, 1, "loopback (RFC 4291)"),
    v6([0, 0, 0, 0, 0, 0xffff], 96, 0, "IPv4-mapped (RFC 4291)"),
    v6([0x64, 0xff9b, 0, 0, 0, 0], 96, 0, "NAT64 (RFC 6052)"),
    v6([0x64, 0xff9b, 1, 0, 0, 0], 48, 0, "local NAT64 (RFC 8215)"),
    v6([0x100, 0, 0, 0, 0, 0], 64, 0, "discard-only (RFC 6666)"),
    v6([0x100, 0, 0, 1, 0, 0], 64, 0, "dummy prefix (RFC 9780)"),
    v6([0x2001, 0, 0, 0, 0, 0], 23, 0, "IETF protocol assignments (RFC 2928)"),
    v6([0x2001, 0xdb8, 0, 0, 0, 0], 32, 0, "documentation (RFC 3849)"),
    v6([0x2002, 0, 0, 0, 0, 0], 16, 0, "6to4 (RFC 3056)"),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0], 48, 0, "AS112 (RFC 7534)"),
    v6([0x3fff, 0, 0, 0, 0, 0], 20, 0, "documentation (RFC 9637)"),
    v6([0x5f00, 0, 0, 0, 0, 0], 16, 0, "segment routing (RFC 9602)"),
    v6([0xfc00, 0, 0, 0, 0, 0], 7, 0, "unique local (RFC 4193)"),
    v6([0xfe80, 0, 0, 0, 0, 0], 10, 0, "link-local (RFC 4291)"),
    v6([0xfec0, 0, 0, 0, 0, 0], 10, 0, "site-local, deprecated (RFC 3879)"),
    v6([0xff00, 0, 0, 0, 0, 0], 8, 0, "multicast (RFC 4291)"),
];

/// The block an address lies in; `None`: it is part of the internet.
#[must_use]
pub fn special_block(address: IpAddr) -> Option<&'static SpecialBlock> {
    SPECIAL_BLOCKS.iter().find(|block| block.prefix.contains(&address))
}

/// One family's internet: every address outside the special-purpose blocks.
#[must_use]
pub fn internet<T: Address>() -> Ranges<T> {
    let special: Ranges<T> =
        SPECIAL_BLOCKS.iter().filter_map(|block| T::span(&block.prefix)).collect();
    special.complement()
}

const fn v4(octets: [u8; 4], prefix_len: u8, purpose: &'static str) -> SpecialBlock {
    let [a, b, c, d] = octets;
    let net = Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len);
    SpecialBlock { prefix: IpNet::V4(net), purpose }
}

const fn v6(high: [u16; 6], prefix_len: u8, lowest: u16, purpose: &'static str) -> SpecialBlock {
    let [a, b, c, d, e, f] = high;
    let net = Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, 0, lowest), prefix_len);
    SpecialBlock { prefix: IpNet::V6(net), purpose }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_ascending_and_disjoint() {
        for pair in SPECIAL_BLOCKS.windows(2) {
            assert!(pair[0].prefix < pair[1].prefix, "{}", pair[1].prefix);
            assert!(!pair[0].prefix.contains(&pair[1].prefix), "{}", pair[1].prefix);
            assert_eq!(pair[1].prefix, pair[1].prefix.trunc());
        }
    }

    #[test]
    fn the_internet_is_what_the_blocks_leave() {
        let (four, six) = (internet::<u32>(), internet::<u128>());
        let is_internet = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(address) => four.contains(address.into()),
            IpAddr::V6(address) => six.contains(address.into()),
        };
        let public =
            ["1.1.1.1", "9.255.255.255", "11.0.0.0", "223.255.255.255", "2606:4700::1", "2a00::"];
        let special = ["0.0.0.0", "10.0.0.0", "100.127.255.255", "224.0.0.1", "255.255.255.255"];
        let special6 = ["::", "::1", "::ffff:1.1.1.1", "64:ff9b::a00:1", "fd00::1", "ff02::1"];
        for address in public {
            assert!(is_internet(address) && special_block(address.parse().unwrap()).is_none());
        }
        for address in special.into_iter().chain(special6) {
            assert!(!is_internet(address) && special_block(address.parse().unwrap()).is_some());
        }
    }
}
