//! `gatepost manual`: man pages and shell completions, for a package.

mod page;
mod roff;
mod settings;

use std::path::Path;

use clap::{ArgGroup, Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::CommandError;
use crate::exit::Exit;

/// Writes a page of section 8 for each command, one of section 5 for the configuration, and completions
/// for each shell. What is hidden is in none.
///
/// # Errors
/// The folder cannot be created or written to.
pub fn manual(folder: &Path) -> Result<Exit, CommandError> {
    std::fs::create_dir_all(folder)?;
    let mut cli = visible(&Cli::command());
    cli.build();
    page::write(&cli, folder)?;
    std::fs::write(folder.join("gatepost.toml.5"), settings::page())?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let mut cli = visible(&Cli::command());
        clap_complete::generate_to(shell, &mut cli, "gatepost", folder)?;
    }
    Ok(Exit::Success)
}

/// A command without its hidden arguments and subcommands, from which clap cannot free one.
fn visible(command: &Command) -> Command {
    let arguments = || command.get_arguments().filter(|it| !it.is_hide_set());
    let is_whole = |group: &&ArgGroup| {
        group.get_args().all(|id| arguments().any(|argument| argument.get_id() == id))
    };
    let children = command.get_subcommands().filter(|it| !it.is_hide_set()).map(visible);
    let mut copy = Command::new(command.get_name().to_owned())
        .args(arguments().cloned())
        .groups(command.get_groups().filter(is_whole).cloned())
        .subcommands(children)
        .subcommand_required(command.is_subcommand_required_set());
    if let Some(about) = command.get_about() {
        copy = copy.about(about.clone());
    }
    if let Some(about) = command.get_long_about() {
        copy = copy.long_about(about.clone());
    }
    if let Some(version) = command.get_version() {
        copy = copy.version(version.to_owned());
    }
    copy
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pages_say_what_a_reader_of_man_looks_for_and_nothing_is_hidden() {
        let folder = tempfile::tempdir().unwrap();
        manual(folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        for name in ["gatepost.8", "gatepost-plan.8", "gatepost-psk-seal.8"] {
            let page = read(name);
            for section in ["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "SEE ALSO"] {
                assert!(
                    page.contains(&format!(".SH \"{section}\"\n"))
                        || page.contains(&format!(".SH {section}\n")),
                    "{name}: {section}\n{page}"
                );
            }
        }
        for section in ["EXAMPLES", "FILES"] {
            assert!(read("gatepost.8").contains(&format!(".SH \"{section}\"\n")), "{section}");
            assert!(read("gatepost.toml.5").contains(&format!(".SH \"{section}\"\n")), "{section}");
        }
        assert!(read("gatepost.toml.5").contains("\\fBinterface.mtu_bytes\\fR"));
        for name in &names {
            let hidden = read(name).contains("with\\-parent") || read(name).contains("with-parent");
            assert!(!hidden && !name.contains("manual"), "{name}");
        }
        for shell in ["gatepost.bash", "gatepost.fish", "_gatepost"] {
            let text = read(shell);
            assert!(text.contains("unblock") && !text.contains("manual"), "{shell}");
        }
    }
}
