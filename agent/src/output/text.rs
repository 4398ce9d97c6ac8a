//! Values as text: ages, sizes, counts, names. Pure.

use std::time::Duration;

/// How long ago: "12 s ago".
#[must_use]
pub fn age(age: Duration) -> String {
    format!("{} ago", span(age))
}

/// How long: "12 s". Only the largest unit that fits.
#[must_use]
pub fn span(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{} ms", span.as_millis()),
        secs @ 1..120 => format!("{secs} s"),
        secs @ 120..7_200 => format!("{} min", secs / 60),
        secs @ 7_200..172_800 => format!("{} h", secs / 3_600),
        secs => format!("{} d", secs / 86_400),
    }
}

/// A size in powers of 1024: "3.4 MiB".
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Integer arithmetic in tenths, so that no rounding shows "1024.0 KiB".
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Text from a database row, safe for a terminal: control characters, and those that change the
/// direction of the text, are replaced.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// A name, truncated so that it fits in a table.
#[must_use]
pub fn truncated(name: &str) -> String {
    shortened(name, 48)
}

/// The first characters, so many at most, and an ellipsis where there are more.
#[must_use]
pub fn shortened(text: &str, most_chars: usize) -> String {
    match text.char_indices().nth(most_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_has_one_unit() {
        let cases = [(0, "0 ms"), (1, "1 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min")];
        for (secs, text) in cases {
            assert_eq!(span(Duration::from_secs(secs)), text);
        }
        assert_eq!(span(Duration::from_millis(8)), "8 ms");
        assert_eq!(span(Duration::from_hours(2)), "2 h");
        assert_eq!(span(Duration::from_hours(50)), "2 d");
    }

    #[test]
    fn size_never_rounds_up_to_the_next_unit() {
        let cases = [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn name_cannot_control_the_terminal() {
        assert_eq!(printable("an\x1b[31mna\nben"), "an\u{fffd}[31mna\u{fffd}ben");
        assert_eq!(printable("ab\u{202e}cd"), "ab\u{fffd}cd");
        assert_eq!(printable("Zoë 日本"), "Zoë 日本");
        assert_eq!(truncated("Zoë"), "Zoë");
        assert_eq!(truncated(&"é".repeat(1_000)), "é".repeat(48) + "…");
    }
}
