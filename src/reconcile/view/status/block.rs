//! The blocks of this host, as commands and the host's file show them.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::model::{Block, Whom};

/// One block, as `gatepost blocked` prints it and the host keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStatus {
    /// `user`, `device`, `key` or `address`.
    pub kind: String,
    /// The user's or device's id, the key or the address.
    pub id: String,
    /// The user, or `user/device`; empty if no row told it when the block was made.
    pub name: String,
    pub since: Timestamp,
}

/// The answer to `gatepost block` and `gatepost unblock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockAnswer {
    pub block: BlockStatus,
    /// The peers of rows that it concerns, as `user/device`.
    pub peers: Vec<String>,
    /// Why the kernel may still hold a blocked peer.
    pub kernel: Option<String>,
    /// Why a restart of the agent would forget the change.
    pub file: Option<String>,
}

impl From<(&Whom, &Block)> for BlockStatus {
    fn from((whom, block): (&Whom, &Block)) -> Self {
        let Block { name, since } = block;
        let (kind, id) = (whom.kind().to_owned(), whom.id());
        Self { kind, id, name: name.to_string(), since: Timestamp(*since) }
    }
}
