//! Tries histories, and shrinks one that fails.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::history::{Ended, live};

/// The longest scenario, in bytes.
const LONGEST: usize = 160;

/// The scenario of this number in a series.
pub fn scenario(seed: u64, number: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number));
    let length = random.usize(20..LONGEST);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// The scenario that a file in `kept` holds.
pub fn parse(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8))
        .collect()
}

/// Why a history fails, if it does.
pub fn failure(bytes: &[u8]) -> Option<String> {
    let ended = catch_unwind(AssertUnwindSafe(|| live(bytes, false)));
    match ended {
        Ok(Ended { failure, .. }) => failure,
        Err(panic) => Some(words_of(panic.as_ref())),
    }
}

/// What a panic says.
fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// The kind of a failure, without its numbers.
fn kind(failure: &str) -> &str {
    let numbers = failure.find(|letter: char| letter.is_ascii_digit() || letter == '"');
    let start = numbers.unwrap_or(failure.len());
    &failure[..start.min(24)]
}

/// The shortest scenario found that fails in the same way.
pub fn shrink(bytes: &[u8], why: &str) -> Vec<u8> {
    let mut best = bytes.to_vec();
    let fails = |bytes: &[u8]| failure(bytes).is_some_and(|it| kind(&it) == kind(why));
    let mut length = best.len() / 2;
    while length > 0 {
        let mut at = 0;
        while at + length <= best.len() {
            let shorter = [&best[..at], &best[at + length..]].concat();
            if fails(&shorter) {
                best = shorter;
            } else {
                at += length;
            }
        }
        length /= 2;
    }
    for at in 0..best.len() {
        for smaller in [0, best[at] % 32, best[at] / 2] {
            let before = std::mem::replace(&mut best[at], smaller);
            if smaller >= before || !fails(&best) {
                best[at] = before;
            }
        }
    }
    best
}

/// Prints the story of a scenario that fails, and panics.
pub fn report(bytes: &[u8]) -> ! {
    let why = failure(bytes).unwrap_or_default();
    let shrunk = shrink(bytes, &why);
    let story = catch_unwind(|| live(&shrunk, true)).map(|ended| ended.story).unwrap_or_default();
    eprintln!("{}", story.join("\n"));
    let hex: String = shrunk.iter().map(|byte| format!("{byte:02x}")).collect();
    panic!(
        "{}\nkeep it: echo {hex} > tests/simulation/kept/NAME.hex",
        failure(&shrunk).unwrap_or_default()
    );
}
