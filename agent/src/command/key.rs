//! `gatepost key`: generates private keys and prints public keys.

use std::path::PathBuf;

use crate::cli::KeyCommand;
use crate::config::{ConfigError, Source, load, private_key_file};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::key_file;
use crate::output::print;

/// Runs `gatepost key generate` or `gatepost key public`.
///
/// # Errors
/// [`KeyFileError`](key_file::KeyFileError), or a wrong configuration where no file is named.
pub fn key(source: Source, command: &KeyCommand) -> Result<Exit, CommandError> {
    let key = match command {
        KeyCommand::Generate { file } => key_file::generate(&path(file.as_ref(), source)?)?,
        KeyCommand::Public { file } => key_file::read(&path(file.as_ref(), source)?)?,
    };
    print(&format!("{}\n", key.public_key()))?;
    Ok(Exit::Success)
}

/// The file that the command line names, else the configured one.
fn path(named: Option<&PathBuf>, source: Source) -> Result<PathBuf, ConfigError> {
    match named {
        Some(path) => Ok(path.clone()),
        None => Ok(private_key_file(&load(source)?).path),
    }
}
