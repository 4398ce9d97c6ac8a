//! `gatepost down`: what is ours, removed from the kernel.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::config::Config;
use crate::control::{Client, ControlError};
use crate::exit::{CommandError, Exit};
use crate::output::print;
use crate::wiring;

/// Removes the interface, its routes and the firewall table, after a question or `--yes`.
///
/// # Errors
/// A running agent, which would put everything back at once; no; a refusal of the kernel.
pub fn down(config: &Config, yes: bool) -> Result<Exit, CommandError> {
    let name = &config.interface.name;
    match Client::new(&config.control.socket).status() {
        Err(ControlError::NoAgent { .. }) => {}
        Ok(_) => {
            return Err(CommandError::Refused(format!(
                "an agent runs and would make {name} again at once: stop it first \
                 (systemctl stop gatepost)"
            )));
        }
        // It may run: what it would undo is not begun.
        Err(error) => return Err(error.into()),
    }
    if !yes && !confirmed(config)? {
        return Err(CommandError::Refused("nothing was removed".to_owned()));
    }
    let removed = super::small_runtime()?.block_on(wiring::down(config))?;
    print(&match removed.as_slice() {
        [] => "there was nothing of ours\n".to_owned(),
        some => some.iter().map(|what| format!("removed {what}\n")).collect(),
    })?;
    Ok(Exit::Success)
}

fn confirmed(config: &Config) -> Result<bool, CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::Refused(
            "there is nobody to ask: say --yes to remove everything of ours".to_owned(),
        ));
    }
    let question = match super::small_runtime()?.block_on(wiring::links(config))?.as_slice() {
        [] => "Remove our firewall table?".to_owned(),
        links => format!("Remove {} and end every tunnel through it?", links.join(", ")),
    };
    let mut out = io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
