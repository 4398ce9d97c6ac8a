//! Output for people and scripts.

mod fit;
mod style;
mod table;
mod text;

use std::io::{self, Write};

use serde::Serialize;

pub use fit::fitted;
pub use gatepost::count::count;
pub use style::{Style, Tone};
pub use table::Table;
pub use text::{age, bytes, printable, shortened, span, truncated};

/// Prints a value as indented JSON.
///
/// # Errors
/// Those of standard output.
pub fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Prints sentences: as they are, or, on a terminal, broken between words to fit it.
///
/// # Errors
/// Those of standard output.
pub fn print_fitted(text: &str) -> io::Result<()> {
    match terminal_columns() {
        Some(columns) => print(&fitted(text, columns)),
        None => print(text),
    }
}

/// How wide the terminal is that standard output is, if it is one.
#[must_use]
pub fn terminal_columns() -> Option<usize> {
    const LEAST_COLUMNS: usize = 40;
    let (width, _) = terminal_size::terminal_size_of(io::stdout())?;
    Some(usize::from(width.0).max(LEAST_COLUMNS))
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
