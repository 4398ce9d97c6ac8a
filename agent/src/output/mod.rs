//! Output for people and scripts.

mod style;
mod table;
mod text;

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

/// Prints text as it is.
///
/// # Errors
/// Those of standard output.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
