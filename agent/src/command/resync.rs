//! `gatepost resync` and `gatepost confirm`: what an operator may ask the running agent to do.

use crate::config::Config;
use crate::control::Client;
use crate::exit::{CommandError, Exit};

/// Has everything compared anew, and waits until it is proven.
///
/// # Errors
/// No agent, or the pass failed.
pub fn resync(config: &Config) -> Result<Exit, CommandError> {
    Client::new(&config.control.socket).resync()?;
    Ok(Exit::Success)
}

/// Lets the removal that the guard holds back go ahead.
///
/// # Errors
/// No agent, or nothing is held back.
pub fn confirm(config: &Config) -> Result<Exit, CommandError> {
    Client::new(&config.control.socket).confirm()?;
    Ok(Exit::Success)
}
