//! The effect of an update of the rows.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{DeviceId, PeerId, PeerRow, PolicyId, PublicKey, UserId};

/// Everything that an update may have changed: nothing else needs a look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    pub peers: BTreeSet<PublicKey>,
    pub prefixes: BTreeSet<IpNet>,
    /// Peers that lost their place, or may never get one back. Also peers that had none because a reason other
    /// than their device and user barred them.
    pub departed: BTreeMap<PublicKey, Departed>,
    /// Policies that decide otherwise now for any peer of this gateway, with their names.
    pub policies: BTreeMap<PolicyId, Box<str>>,
    /// The rows that were judged again.
    pub rows: BTreeSet<PeerId>,
}

impl Touched {
    /// Everything that either update may have changed.
    #[must_use]
    pub fn merged(mut self, other: Self) -> Self {
        self.peers.extend(other.peers);
        self.prefixes.extend(other.prefixes);
        self.departed.extend(other.departed);
        self.policies.extend(other.policies);
        self.rows.extend(other.rows);
        self
    }

    /// Whether no peer and no prefix was touched: the kernel cannot differ because of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.prefixes.is_empty()
    }
}

/// Identifies a removed peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departed {
    pub peer_id: PeerId,
    pub device_id: DeviceId,
    pub user_id: UserId,
    pub device_name: Box<str>,
    pub username: Box<str>,
}

impl From<&PeerRow> for Departed {
    fn from(row: &PeerRow) -> Self {
        Self {
            peer_id: row.id,
            device_id: row.device_id,
            user_id: row.user_id,
            device_name: row.device_name.clone(),
            username: row.username.clone(),
        }
    }
}
