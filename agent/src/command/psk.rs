//! `gatepost psk`: seals and opens envelopes, for a control plane that has no library for it.

use std::io::{self, Read};

use gatepost::model::PresharedKey;
use gatepost::model::psk::PskKeys;

use crate::cli::{PskArgs, PskCommand};
use crate::config::{Source, load, read_psk_keys, read_psk_keys_file};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::key_file::KeyFileError;
use crate::output::print;

/// Reads one line from standard input and prints one line.
///
/// # Errors
/// [`CommandError::NoPskKeys`]; a wrong key or envelope.
pub fn psk(source: Source, command: &PskCommand) -> Result<Exit, CommandError> {
    let (PskCommand::Seal(args) | PskCommand::Open(args)) = command;
    let keys = keys(source, args)?;
    let mut input = String::new();
    io::stdin().lock().take(4096).read_to_string(&mut input)?;
    let output = match command {
        PskCommand::Seal(_) => seal(&keys, args, input.trim())?,
        PskCommand::Open(_) => keys.open(input.trim(), args.gateway_id(), args.peer)?.expose_text(),
    };
    print(&format!("{output}\n"))?;
    Ok(Exit::Success)
}

fn seal(keys: &PskKeys, args: &PskArgs, text: &str) -> Result<String, CommandError> {
    let key = text.parse::<PresharedKey>().map_err(CommandError::PresharedKey)?;
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce).map_err(KeyFileError::Random)?;
    Ok(keys.seal(nonce, &key, args.gateway_id(), args.peer)?)
}

fn keys(source: Source, args: &PskArgs) -> Result<PskKeys, CommandError> {
    match &args.keys {
        Some(path) => Ok(read_psk_keys_file(path)?),
        None => read_psk_keys(&load(source)?)?.ok_or(CommandError::NoPskKeys),
    }
}
