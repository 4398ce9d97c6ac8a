//! The control socket: how `gatepost status`, `peers` and `explain` ask the running agent.
//!
//! A request is one line of JSON, `{"op":"status"}`. The reply is one line per item,
//! `{"item":...}`, and a last line, `{"done":...}` or `{"error":"..."}`. Then the connection ends.

mod client;
mod server;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::Client;
pub use server::Server;

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Done with one [`Status`](gatepost::reconcile::status::Status).
    Status,
    /// One item per peer, a [`PeerStatus`](gatepost::reconcile::status::PeerStatus) each.
    Peers,
    /// Done with one [`Explanation`](gatepost::reconcile::status::Explanation).
    Explain { who: String, destination: String },
    /// Done when everything was compared anew.
    Resync,
    /// Done when the removal that the guard holds back was let through.
    Confirm,
}

/// One line of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<T> {
    Item(T),
    Done(T),
    Error(String),
}

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

#[cfg(test)]
mod tests;
