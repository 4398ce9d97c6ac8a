//! Output for people and scripts.

mod fit;
mod style;
mod table;
mod text;

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;

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

/// Prints sentences [for the terminal](for_terminal).
///
/// # Errors
/// Those of standard output.
pub fn print_fitted(text: &str) -> io::Result<()> {
    print(&for_terminal(text))
}

/// Sentences for standard output: as they are, or, if it is a terminal, broken between words to fit it.
#[must_use]
pub fn for_terminal(text: &str) -> Cow<'_, str> {
    const LEAST_COLUMNS: usize = 40;
    match terminal_size::terminal_size_of(io::stdout()) {
        Some((width, _)) => fit::fitted(text, usize::from(width.0).max(LEAST_COLUMNS)).into(),
        None => text.into(),
    }
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
