//! `gatepost confirm`: the removals that the guard holds back, and peers that are kept out.

use std::time::SystemTime;

use crate::command::ask;
use crate::command::peers::describe;
use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{count, print};
use gatepost::reconcile::status::{PeerState, PeerStatus};

/// Shows the peers that are held or kept out, and confirms their removal, or lets them in, after a question
/// or with `--yes`. A peer that is held or kept out later is not confirmed.
///
/// # Errors
/// No agent; [`CommandError::NothingHeldBack`], [`CommandError::NotConfirmed`],
/// [`CommandError::CannotAsk`].
pub fn confirm(config: &Config, yes: bool) -> Result<Exit, CommandError> {
    let client = Client::new(&config.control.socket);
    let (mut held, mut kept_out) = (Vec::new(), Vec::new());
    client.peers(|peer| match &peer.state {
        PeerState::Held { .. } => held.push(peer),
        PeerState::KeptOut { .. } => kept_out.push(peer),
        _ => {}
    })?;
    if held.is_empty() && kept_out.is_empty() {
        return Err(CommandError::NothingHeldBack);
    }
    // Held since before that: no removal.
    let until = latest(&held).unwrap_or(SystemTime::UNIX_EPOCH);
    let let_in_until = latest(&kept_out);
    let question = question(held.len() as u64, kept_out.len() as u64);
    let done = match held.len() {
        0 => "confirmed; they are let in now\n",
        _ => "confirmed; the held removals are applied now\n",
    };
    held.append(&mut kept_out);
    print(&describe(&held, false, SystemTime::now()))?;
    if !yes && !ask::yes_or_no("confirm", &question)? {
        return Err(CommandError::NotConfirmed);
    }
    client.confirm(until, let_in_until)?;
    print(done)?;
    Ok(Exit::Success)
}

fn question(held: u64, kept_out: u64) -> String {
    let remove = format!("Remove {} and end their sessions", count(held, "held peer"));
    let let_in = format!("et {} in whose revocation the database lost", count(kept_out, "peer"));
    match (held, kept_out) {
        (_, 0) => format!("{remove}?"),
        (0, _) => format!("L{let_in}?"),
        _ => format!("{remove}, and l{let_in}?"),
    }
}

/// The latest time since which one of them is held or kept out.
fn latest(peers: &[PeerStatus]) -> Option<SystemTime> {
    let since = peers.iter().filter_map(|peer| match &peer.state {
        PeerState::Held { since, .. } | PeerState::KeptOut { since, .. } => Some(*since),
        _ => None,
    });
    since.max()
}
