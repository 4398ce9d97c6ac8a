//! What can go wrong on the control socket, at either end.

use std::io;
use std::path::PathBuf;

/// Why the control socket did not serve.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "no agent answers on {}: {source}; start it with `systemctl start gatepost`, or name its socket in [control]",
        path.display()
    )]
    NoAgent {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot talk to the agent on {}: {source}; {remedy}", path.display())]
    Broken {
        path: PathBuf,
        #[source]
        source: io::Error,
        remedy: &'static str,
    },
    #[error("the agent on {} says: {message}", path.display())]
    Refused { path: PathBuf, message: String },
    #[error("the agent on {} answered {line:?}, which is no answer: its version may differ from this one", path.display())]
    Unintelligible { path: PathBuf, line: String },
    #[error(
        "another agent serves {}: stop it first, or give this one a [control] socket of its own",
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
