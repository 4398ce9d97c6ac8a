//! One module per command. Each reads what it needs, asks a pure function, and prints the answer.

pub mod check;
mod device;
mod down;
mod enroll;
mod explain;
mod grant;
pub mod key;
mod manual;
mod migrate;
mod peers;
mod plan;
mod psk;
mod resync;
mod run;
mod status;

use std::path::PathBuf;

use tokio::runtime::{Builder, Runtime};

use crate::cli::{Cli, Command, DatabaseArgs};
use crate::config::{Config, ConfigError, Origin, Source, Unnamed, load};
use crate::exit::{CommandError, Exit};

/// Obeys one command line.
///
/// # Errors
/// What kept the command from doing its work; an answer such as "denied" is no error.
pub fn obey(cli: Cli) -> Result<Exit, CommandError> {
    let source = Source::of_process(cli.config);
    match cli.command {
        Command::Run { once } => run::run(&configuration(source)?, once),
        Command::Migrate { database, dry_run } => {
            migrate::migrate(&configuration_of(source, database)?, dry_run)
        }
        Command::Grant { gateway, role, create, role_password_file, database } => {
            let config = configuration_of(source, database)?;
            grant::grant(&config, &gateway, &role, create, role_password_file.as_deref())
        }
        Command::Enroll(args) => enroll::enroll(&configuration(source)?, &args),
        Command::Plan(json) => plan::plan(&configuration(source)?, json.json),
        Command::Status { json, watch } => {
            status::status(&configuration(source)?, json.json, watch)
        }
        Command::Peers(json) => peers::peers(&configuration(source)?, json.json),
        Command::Explain { who, destination, json } => {
            explain::explain(&configuration(source)?, &who, destination, json.json)
        }
        Command::Resync => resync::resync(&configuration(source)?),
        Command::Confirm => resync::confirm(&configuration(source)?),
        Command::Check(json) => check::check(source, json.json),
        Command::Psk(command) => psk::psk(source, &command),
        Command::Key(command) => key::key(source, &command),
        Command::Device { name, serve: None } => device::keep(&name),
        Command::Device { name, serve: Some(serve) } => device::serve(&name, serve),
        Command::Manual { folder } => manual::manual(&folder),
        Command::Down { yes } => down::down(&configuration(source)?, yes),
    }
}

/// The configuration; what may be a mistake in it is logged.
fn configuration(source: Source) -> Result<Config, ConfigError> {
    let config = load(source)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// The configuration with the database as an administrator's command names it.
fn configuration_of(source: Source, args: DatabaseArgs) -> Result<Config, ConfigError> {
    let DatabaseArgs { database_url, database_password_file } = args;
    let mut config = configuration(source)?;
    if let Some(url) = database_url {
        let url = url.parse().map_err(|why: &str| ConfigError::Value {
            origin: Origin::Argument("--database-url"),
            key: "database.url".to_owned(),
            why: why.to_owned(),
        })?;
        config.database.url = Some(url);
        // The configured password is another role's.
        config.database.password_file = None;
        config.unnamed_secrets = Unnamed::Nowhere;
    }
    if let Some(file) = database_password_file {
        // The command line means the working directory, not the configuration's folder.
        config.database.password_file = Some(std::path::absolute(&file).unwrap_or(file));
    }
    Ok(config)
}

/// A runtime for a command that asks something and ends.
fn small_runtime() -> Result<Runtime, CommandError> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// A file that the command line named, or the configuration's.
fn named_or(
    named: Option<&PathBuf>,
    configured: impl FnOnce() -> Result<PathBuf, ConfigError>,
) -> Result<PathBuf, ConfigError> {
    named.map_or_else(configured, |path| Ok(path.clone()))
}
