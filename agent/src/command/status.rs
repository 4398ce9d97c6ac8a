//! `gatepost status`: the agent's status.

mod changes;
mod describe;
mod watch;

use std::time::SystemTime;

use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, Style};
pub use describe::{describe, is_kernel_read};

/// Prints the status once, or again and again with `watch`.
///
/// # Errors
/// No agent, or a wrong answer; with `watch`, at the first request.
pub fn status(config: &Config, json: bool, is_watched: bool) -> Result<Exit, CommandError> {
    let client = Client::new(&config.control.socket);
    if is_watched {
        return watch::watch(&client, json);
    }
    let status = client.status()?;
    if json {
        output::print_json(&status)?;
    } else {
        output::print_fitted(&describe(&status, SystemTime::now(), Style::of_stdout()))?;
    }
    Ok(if status.state.is_ready() { Exit::Success } else { Exit::NotReady })
}
