//! Words on a terminal: tables, ages, sizes. Pure, but for asking once whether there is one.

mod table;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

pub use table::Table;

/// Whether to colour what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Coloured,
}

/// What a word means to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    Warning,
    Bad,
}

impl Style {
    /// Colour on a terminal, unless `NO_COLOR` asks for none.
    #[must_use]
    pub fn of_stdout() -> Self {
        if io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
            Self::Coloured
        } else {
            Self::Plain
        }
    }

    /// The text in the colour of its tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let colour = match tone {
            Tone::Good => 32,
            Tone::Warning => 33,
            Tone::Bad => 31,
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\x1b[{colour}m{text}\x1b[0m"),
        }
    }
}

/// How long ago: "12 s ago". The largest unit that fits, alone: nobody needs both.
#[must_use]
pub fn age(age: Duration) -> String {
    format!("{} ago", span(age))
}

/// How long: "12 s".
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

/// A count with its noun: "1 peer", "2 peers".
#[must_use]
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Text from a database row, with nothing left in it that a terminal would obey: control
/// characters, and those that turn the direction of what follows.
#[must_use]
pub fn harmless(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// A name, cut where it would break a table.
#[must_use]
pub fn short(name: &str) -> String {
    const MOST_CHARS: usize = 48;
    match name.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Prints a value as indented JSON.
///
/// # Errors
/// Those of standard output.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Prints text as it is.
///
/// # Errors
/// Those of standard output.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_one_unit() {
        let cases = [(0, "0 ms"), (1, "1 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min")];
        for (secs, text) in cases {
            assert_eq!(span(Duration::from_secs(secs)), text);
        }
        assert_eq!(span(Duration::from_millis(8)), "8 ms");
        assert_eq!(span(Duration::from_hours(2)), "2 h");
        assert_eq!(span(Duration::from_hours(50)), "2 d");
    }

    #[test]
    fn sizes_never_round_up_to_the_next_unit() {
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
    fn a_name_cannot_drive_the_terminal() {
        assert_eq!(harmless("an\x1b[31mna\nben"), "an\u{fffd}[31mna\u{fffd}ben");
        assert_eq!(harmless("ab\u{202e}cd"), "ab\u{fffd}cd");
        assert_eq!(harmless("Zoë 日本"), "Zoë 日本");
        assert_eq!(short("Zoë"), "Zoë");
        assert_eq!(short(&"é".repeat(1_000)), "é".repeat(48) + "…");
    }
}
