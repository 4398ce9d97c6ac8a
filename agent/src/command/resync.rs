//! `gatepost resync` and `gatepost confirm`: requests to the running agent.

use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{print, printable};

/// Has the agent compare everything again, and waits until the kernel is proven equal.
///
/// # Errors
/// No agent, or the pass failed.
pub fn resync(config: &Config) -> Result<Exit, CommandError> {
    let client = Client::new(&config.control.socket);
    client.resync()?;
    let state = client.status()?.state.to_string();
    print(&format!("compared everything again; the gateway is {}\n", printable(&state)))?;
    Ok(Exit::Success)
}

/// Confirms the removals that the guard holds back.
///
/// # Errors
/// No agent, or nothing is held back.
pub fn confirm(config: &Config) -> Result<Exit, CommandError> {
    Client::new(&config.control.socket).confirm()?;
    print("confirmed; the held removals are applied now\n")?;
    Ok(Exit::Success)
}
