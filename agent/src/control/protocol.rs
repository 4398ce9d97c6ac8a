//! Requests and replies on the control socket.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// A request to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Done with one [`Status`](gatepost::reconcile::status::Status).
    Status,
    /// One item per peer, a [`PeerStatus`](gatepost::reconcile::status::PeerStatus) each.
    Peers,
    /// Done with one [`Explanation`](gatepost::reconcile::status::Explanation).
    Explain { who: String, destination: String },
    /// Done when everything was compared again.
    Resync,
    /// Done with one [`BlockAnswer`](gatepost::reconcile::status::BlockAnswer).
    Block { who: String },
    /// As for [`Request::Block`].
    Unblock { who: String },
    /// Done when the removals are confirmed that are held back by rows read until this time of the
    /// database, the latest `since` of the held peers that were shown.
    Confirm {
        #[serde(with = "gatepost::reconcile::status::exact")]
        until: SystemTime,
    },
}

/// One line of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    Item(T),
    Done(T),
    Error(String),
}
