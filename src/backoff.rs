//! Waits between retries.

use std::time::Duration;

/// Waits that double and are randomized, so that a fleet does not return at one instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    random: fastrand::Rng,
    ceiling: Duration,
}

impl Backoff {
    /// The shortest ceiling of a wait.
    pub const FIRST: Duration = Duration::from_millis(200);
    /// The longest ceiling of a wait.
    pub const LAST: Duration = Duration::from_secs(10);

    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), ceiling: Self::FIRST }
    }

    /// The next wait: between half and all of a ceiling that doubles each time, from 200 ms to 10 s.
    #[must_use]
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.ceiling.mul_f64(0.5 + self.random.f64() / 2.0);
        self.ceiling = (self.ceiling * 2).min(Self::LAST);
        wait
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.ceiling = Self::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_last_and_start_over() {
        let mut backoff = Backoff::new(1);
        let waits: Vec<Duration> = (0..20).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] >= Backoff::FIRST / 2 && waits[0] <= Backoff::FIRST);
        assert!(waits.iter().all(|wait| *wait <= Backoff::LAST));
        assert!(waits[10..].iter().all(|wait| *wait >= Backoff::LAST / 2));
        backoff.reset();
        assert!(backoff.next_wait() <= Backoff::FIRST);
    }

    #[test]
    fn two_agents_do_not_wait_alike() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..8).map(|_| backoff.next_wait()).collect::<Vec<_>>()
        };
        assert_ne!(waits(1), waits(2));
        assert_eq!(waits(1), waits(1));
    }
}
