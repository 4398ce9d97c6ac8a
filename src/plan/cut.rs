//! Which addresses a cut of flows concerns.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::prefix::may_contain_others;
use crate::model::ObservedState;

/// The addresses whose flows are cut: those of these prefixes, but for the parts that other peers hold and keep, and
/// for the networks of other links.
///
/// Within a site prefix may lie those of other peers, which the device and the firewall prefer because they are longer,
/// and networks of other links, which routes prefer. Their flows never were the site's. The database may be there.
#[derive(Debug)]
pub struct CutArea<'a> {
    prefixes: &'a BTreeSet<IpNet>,
    spared: BTreeSet<IpNet>,
    /// The lengths of all these prefixes, from the longest. They are few, and each flow of a full table is looked
    /// up once for each.
    lengths4: Vec<u8>,
    lengths6: Vec<u8>,
}

impl<'a> CutArea<'a> {
    /// The area of these prefixes in a kernel in this state. `networks` asks for those of other links that are up: while
    /// a link is down, the flows to its network are the site's.
    #[must_use]
    pub fn new(
        prefixes: &'a BTreeSet<IpNet>,
        observed: &ObservedState,
        networks: impl FnOnce() -> BTreeSet<IpNet>,
    ) -> Self {
        let whole = Self::whole(prefixes);
        if !prefixes.iter().any(may_contain_others) {
            return whole;
        }
        let held = observed.peers.values().flat_map(|peer| peer.allowed_ips.iter());
        let others = held.chain(networks()).filter(|it| whole.contains(it.addr()));
        let spared = others.filter(|other| !prefixes.contains(other)).collect();
        Self::sparing(prefixes, spared)
    }

    /// All addresses of these prefixes.
    #[must_use]
    pub fn whole(prefixes: &'a BTreeSet<IpNet>) -> Self {
        Self::sparing(prefixes, BTreeSet::new())
    }

    fn sparing(prefixes: &'a BTreeSet<IpNet>, spared: BTreeSet<IpNet>) -> Self {
        let lengths = |of_family: fn(&IpAddr) -> bool| {
            let all = prefixes.iter().chain(&spared).filter(|prefix| of_family(&prefix.addr()));
            let lengths: BTreeSet<u8> = all.map(IpNet::prefix_len).collect();
            lengths.into_iter().rev().collect()
        };
        let (lengths4, lengths6) = (lengths(IpAddr::is_ipv4), lengths(IpAddr::is_ipv6));
        Self { prefixes, spared, lengths4, lengths6 }
    }

    /// The prefixes within which flows are cut.
    #[must_use]
    pub const fn prefixes(&self) -> &'a BTreeSet<IpNet> {
        self.prefixes
    }

    /// Whether the flows of this address are cut: the longest prefix around it decides.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let lengths = if address.is_ipv4() { &self.lengths4 } else { &self.lengths6 };
        let around = lengths.iter().filter_map(|len| IpNet::new(address, *len).ok());
        for prefix in around.map(|prefix| prefix.trunc()) {
            if self.prefixes.contains(&prefix) {
                return true;
            }
            if self.spared.contains(&prefix) {
                return false;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Peer, PublicKey};

    fn prefixes(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn contain<const N: usize>(area: &CutArea<'_>, addresses: [&str; N]) -> [bool; N] {
        addresses.map(|address| area.contains(address.parse().unwrap()))
    }

    #[test]
    fn addresses_are_found_in_prefixes_of_every_length() {
        let prefixes = prefixes(&["10.1.0.0/16", "10.2.3.4/32", "fd00:1::/32", "fd00:2::2/128"]);
        let area = CutArea::whole(&prefixes);
        let within = ["10.1.255.1", "10.2.3.4", "fd00:1:ffff::1", "fd00:2::2"];
        assert_eq!(contain(&area, within), [true; 4]);
        let outside = ["10.2.3.5", "11.1.0.1", "fd00:2::3", "::10.1.0.1"];
        assert_eq!(contain(&area, outside), [false; 4]);
    }

    #[test]
    fn longest_prefix_around_an_address_decides() {
        let cut = prefixes(&["10.0.0.0/8", "10.1.2.0/24"]);
        let area = CutArea::sparing(&cut, prefixes(&["10.1.0.0/16", "10.1.2.128/25"]));
        assert_eq!(contain(&area, ["10.2.0.1", "10.1.2.1"]), [true; 2]);
        assert_eq!(contain(&area, ["10.1.3.1", "10.1.2.129"]), [false; 2]);
    }

    #[test]
    fn only_what_present_peers_hold_within_a_prefix_is_spared() {
        let peer = |texts: &[&str]| Peer {
            allowed_ips: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..Peer::default()
        };
        let key = |number| PublicKey::from_bytes([number; 32]).unwrap();
        let peers = [
            (key(1), peer(&["10.0.0.0/8", "10.9.0.0/16"])),
            (key(2), peer(&["10.1.0.0/16", "11.0.0.0/8"])),
        ];
        let observed = ObservedState { peers: peers.into(), ..ObservedState::default() };
        let cut = prefixes(&["10.0.0.0/8", "10.9.0.0/16", "10.1.2.0/24"]);
        let area = CutArea::new(&cut, &observed, BTreeSet::new);
        assert_eq!(area.spared, prefixes(&["10.1.0.0/16"]));
        let area = CutArea::new(&cut, &observed, || prefixes(&["10.3.0.0/24", "12.0.0.0/8"]));
        assert_eq!(area.spared, prefixes(&["10.1.0.0/16", "10.3.0.0/24"]));
    }
}
