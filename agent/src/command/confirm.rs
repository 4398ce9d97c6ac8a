//! `gatepost confirm`: the removals that the guard holds back, and peers that are kept out.

use std::time::SystemTime;

use crate::command::ask;
use crate::command::peers::describe;
use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{Style, count, print, print_fitted};
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
    client.peers(None, |peer| match &peer.state {
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
    let done = done(held.len() as u64, kept_out.len() as u64);
    held.append(&mut kept_out);
    print_fitted(&describe(&held, false, SystemTime::now(), Style::of_stdout()))?;
    if !yes && !ask::yes_or_no("confirm", &question)? {
        return Err(CommandError::NotConfirmed);
    }
    client.confirm(until, let_in_until)?;
    print(&done)?;
    Ok(Exit::Success)
}

fn question(held: u64, kept_out: u64) -> String {
    let remove = format!("Remove {} and end their sessions", count(held, "held peer"));
    let let_in = format!("et in {} whose revocation the database lost", count(kept_out, "peer"));
    match (held, kept_out) {
        (_, 0) => format!("{remove}?"),
        (0, _) => format!("L{let_in}?"),
        _ => format!("{remove}, and l{let_in}?"),
    }
}

/// Describes the effect of a confirmation.
fn done(held: u64, kept_out: u64) -> String {
    let removed = format!("{} removed now", are(held));
    let let_in = format!("{} let in now", are(kept_out));
    match (held, kept_out) {
        (_, 0) => format!("confirmed: {removed}\n"),
        (0, _) => format!("confirmed: {let_in}\n"),
        _ => format!("confirmed: {removed}, and {let_in}\n"),
    }
}

fn are(peers: u64) -> String {
    format!("{} {}", count(peers, "peer"), if peers == 1 { "is" } else { "are" })
}

/// The latest time since which one of them is held or kept out.
fn latest(peers: &[PeerStatus]) -> Option<SystemTime> {
    let since = peers.iter().filter_map(|peer| match &peer.state {
        PeerState::Held { since, .. } | PeerState::KeptOut { since, .. } => Some(*since),
        _ => None,
    });
    since.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_done_has_its_numbers() {
        assert_eq!(question(13, 0), "Remove 13 held peers and end their sessions?");
        assert_eq!(done(13, 0), "confirmed: 13 peers are removed now\n");
        assert_eq!(done(0, 1), "confirmed: 1 peer is let in now\n");
        assert_eq!(done(1, 2), "confirmed: 1 peer is removed now, and 2 peers are let in now\n");
    }
}
