//! `gatepost confirm`: the removals that the guard holds back.

use std::time::SystemTime;

use crate::command::ask;
use crate::command::peers::describe;
use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{count, print};
use gatepost::reconcile::status::{PeerState, PeerStatus};

/// Shows the peers that are held, and confirms their removal after a question or with `--yes`. A peer
/// that is held later is not confirmed.
///
/// # Errors
/// No agent; [`CommandError::NothingHeldBack`], [`CommandError::NotConfirmed`],
/// [`CommandError::CannotAsk`].
pub fn confirm(config: &Config, yes: bool) -> Result<Exit, CommandError> {
    let client = Client::new(&config.control.socket);
    let mut held = Vec::new();
    client.peers(|peer| held.extend(Some(peer).filter(|peer| held_since(peer).is_some())))?;
    let until = held.iter().filter_map(held_since).max().ok_or(CommandError::NothingHeldBack)?;
    print(&describe(&held, SystemTime::now()))?;
    let question =
        format!("Remove {} and end their sessions?", count(held.len() as u64, "held peer"));
    if !yes && !ask::yes_or_no("confirm", &question)? {
        return Err(CommandError::NotConfirmed);
    }
    client.confirm(until)?;
    print("confirmed; the held removals are applied now\n")?;
    Ok(Exit::Success)
}

fn held_since(peer: &PeerStatus) -> Option<SystemTime> {
    match &peer.state {
        PeerState::Held { since, .. } => Some(*since),
        _ => None,
    }
}
