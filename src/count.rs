//! Numbers of things in words.

use std::fmt::Display;

/// A number with its noun: "1 peer", "2 peers".
#[must_use]
pub fn count(number: impl TryInto<u64> + Display + Copy, noun: &str) -> String {
    let is_one = matches!(number.try_into(), Ok(1));
    if is_one { format!("{number} {noun}") } else { format!("{number} {}", plural(noun)) }
}

fn plural(noun: &str) -> String {
    let vowels = ['a', 'e', 'i', 'o', 'u'];
    match noun.strip_suffix('y').filter(|stem| !stem.ends_with(vowels)) {
        Some(stem) => format!("{stem}ies"),
        None if noun.ends_with('s') => format!("{noun}es"),
        None => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_singular() {
        assert_eq!([0, 1, 2].map(|number| count(number, "flow")), ["0 flows", "1 flow", "2 flows"]);
    }

    #[test]
    fn plurals_are_spelled_as_in_english() {
        let nouns = ["policy", "gateway", "address", "audit entry"];
        let plurals = ["2 policies", "2 gateways", "2 addresses", "2 audit entries"];
        assert_eq!(nouns.map(|noun| count(2, noun)), plurals);
    }
}
