//! What a command ends with: the process's exit code, and the error behind it.

use std::process::ExitCode;

use gatepost::model::BuildError;
use gatepost::model::psk::PskError;
use gatepost::reconcile::{PreviewError, RunError};
use gatepost::store::StoreError;

use crate::config::ConfigError;
use crate::control::ControlError;
use crate::wiring::WiringError;

/// Exit codes. Scripts depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; allowed; nothing to change.
    Success,
    /// Failed; `run --once` did not converge; `check` has warnings.
    Failure,
    /// `plan`: there are changes. `explain`: denied.
    Differs,
    /// `status`: the agent runs and is not ready.
    NotReady,
    /// No agent answers on the control socket.
    NoAgent,
    /// The command line is wrong (`EX_USAGE` of `sysexits.h`). Not 2, which is an answer here.
    Usage,
    /// The configuration is wrong (`EX_CONFIG` of `sysexits.h`): restarting cannot help.
    Config,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Differs => 2,
            Self::NotReady => 3,
            Self::NoAgent => 4,
            Self::Usage => 64,
            Self::Config => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Key(#[from] crate::command::key::KeyFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Psk(#[from] PskError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    #[error("{0}")]
    Refused(String),
}

impl CommandError {
    /// The exit code that tells a script what kind of failure this is.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Config(_)
            | Self::Store(StoreError::Config { .. })
            | Self::Wiring(
                WiringError::Config(_)
                | WiringError::Store(StoreError::Config { .. })
                | WiringError::Preview(PreviewError::Build(BuildError::NoPskKeys { .. }))
                | WiringError::Run(RunError::OtherGateway { .. } | RunError::NoPskKeys(_)),
            ) => Exit::Config,
            Self::Control(ControlError::NoAgent { .. }) => Exit::NoAgent,
            _ => Exit::Failure,
        }
    }
}
