//! One module per command. Each reads what it needs, asks a pure function, and prints the answer.

mod ask;
mod bell;
mod block;
pub mod bundle;
pub mod check;
mod confirm;
mod denied;
mod device;
mod down;
mod enroll;
mod explain;
mod grant;
pub mod host;
pub mod import;
mod key;
mod look;
mod manual;
mod migrate;
mod peers;
pub mod plan;
pub mod profile;
mod psk;
mod resync;
mod run;
mod status;
mod unmigrate;

use crate::cli::{Cli, Command, DatabaseArgs, HostCommand, YesArg};
use crate::config::{
    BELL_FILE, Config, ConfigError, DatabaseUrlError, Origin, SecretSearch, Source, load,
};
use crate::error::CommandError;
use crate::exit::Exit;

/// Runs one command line.
///
/// # Errors
/// The command could not do its work. An answer such as "denied" is not an error.
pub fn run(cli: Cli) -> Result<Exit, CommandError> {
    let source = Source::of_process(cli.config);
    match cli.command {
        Command::Run { once } => run::run(&configuration(source.clone())?, source, once),
        Command::Bell { check: false } => bell::bell(&configuration_of_bell(source)?),
        Command::Bell { check: true } => bell::check(&configuration_of_bell(source)?),
        Command::Migrate { database, dry_run } => {
            migrate::migrate(&configuration_of(source, &database)?, dry_run)
        }
        Command::Unmigrate { database, dry_run, yes } => {
            unmigrate::unmigrate(&configuration_of(source, &database)?, dry_run, yes.yes)
        }
        Command::Grant { args, database } => {
            grant::grant(&configuration_of(source, &database)?, &args)
        }
        Command::Enroll(args) => enroll::enroll(&configuration(source)?, &args),
        Command::Profile(args) => {
            profile::profile(&configuration_of(source, &args.database)?, &args)
        }
        Command::Import(args) => import::import(&configuration(source)?, &args),
        Command::Plan(args) => plan::plan(&configuration_of(source, &args.database)?, &args),
        Command::Status { json, watch } => {
            status::status(&configuration(source)?, json.json, watch)
        }
        Command::Peers(args) => peers::peers(&configuration(source)?, &args),
        Command::Explain { who, destination, json } => {
            explain::explain(&configuration(source)?, &who, destination, json.json)
        }
        Command::Denied { who, follow, json } => {
            denied::denied(&configuration(source)?, who.as_deref(), follow, json.json)
        }
        Command::Block { who } => block::block(&configuration(source)?, &who),
        Command::Unblock { who } => block::unblock(&configuration(source)?, &who),
        Command::Blocked(json) => block::blocked(&configuration(source)?, json.json),
        Command::Resync => resync::resync(&configuration(source)?),
        Command::Confirm(YesArg { yes }) => confirm::confirm(&configuration(source)?, yes),
        Command::Bundle { file } => bundle::bundle(&source, &file),
        Command::Check(json) => check::check(source, json.json),
        Command::Psk(command) => psk::psk(source, &command),
        Command::Key(command) => key::key(source, &command),
        Command::Device { name, serve: _ } => device::serve(&name),
        Command::Manual { folder } => manual::manual(&folder),
        Command::Host(HostCommand::List(json)) => host::list(&configuration(source)?, json.json),
        Command::Host(HostCommand::Forget { name }) => host::forget(&configuration(source)?, &name),
        Command::Down(YesArg { yes }) => down::down(&configuration(source)?, yes),
    }
}

/// The configuration. Possible mistakes in it are logged.
fn configuration(source: Source) -> Result<Config, ConfigError> {
    let config = load(source)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// A bell's configuration has the sections of a gateway's, in a file of its own: both may run on a host.
fn configuration_of_bell(source: Source) -> Result<Config, ConfigError> {
    let file = source.file.unwrap_or_else(|| BELL_FILE.into());
    configuration(Source { file: Some(file), ..source })
}

/// The configuration, with the database that an administrator's command line names.
fn configuration_of(source: Source, args: &DatabaseArgs) -> Result<Config, ConfigError> {
    let DatabaseArgs { database_url, database_password_file } = args;
    let mut config = configuration(source)?;
    if let Some(url) = database_url {
        let url = url.parse().map_err(|why: DatabaseUrlError| ConfigError::Value {
            origin: Origin::Argument("--database-url"),
            key: "database.url".to_owned(),
            why: why.to_string(),
        })?;
        config.database.url = Some(url);
        // The configured password and client certificate belong to another role.
        config.database.password_file = None;
        config.database.token_file = None;
        config.database.tls_cert_file = None;
        config.database.tls_key_file = None;
        config.secret_search = SecretSearch::None;
    }
    if let Some(file) = database_password_file {
        // Paths on the command line are relative to the working directory.
        config.database.password_file =
            Some(std::path::absolute(file).unwrap_or_else(|_| file.clone()));
    }
    Ok(config)
}
