//! How long changes took from their announcement to their proof, since the agent started.

use std::time::Duration;

/// Upper bounds of the classes, in milliseconds; what took longer is in none.
pub const BOUNDS_MS: [u64; 12] =
    [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 60_000];

/// A histogram as Prometheus has it. Figures that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lags {
    /// How many took at most the bound of the same place in [`BOUNDS_MS`].
    pub at_most: [u64; BOUNDS_MS.len()],
    pub count: u64,
    pub sum: Duration,
}

impl Lags {
    /// A change was proven after so long.
    pub fn add(&mut self, lag: Duration) {
        let classes = self.at_most.iter_mut().zip(BOUNDS_MS);
        let fits = classes.filter(|(_, bound_ms)| lag <= Duration::from_millis(*bound_ms));
        fits.for_each(|(count, _)| *count += 1);
        self.count += 1;
        self.sum += lag;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_counts_what_took_at_most_its_bound() {
        let mut lags = Lags::default();
        [3, 10, 11, 70_000].into_iter().for_each(|ms| lags.add(Duration::from_millis(ms)));
        assert_eq!(lags.at_most, [1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]);
        assert_eq!((lags.count, lags.sum), (4, Duration::from_millis(70_024)));
    }
}
