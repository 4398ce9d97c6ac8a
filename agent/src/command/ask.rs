//! Questions to a person.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::error::CommandError;

/// Whether the person at the terminal says yes.
///
/// # Errors
/// [`CommandError::CannotAsk`] where there is no terminal.
pub fn yes_or_no(command: &'static str, question: &str) -> Result<bool, CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::CannotAsk { command });
    }
    let mut out = io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
