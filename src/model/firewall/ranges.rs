//! Inclusive address ranges, the form in which the kernel's interval sets hold them.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// One family's addresses as numbers: `u32` for IPv4, `u128` for IPv6.
pub trait Address: Copy + Ord + Hash + fmt::Debug + 'static {
    const MIN: Self;
    const MAX: Self;

    /// The address after this one; `None` at the top of the space.
    fn next(self) -> Option<Self>;

    /// The address before this one; `None` at the bottom of the space.
    fn previous(self) -> Option<Self>;

    fn to_ip(self) -> IpAddr;

    /// First and last address of a prefix; `None` if it is of the other family.
    fn span(prefix: &IpNet) -> Option<(Self, Self)>;

    /// The fewest prefixes that are together exactly this range, ascending.
    fn prefixes(first: Self, last: Self) -> impl Iterator<Item = IpNet>;

    /// The one prefix that is exactly this range; `None` if it takes several.
    fn exact_prefix(first: Self, last: Self) -> Option<IpNet>;
}

impl Address for u32 {
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn span(prefix: &IpNet) -> Option<(Self, Self)> {
        match prefix {
            IpNet::V4(net) => Some((net.network().into(), net.broadcast().into())),
            IpNet::V6(_) => None,
        }
    }

    fn prefixes(first: Self, last: Self) -> impl Iterator<Item = IpNet> {
        Ipv4Subnets::new(first.into(), last.into(), 0).map(IpNet::V4)
    }

    fn exact_prefix(first: Self, last: Self) -> Option<IpNet> {
        let mut prefixes = Ipv4Subnets::new(first.into(), last.into(), 0);
        prefixes.next().filter(|net| u32::from(net.broadcast()) == last).map(IpNet::V4)
    }
}

impl Address for u128 {
    const MIN: Self = Self::MIN;
    const MAX: Self = Self::MAX;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn span(prefix: &IpNet) -> Option<(Self, Self)> {
        match prefix {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some((net.network().into(), net.broadcast().into())),
        }
    }

    fn prefixes(first: Self, last: Self) -> impl Iterator<Item = IpNet> {
        Ipv6Subnets::new(first.into(), last.into(), 0).map(IpNet::V6)
    }

    fn exact_prefix(first: Self, last: Self) -> Option<IpNet> {
        let mut prefixes = Ipv6Subnets::new(first.into(), last.into(), 0);
        prefixes.next().filter(|net| u128::from(net.broadcast()) == last).map(IpNet::V6)
    }
}

/// Inclusive address ranges: sorted, disjoint, not adjacent. `T` is `u32` or `u128`.
///
/// Collecting any ranges, in any order and overlapping, makes them so. A range whose last address
/// lies before its first holds nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges<T>(pub(crate) Box<[(T, T)]>);

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self(Box::new([]))
    }
}

impl<T> Ranges<T> {
    /// The ranges, ascending, as first and last address.
    #[must_use]
    pub fn as_slice(&self) -> &[(T, T)] {
        &self.0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Address> Ranges<T> {
    /// Each range as a prefix where one prefix says it (`10.0.0.0/8`), else as `first-last`.
    pub fn texts(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|&(first, last)| match T::exact_prefix(first, last) {
            _ if first == last => first.to_ip().to_string(),
            Some(prefix) => prefix.to_string(),
            None => format!("{}-{}", first.to_ip(), last.to_ip()),
        })
    }

    /// The fewest prefixes that hold the same addresses, ascending.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.0.iter().flat_map(|&(first, last)| T::prefixes(first, last))
    }

    #[must_use]
    pub fn contains(&self, address: T) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.0[after - 1].1
    }

    /// The addresses that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (&*self.0, &*other.0);
        let mut both = Vec::new();
        while let ([(a, b), ..], [(c, d), ..]) = (mine, theirs) {
            let (first, last) = (*a.max(c), *b.min(d));
            if first <= last {
                both.push((first, last));
            }
            if b < d {
                mine = &mine[1..];
            } else {
                theirs = &theirs[1..];
            }
        }
        Self(both.into_boxed_slice())
    }

    /// These addresses and those of prefixes of the same family.
    #[must_use]
    pub fn with(&self, prefixes: impl Iterator<Item = IpNet>) -> Self {
        self.0.iter().copied().chain(prefixes.filter_map(|it| T::span(&it))).collect()
    }

    /// The addresses that are here and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.intersection(&other.complement())
    }

    /// Every address that is not here.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.0.len() + 1);
        let mut from = Some(T::MIN);
        for (first, last) in &self.0 {
            if let (Some(from), Some(before)) = (from, first.previous())
                && from <= before
            {
                gaps.push((from, before));
            }
            from = last.next();
        }
        gaps.extend(from.map(|from| (from, T::MAX)));
        Self(gaps.into_boxed_slice())
    }
}

impl<T: Address> FromIterator<(T, T)> for Ranges<T> {
    fn from_iter<I: IntoIterator<Item = (T, T)>>(ranges: I) -> Self {
        let mut ranges: Vec<(T, T)> =
            ranges.into_iter().filter(|(first, last)| first <= last).collect();
        if !ranges.is_sorted() {
            ranges.sort_unstable();
        }
        ranges.dedup_by(|(first, last), (_, end)| {
            let joins = end.next().is_none_or(|after| *first <= after);
            if joins {
                *end = (*end).max(*last);
            }
            joins
        });
        Self(ranges.into_boxed_slice())
    }
}

impl<T: Address> fmt::Display for Ranges<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, text) in self.texts().enumerate() {
            write!(f, "{}{text}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(ranges: &[(u32, u32)]) -> Ranges<u32> {
        ranges.iter().copied().collect()
    }

    #[test]
    fn collecting_sorts_and_joins_what_overlaps_or_touches() {
        assert_eq!(ranges(&[(8, 9), (1, 3), (4, 5), (2, 2), (7, 6)]), ranges(&[(1, 5), (8, 9)]));
        assert_eq!(ranges(&[(1, 5), (8, 9)]).as_slice(), [(1, 5), (8, 9)]);
        assert_eq!(ranges(&[(5, u32::MAX), (7, 8), (9, u32::MAX)]).as_slice(), [(5, u32::MAX)]);
    }

    #[test]
    fn the_complement_reaches_both_ends_of_the_space() {
        assert_eq!(ranges(&[]).complement().as_slice(), [(0, u32::MAX)]);
        assert_eq!(ranges(&[(0, u32::MAX)]).complement(), ranges(&[]));
        let middle = ranges(&[(3, 4), (7, u32::MAX)]);
        assert_eq!(middle.complement().as_slice(), [(0, 2), (5, 6)]);
        assert_eq!(middle.complement().complement(), middle);
    }

    #[test]
    fn difference_and_intersection_cut_within_ranges() {
        let (left, right) = (ranges(&[(0, 9), (20, 29)]), ranges(&[(3, 4), (9, 20), (25, 99)]));
        assert_eq!(left.intersection(&right).as_slice(), [(3, 4), (9, 9), (20, 20), (25, 29)]);
        assert_eq!(left.difference(&right).as_slice(), [(0, 2), (5, 8), (21, 24)]);
        assert!(left.contains(9) && !left.contains(10) && left.contains(20));
    }

    #[test]
    fn prints_prefixes_where_it_can() {
        let span = |text: &str| u32::span(&text.parse().unwrap()).unwrap();
        let (ten, host) = (span("10.0.0.0/8"), span("192.0.2.7/32"));
        let odd = (span("172.16.0.0/24").0, span("172.16.2.0/24").1);
        assert_eq!(
            [ten, host, odd].into_iter().collect::<Ranges<u32>>().to_string(),
            "10.0.0.0/8, 172.16.0.0-172.16.2.255, 192.0.2.7"
        );
        assert_eq!(ranges(&[(0, u32::MAX)]).to_string(), "0.0.0.0/0");
        assert_eq!(Ranges::<u128>::default().complement().to_string(), "::/0");
    }
}
