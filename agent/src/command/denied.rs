//! `gatepost denied`: the packets that the firewall denied, with their peers and the reason.

use std::io;

use gatepost::reconcile::status::DeniedPacket;

use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{print, print_fitted, printable};

/// Prints the packets that the agent knows, the oldest first, and with `follow` those that come.
///
/// # Errors
/// No agent; it cannot read the log of denied packets.
pub fn denied(
    config: &Config,
    who: Option<&str>,
    follow: bool,
    json: bool,
) -> Result<Exit, CommandError> {
    let (mut shown, mut printed) = (false, Ok(()));
    let client = Client::new(&config.control.socket);
    let answered = client.denied(who, follow, |packet| {
        shown = true;
        printed = show(&packet, json);
        printed.is_ok()
    });
    printed?;
    answered?;
    if !shown && !json {
        let whose = who.map(|who| format!(" of {}", printable(who))).unwrap_or_default();
        print(&format!("the agent has read no denied packet{whose} since it started\n"))?;
    }
    Ok(Exit::Success)
}

fn show(packet: &DeniedPacket, json: bool) -> io::Result<()> {
    match json {
        true => print(&format!("{}\n", serde_json::to_string(packet)?)),
        false => print_fitted(&format!("{} {}\n", packet.at, printable(&packet.line()))),
    }
}
