//! `gatepost manual`: man pages and shell completions, for a package.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::CommandError;
use crate::exit::Exit;

/// Writes a man page for each command, and completions for each shell.
///
/// # Errors
/// The folder cannot be created or written to.
pub fn manual(folder: &Path) -> Result<Exit, CommandError> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "gatepost", folder)?;
    }
    Ok(Exit::Success)
}
