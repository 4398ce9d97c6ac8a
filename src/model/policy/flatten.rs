//! Overlapping ranges, of which the one with the lowest rank counts, made disjoint.

use std::collections::BTreeMap;

use crate::model::{Address, Ranges};

/// Addresses that one policy has a say about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<T> {
    pub first: T,
    pub last: T,
    /// Where spans overlap, the lowest rank wins.
    pub rank: usize,
}

/// Neighbouring addresses that the same rank wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch<T> {
    pub first: T,
    pub last: T,
    /// `None`: no span contains these addresses.
    pub winner: Option<usize>,
}

/// The whole address space, in order, as stretches with one winner each. O(n log n) in the spans;
/// at most 2n + 1 stretches.
///
/// Walks over the ends of the spans and keeps the ranks that are live between two of them.
#[must_use]
pub fn sweep<T: Address>(spans: &[Span<T>]) -> Vec<Stretch<T>> {
    let mut edges = Vec::with_capacity(spans.len() * 2);
    for span in spans.iter().filter(|span| span.first <= span.last) {
        edges.push((span.first, Edge::Begins(span.rank)));
        // A span up to the top of the space never ends.
        edges.extend(span.last.next().map(|after| (after, Edge::Ended(span.rank))));
    }
    edges.sort_unstable_by_key(|(at, _)| *at);

    let mut live: BTreeMap<usize, usize> = BTreeMap::new();
    let mut stretches: Vec<Stretch<T>> = Vec::new();
    let mut first = T::MIN;
    for (at, edge) in edges {
        if let Some(last) = at.previous()
            && first <= last
        {
            push(&mut stretches, first, last, &live);
        }
        first = at;
        match edge {
            Edge::Begins(rank) => *live.entry(rank).or_default() += 1,
            Edge::Ended(rank) => {
                if let Some(count) = live.get_mut(&rank) {
                    *count -= 1;
                    if *count == 0 {
                        live.remove(&rank);
                    }
                }
            }
        }
    }
    push(&mut stretches, first, T::MAX, &live);
    stretches
}

/// The stretches whose winner is wanted, merged where they touch.
#[must_use]
pub fn select<T: Address>(
    stretches: &[Stretch<T>],
    wanted: impl Fn(Option<usize>) -> bool,
) -> Ranges<T> {
    stretches
        .iter()
        .filter(|stretch| wanted(stretch.winner))
        .map(|stretch| (stretch.first, stretch.last))
        .collect()
}

#[derive(Clone, Copy)]
enum Edge {
    Begins(usize),
    Ended(usize),
}

fn push<T: Address>(
    stretches: &mut Vec<Stretch<T>>,
    first: T,
    last: T,
    live: &BTreeMap<usize, usize>,
) {
    let winner = live.keys().next().copied();
    match stretches.last_mut() {
        Some(before) if before.winner == winner => before.last = last,
        _ => stretches.push(Stretch { first, last, winner }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(spans: &[(u32, u32, usize)]) -> Vec<Span<u32>> {
        spans.iter().map(|&(first, last, rank)| Span { first, last, rank }).collect()
    }

    fn stretches(stretches: &[(u32, u32, Option<usize>)]) -> Vec<Stretch<u32>> {
        stretches.iter().map(|&(first, last, winner)| Stretch { first, last, winner }).collect()
    }

    const TOP: u32 = u32::MAX;

    #[test]
    fn no_policy_is_one_stretch_without_a_winner() {
        assert_eq!(sweep::<u32>(&[]), stretches(&[(0, TOP, None)]));
        assert_eq!(sweep(&spans(&[(9, 3, 0)])), stretches(&[(0, TOP, None)]));
    }

    #[test]
    fn the_lowest_rank_wins_where_spans_overlap() {
        let inner_wins = sweep(&spans(&[(10, 99, 2), (20, 29, 1)]));
        assert_eq!(
            inner_wins,
            stretches(&[
                (0, 9, None),
                (10, 19, Some(2)),
                (20, 29, Some(1)),
                (30, 99, Some(2)),
                (100, TOP, None)
            ])
        );
        let outer_wins = sweep(&spans(&[(10, 99, 1), (20, 29, 2)]));
        assert_eq!(outer_wins, stretches(&[(0, 9, None), (10, 99, Some(1)), (100, TOP, None)]));
    }

    #[test]
    fn both_ends_of_the_space_belong_to_it() {
        assert_eq!(sweep(&spans(&[(0, TOP, 0)])), stretches(&[(0, TOP, Some(0))]));
        assert_eq!(
            sweep(&spans(&[(0, 0, 0), (TOP, TOP, 1)])),
            stretches(&[(0, 0, Some(0)), (1, TOP - 1, None), (TOP, TOP, Some(1))])
        );
    }

    #[test]
    fn spans_of_one_rank_that_touch_or_repeat_are_one() {
        let spans = spans(&[(5, 9, 0), (5, 9, 0), (10, 20, 0), (7, 12, 0)]);
        assert_eq!(sweep(&spans), stretches(&[(0, 4, None), (5, 20, Some(0)), (21, TOP, None)]));
        let chosen = select(&sweep(&spans), |winner| winner.is_some());
        assert_eq!(chosen.as_slice(), [(5, 20)]);
    }
}
