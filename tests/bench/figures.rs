//! Times, and what is said of many of them. Shared by the benchmarks.
#![allow(dead_code, reason = "each benchmark uses a part")]

use std::time::{Duration, Instant};

pub fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

pub fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// The smallest of the times that this many percent of them do not exceed.
pub fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

pub fn median(times: &[Duration]) -> Duration {
    quantile(times, 50)
}
