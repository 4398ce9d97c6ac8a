//! Requests and replies on the control socket.

use std::fmt;
use std::time::SystemTime;

use gatepost::model::policy::Quoted;
use gatepost::reconcile::status::Exact;
use serde::{Deserialize, Serialize};

/// A request to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Done with one [`Status`](gatepost::reconcile::status::Status).
    Status,
    /// One item per peer, a [`PeerStatus`](gatepost::reconcile::status::PeerStatus) each; with `user`, of
    /// that user's devices.
    Peers {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// Done with one [`Explanation`](gatepost::reconcile::status::Explanation).
    Explain { who: String, destination: String },
    /// One item per denied packet, a [`DeniedPacket`](gatepost::reconcile::status::DeniedPacket) each, the
    /// oldest first; an error if `who` is unknown. With `follow` also those that come, without an end.
    Denied { who: Option<String>, follow: bool },
    /// One item per entry, the newest [`Entry`](crate::telemetry::Entry) of the log, the oldest first.
    Journal,
    /// Done when everything was compared again.
    Resync,
    /// Done with one [`BlockAnswer`](gatepost::reconcile::status::BlockAnswer).
    Block { who: String },
    /// As for [`Request::Block`].
    Unblock { who: String },
    /// Done when the removals are confirmed that are held back by rows read until this time of the
    /// database, the latest `since` of the held peers that were shown, and the peers are let in that
    /// are kept out since `let_in_until` or earlier. Without that, no peer is.
    Confirm {
        #[serde(with = "gatepost::reconcile::status::exact")]
        until: SystemTime,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        let_in_until: Option<Exact>,
    },
}

/// The right that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The socket's mode decides.
    Read,
    /// Root, or a member of `control.write_group`.
    Write,
}

impl Request {
    /// Whether it changes something.
    #[must_use]
    pub const fn access(&self) -> Access {
        match self {
            Self::Status
            | Self::Peers { .. }
            | Self::Explain { .. }
            | Self::Denied { .. }
            | Self::Journal => Access::Read,
            Self::Resync | Self::Block { .. } | Self::Unblock { .. } | Self::Confirm { .. } => {
                Access::Write
            }
        }
    }
}

/// The command that sends it.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Peers { .. } => f.write_str("peers"),
            Self::Explain { who, destination } => {
                write!(f, "explain {} {}", Quoted(who), Quoted(destination))
            }
            Self::Denied { .. } => f.write_str("denied"),
            Self::Journal => f.write_str("status --watch"),
            Self::Resync => f.write_str("resync"),
            Self::Block { who } => write!(f, "block {}", Quoted(who)),
            Self::Unblock { who } => write!(f, "unblock {}", Quoted(who)),
            Self::Confirm { .. } => f.write_str("confirm"),
        }
    }
}

/// One line of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    Item(T),
    Done(T),
    Error(String),
}
