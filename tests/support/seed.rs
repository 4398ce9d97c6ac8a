//! The seed of what a test chooses by chance.

/// `GATEPOST_TEST_SEED`, which repeats a run that printed it, else a new one.
pub fn seed() -> u64 {
    let seed = match std::env::var("GATEPOST_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("GATEPOST_TEST_SEED={seed}");
    seed
}
