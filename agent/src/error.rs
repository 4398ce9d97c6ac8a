//! Why a command failed, and the exit code that says so.

use std::io;
use std::path::PathBuf;

use gatepost::causes::causes;
use gatepost::model::psk::PskError;
use gatepost::model::{BuildError, InterfaceName, InterfaceNameError, KeyError};
use gatepost::plan::PlanError;
use gatepost::reconcile::{DatabaseError, PreviewError, RunError, did_you_mean};
use gatepost::store::{ScriptError, StoreError};

use crate::command::bundle::error::BundleError;
use crate::command::import::error::ImportError;
use crate::command::profile::error::ProfileError;
use crate::config::ConfigError;
use crate::control::ControlError;
use crate::database;
use crate::exit::Exit;
use crate::hints::BrokerError;
use crate::key_file::KeyFileError;
use crate::namespace_lock::NamespaceLockError;
use crate::telemetry::Audience;
use crate::wiring::WiringError;

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    NamespaceLock(#[from] NamespaceLockError),
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `bell`
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("the text on standard input {0}")]
    Psk(#[from] PskError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// `plan --sql`
    #[error("cannot read {}: {source}", path.display())]
    SqlFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// `plan --sql`: nothing was run.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// `enroll`
    #[error(transparent)]
    Pool(PlanError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Import(#[from] ImportError),
    /// `import`: the name of an interface, or of a file that is called after one.
    #[error(transparent)]
    InterfaceName(#[from] InterfaceNameError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// `profile`: the gateway's row.
    #[error(transparent)]
    Rows(BuildError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),

    /// `psk seal`. The text that is no key is not repeated: it may be a secret.
    #[error("the preshared key on standard input {0}; generate one with `wg genpsk`")]
    PresharedKey(KeyError),
    #[error("no sealing keys: name their file with --keys or in `gateway.psk_keys_file`")]
    NoPskKeys,

    #[error(
        "an agent is running and would create {interface} again; stop it first: \
         systemctl stop gatepost"
    )]
    AgentRuns { interface: InterfaceName },
    #[error("standard input is not a terminal, so `{command}` cannot ask: pass --yes to confirm")]
    CannotAsk { command: &'static str },
    /// `peers --user`
    #[error(
        "no user who has a peer on this gateway is {user:?}{}: `gatepost peers` lists all",
        did_you_mean(.candidates)
    )]
    UserUnknown { user: String, candidates: Vec<String> },
    #[error("no removal is held back")]
    NothingHeldBack,
    #[error("this gateway has no host {name}: see `gatepost host list`")]
    HostUnknown { name: String },
    #[error("nothing was removed")]
    NotConfirmed,
    /// `grant`
    #[error("nothing was changed")]
    NotRebound,
}

impl CommandError {
    /// The error with its causes, and with what to do where its own text does not say it.
    #[must_use]
    pub fn text(&self) -> String {
        let remedy = match self {
            Self::Store(error)
            | Self::Wiring(
                WiringError::Store(error) | WiringError::Preview(PreviewError::Database(error)),
            ) => database::remedy(error),
            Self::Wiring(WiringError::Run(RunError::Database(DatabaseError::Store(error)))) => {
                database::remedy(error)
            }
            _ => None,
        };
        let remedy = remedy.map(|remedy| format!("; {remedy}"));
        causes(self) + &remedy.unwrap_or_default()
    }

    /// The exit code that tells a script what kind of failure this is.
    ///
    /// A configuration that may not be read is not a wrong one: another user may run the command.
    /// For a daemon both are the same, because restarting helps neither.
    #[must_use]
    pub fn exit(&self, audience: Audience) -> Exit {
        match self {
            Self::Config(error) | Self::Wiring(WiringError::Config(error))
                if error.is_permission_denied() && audience == Audience::Person =>
            {
                Exit::Failure
            }
            Self::Config(_)
            | Self::Store(StoreError::Config { .. })
            | Self::Wiring(
                WiringError::Config(_)
                | WiringError::Store(StoreError::Config { .. })
                | WiringError::Preview(PreviewError::Database(StoreError::Config { .. }))
                | WiringError::Run(RunError::Database(DatabaseError::OtherGateway { .. })),
            ) => Exit::Config,
            Self::Control(ControlError::NoAgent { .. }) => Exit::NoAgent,
            Self::Control(ControlError::Taken { .. })
            | Self::NamespaceLock(NamespaceLockError::Taken { .. }) => Exit::AgentRuns,
            _ => Exit::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use gatepost::dataplane::DataplaneError;
    use gatepost::store::Place;

    use super::*;

    #[test]
    fn text_names_the_cause_and_the_remedy_once() {
        let (hosts, database, role) = ("db1:5432".into(), "vpn".into(), "gw".into());
        let place = Place { hosts, database, role, ..Place::default() };
        let closed = StoreError::Closed { place: Box::new(place) };
        let wanted = format!("{closed}; try again; if it persists, see the server's log");
        let error = WiringError::Preview(PreviewError::Database(closed));
        assert_eq!(CommandError::from(error).text(), wanted);
        let error = WiringError::Preview(PreviewError::Kernel(DataplaneError::ThreadGone));
        let cause = DataplaneError::ThreadGone.to_string();
        assert_eq!(CommandError::from(error).text(), format!("could not read the kernel: {cause}"));
    }

    #[test]
    fn configuration_that_may_not_be_read_is_wrong_only_for_a_daemon() {
        let unreadable = |kind: io::ErrorKind| {
            let path = "gatepost.toml".into();
            CommandError::Config(ConfigError::Unreadable { path, source: kind.into() })
        };
        let denied = unreadable(io::ErrorKind::PermissionDenied);
        assert_eq!(denied.exit(Audience::Person), Exit::Failure);
        assert_eq!(denied.exit(Audience::Daemon), Exit::Config);
        let absent = unreadable(io::ErrorKind::NotFound);
        assert_eq!(absent.exit(Audience::Person), Exit::Config);
    }
}
