//! The changes that a transaction marked.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A mark that may have withdrawn peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Of the top-level transaction. After a failover another one may have the same.
    pub xid: u64,
    pub kind: Box<str>,
    /// Devices or users, as `kind` says. `None`: too many to list.
    pub ids: Option<Vec<Uuid>>,
}

/// A mark as far as it concerns one peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MarkId {
    pub xid: u64,
    pub kind: Box<str>,
    /// The peer's device or user; `None`: the mark concerns every peer.
    pub id: Option<Uuid>,
}

impl Mark {
    /// The devices or users that the mark concerns; `None`: it concerns every peer.
    #[must_use]
    pub fn listed(&self) -> Option<&[Uuid]> {
        match &*self.kind {
            "peer" | "device" | "user" | "owner" => self.ids.as_deref(),
            _ => None,
        }
    }

    /// As far as the mark concerns this device or user.
    #[must_use]
    pub fn of(&self, id: Option<Uuid>) -> MarkId {
        MarkId { xid: self.xid, kind: self.kind.clone(), id }
    }
}
