//! The ranges of addresses that the sets of a dumped table hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::dump::Dump;
use super::element::Element;
use super::name::{ARRIVALS, Family};
use super::sender::{others_in, pool_in};
use super::set::Set;
use crate::model::{Address, Networks};

/// The networks that the rules and sets name; to be proved by comparing.
pub fn networks_in(dump: &Dump) -> Networks {
    let no_pool = || IpNet::from(IpAddr::from([0; 4]));
    let found = dump.rules.get(ARRIVALS).map(Vec::as_slice).unwrap_or_default();
    let of = |family| Set::Networks(family);
    Networks {
        pool: pool_in(found).unwrap_or_else(no_pool),
        others: others_in(found),
        sites4: set_ranges(dump, &of(Family::V4)).unwrap_or_default().into_iter().collect(),
        sites6: set_ranges(dump, &of(Family::V6)).unwrap_or_default().into_iter().collect(),
    }
}

/// The ends of ranges, in order; `true`: an address after a range.
pub fn bounds(elements: &[Element]) -> BTreeSet<(IpAddr, bool)> {
    let bound = |element: &Element| match element {
        Element::Start(address) | Element::OpenStart(address) => Some((*address, false)),
        // The `nft` program may begin a set with the end of an empty range.
        Element::End(address) if address.is_unspecified() => None,
        Element::End(address) => Some((*address, true)),
        _ => None,
    };
    elements.iter().filter_map(bound).collect()
}

/// The ranges between a set's bounds; `None`: there are not two bounds to each.
pub fn set_ranges<T: Address>(dump: &Dump, set: &Set) -> Option<Vec<(T, T)>> {
    let number = |address: IpAddr| Some(T::span(&address.into())?.0);
    let mut bounds = bounds(dump.sets.get(set)?).into_iter();
    let mut ranges = Vec::new();
    while let Some((first, is_end)) = bounds.next() {
        let last = match bounds.next() {
            None => T::MAX,
            Some((after, true)) => number(after)?.previous()?,
            Some((_, false)) => return None,
        };
        ranges.push((number(first).filter(|_| !is_end)?, last));
    }
    Some(ranges)
}
