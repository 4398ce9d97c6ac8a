//! `gatepost down`: removes what belongs to gatepost from the kernel.

use gatepost::store::Store;

use crate::command::ask;
use crate::config::Config;
use crate::control::{Client, ControlError};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::print;
use crate::{database, runtime, wiring};

/// Removes the interface, its routes and the firewall table, after a question or with `--yes`.
///
/// # Errors
/// [`CommandError::AgentRuns`], which would create everything again; [`CommandError::NotConfirmed`],
/// [`CommandError::CannotAsk`]; a refusal of the kernel.
pub fn down(config: &Config, yes: bool) -> Result<Exit, CommandError> {
    match Client::new(&config.control.socket).status() {
        Err(ControlError::NoAgent { .. }) => {}
        Ok(_) => {
            return Err(CommandError::AgentRuns { interface: config.interface.name.clone() });
        }
        // An agent may be running, so nothing is removed.
        Err(error) => return Err(error.into()),
    }
    if !yes && !is_confirmed(config)? {
        return Err(CommandError::NotConfirmed);
    }
    let removed = runtime::on_this_thread()?.block_on(wiring::down(config))?;
    leave(config);
    print(&match removed.as_slice() {
        [] => "nothing to remove\n".to_owned(),
        some => some.iter().map(|what| format!("removed {what}\n")).collect(),
    })?;
    Ok(Exit::Success)
}

/// Tells the database that this host's kernel is empty. It may be away, or not configured any more.
fn leave(config: &Config) {
    let left = || -> Result<(), CommandError> {
        let store = Store::connect(&database::options(config)?)?;
        Ok(runtime::on_this_thread()?.block_on(store.leave())?)
    };
    if let Err(error) = left() {
        let name = database::this_host().name().to_owned();
        tracing::warn!(
            %error,
            "the database still counts this host, and last_sync_at of the gateway waits for it: run \
             `gatepost host forget {name}`: {error}"
        );
    }
}

fn is_confirmed(config: &Config) -> Result<bool, CommandError> {
    let question = match runtime::on_this_thread()?.block_on(wiring::links(config))?.as_slice() {
        [] => "Remove the nftables table inet gatepost?".to_owned(),
        links => format!("Remove {} and end every tunnel through it?", links.join(", ")),
    };
    ask::yes_or_no("down", &question)
}
