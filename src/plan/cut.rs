//! Which addresses a cut of flows concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::prefix::may_contain_others;
use crate::model::ObservedState;

/// The addresses whose flows are cut: those of these prefixes, but for the parts that others hold and keep.
///
/// Within a site prefix lie others: another peer's, which the device and the firewall prefer because it is longer,
/// and networks of the host's other links, which its routing prefers. Their flows never were the site's.
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
    /// The area of these prefixes in a kernel in this state.
    #[must_use]
    pub fn new(prefixes: &'a BTreeSet<IpNet>, observed: &ObservedState) -> Self {
        let wide = || prefixes.iter().copied().filter(may_contain_others);
        let table = observed.firewall.as_ref();
        let places = table.into_iter().flat_map(|table| {
            wide().flat_map(|prefix| prefixes_within(table.assignments(), prefix))
        });
        let networks = wide().flat_map(|prefix| prefixes_within(&observed.networks, prefix));
        let within = places.chain(networks).copied();
        Self::sparing(prefixes, within.filter(|prefix| !prefixes.contains(prefix)).collect())
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

/// The keys that are this prefix or lie within it.
pub(super) fn prefixes_within<V>(
    map: &BTreeMap<IpNet, V>,
    prefix: IpNet,
) -> impl Iterator<Item = &IpNet> {
    map.range(prefix..=prefix.broadcast().into()).map(|(within, _)| within)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn networks_of_other_links_are_spared_only_within_a_prefix() {
        let networks = ["10.1.0.0/16", "172.16.0.0/16", "192.168.0.0/16"];
        let networks = networks.map(|network| (network.parse().unwrap(), "eth0".into()));
        let observed = ObservedState { networks: networks.into(), ..ObservedState::default() };
        let cut = prefixes(&["10.0.0.0/8", "172.16.0.0/16", "192.168.1.0/24"]);
        let area = CutArea::new(&cut, &observed);
        assert_eq!(area.spared, prefixes(&["10.1.0.0/16"]));
    }
}
