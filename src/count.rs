//! Numbers of things in words.

use std::fmt::Display;

/// A number with its noun: "1 peer", "2 peers".
#[must_use]
pub fn count(number: impl TryInto<u64> + Display + Copy, noun: &str) -> String {
    let is_one = matches!(number.try_into(), Ok(1));
    format!("{number} {noun}{}", if is_one { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_singular() {
        assert_eq!([0, 1, 2].map(|number| count(number, "flow")), ["0 flows", "1 flow", "2 flows"]);
    }
}
