//! `gatepost`: the agent and its commands.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unused_crate_dependencies))]

mod accept;
mod cli;
mod command;
mod config;
mod control;
mod database;
#[cfg(test)]
mod decoders;
mod denied;
mod error;
mod exit;
mod forwarding;
mod handles;
mod hindrances;
mod hints;
mod key_file;
mod loop_options;
mod namespace_lock;
mod openings;
mod output;
mod pulse;
mod reload;
mod runtime;
#[cfg(test)]
mod surface;
mod systemd;
mod telemetry;
mod wiring;

use std::io;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::telemetry::{Audience, start_log};

/// A large read allocates many small values on one thread and drops them on another. This allocator
/// returns their memory, and grows without a system call for every page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Keys reach no core dump, and no other process of this user. A kernel that refuses has no cure.
    let _ = nix::sys::prctl::set_dumpable(false);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            // Where not even this can be printed, the exit code must do.
            drop(error.print());
            return exit.into();
        }
    };
    let audience = match cli.command {
        Command::Run { .. } | Command::Device { .. } | Command::Bell { check: false } => {
            Audience::Daemon
        }
        _ => Audience::Person,
    };
    if let Err(error) = start_log(cli.log.as_deref(), audience) {
        eprintln!(
            "gatepost: --log is not a filter: {error}; write one like those of RUST_LOG, such as debug"
        );
        return Exit::Usage.into();
    }
    match command::run(cli) {
        Ok(exit) => exit.into(),
        // `gatepost peers | head` is not a failure.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Exit::Success.into()
        }
        Err(error) => {
            eprintln!("gatepost: {}", error.text());
            error.exit(audience).into()
        }
    }
}
