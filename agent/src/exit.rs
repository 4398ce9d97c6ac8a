//! Exit codes.

use std::process::ExitCode;

/// How a command ended. Scripts depend on the codes.
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
    /// `run`: another agent serves this network namespace or has this control socket (`EX_TEMPFAIL` of
    /// `sysexits.h`). Restarting cannot help while it runs.
    AgentRuns,
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
            Self::AgentRuns => 75,
            Self::Config => 78,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
