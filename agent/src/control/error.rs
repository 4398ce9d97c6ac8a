//! Failures on the control socket, at either end.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request to the agent failed, or why the agent does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "no agent answers on {}: {source}; start it with `systemctl start gatepost`, or correct [control] socket",
        path.display()
    )]
    NoAgent {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the agent on {} has not answered for {} s: it is stopped or stuck; see `journalctl -u gatepost`, \
         and `systemctl restart gatepost`, which costs no session",
        path.display(),
        waited.as_secs()
    )]
    Silent { path: PathBuf, waited: Duration },
    #[error("cannot talk to the agent on {}: {source}; {remedy}", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        source: io::Error,
        remedy: &'static str,
    },
    #[error("the agent on {} says: {message}", path.display())]
    Refused { path: PathBuf, message: String },
    #[error("the agent on {} answered {line:?}, which this command does not understand; their versions may differ", path.display())]
    Unintelligible { path: PathBuf, line: String },
    #[error(
        "another agent already listens on {}: stop it first, or give this one its own [control] socket",
        path.display()
    )]
    Taken { path: PathBuf },
    #[error("cannot listen on {}: {source}; correct [control] socket, or make its folder writable", path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ControlError {
    /// Whether this user may not ask.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Self::Broken { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}
