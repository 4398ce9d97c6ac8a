//! `gatepost resync`: a comparison by the running agent.

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
