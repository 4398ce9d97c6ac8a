//! Walks two maps side by side. If both are read completely, this takes one step for each entry. Looking up
//! every key of one map in the other would take a search for each.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// For every key of either map, in the order of the keys: the entries of both maps.
pub(super) fn side_by_side<'a, K: Ord, A, B>(
    one: &'a BTreeMap<K, A>,
    other: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, Option<&'a A>, Option<&'a B>)> {
    joined(one.iter(), other.iter())
}

/// The same as [`side_by_side`], for iterators whose entries are sorted by key.
pub(super) fn joined<'a, K: Ord + 'a, A, B>(
    ones: impl Iterator<Item = (&'a K, A)>,
    others: impl Iterator<Item = (&'a K, B)>,
) -> impl Iterator<Item = (&'a K, Option<A>, Option<B>)> {
    let (mut ones, mut others) = (ones.peekable(), others.peekable());
    std::iter::from_fn(move || {
        let order = match (ones.peek(), others.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let one = if order.is_le() { ones.next() } else { None };
        let other = if order.is_ge() { others.next() } else { None };
        let key = one.as_ref().map(|(key, _)| *key).or(other.as_ref().map(|(key, _)| *key))?;
        Some((key, one.map(|(_, value)| value), other.map(|(_, value)| value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_once_with_what_either_map_holds() {
        let map = |keys: &[u8]| keys.iter().map(|key| (*key, *key)).collect::<BTreeMap<_, _>>();
        let joined = |one: &[u8], other: &[u8]| {
            let (one, other) = (map(one), map(other));
            let seen = side_by_side(&one, &other);
            seen.map(|(key, a, b)| (*key, a.copied(), b.copied())).collect::<Vec<_>>()
        };
        let both =
            [(1, Some(1), None), (2, Some(2), Some(2)), (3, None, Some(3)), (4, Some(4), None)];
        assert_eq!(joined(&[1, 2, 4], &[2, 3]), both);
        assert_eq!(joined(&[], &[7]), [(7, None, Some(7))]);
        assert_eq!(joined(&[7], &[]), [(7, Some(7), None)]);
        assert_eq!(joined(&[], &[]), []);
    }
}
