//! One peer, with its state in words.

use std::net::SocketAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{DeviceId, PeerId, PublicKey, UserId};
use crate::reconcile::name::name_of;
use crate::reconcile::view::time::{Timestamp, exact};

/// A peer whose removal is held back. Where its row is gone, and the agent never saw it, the names are
/// empty and the ids `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPeer {
    pub peer_id: Option<PeerId>,
    pub user: String,
    pub user_id: Option<UserId>,
    pub device: String,
    pub device_id: Option<DeviceId>,
    pub public_key: PublicKey,
    /// The prefixes that are routed to the peer.
    pub addresses: Vec<IpNet>,
    /// Why the rows do not admit it.
    pub reason: String,
    /// The database's time of the rows from which on it was held.
    #[serde(with = "exact")]
    pub since: SystemTime,
}

impl HeldPeer {
    /// How messages name it: "alice/laptop".
    #[must_use]
    pub fn name(&self) -> String {
        match (self.user.as_str(), self.device.as_str()) {
            ("", "") => format!("a device without a row ({})", self.public_key),
            (user, device) => name_of(user, device),
        }
    }
}

/// One peer, as `gatepost peers` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// `state` and, where the peer is left out, `reason`.
    #[serde(flatten)]
    pub state: PeerState,
    /// `null`, and the names empty, only for a held peer that no row names.
    pub peer_id: Option<PeerId>,
    pub user: String,
    pub user_id: Option<UserId>,
    pub device: String,
    pub device_id: Option<DeviceId>,
    /// The column's text: for a quarantined peer it may be no key at all.
    pub public_key: String,
    /// The prefixes that are routed to the peer; for a peer that is left out, those that its row asks for.
    pub addresses: Vec<IpNet>,
    /// When the fields that the kernel reports were read; `null`: not yet.
    #[serde(default)]
    pub read_at: Option<Timestamp>,
    /// Where its last packet came from.
    pub endpoint: Option<SocketAddr>,
    pub last_handshake_at: Option<Timestamp>,
    /// Bytes the gateway received from the peer since the peer was added.
    pub rx_bytes: u64,
    /// Bytes the gateway sent to the peer since the peer was added.
    pub tx_bytes: u64,
    /// Names of the policies that apply, the deciding ones first.
    pub policies: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PeerState {
    /// In the kernel, as it was last read and as acknowledged writes changed it since.
    InKernel,
    /// Wanted, not yet proven.
    Pending,
    /// In the kernel until an operator confirms its removal.
    Held {
        reason: String,
        #[serde(with = "exact")]
        since: SystemTime,
    },
    Ineligible {
        reason: String,
    },
    /// The database lost its revocation: it stays out for a while, or until an operator lets it in.
    KeptOut {
        reason: String,
        #[serde(with = "exact")]
        since: SystemTime,
    },
    /// This host blocks it.
    Blocked {
        reason: String,
    },
    Quarantined {
        reason: String,
    },
}

impl PeerState {
    /// The state as one word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::InKernel => "ok",
            Self::Pending => "pending",
            Self::Held { .. } => "held",
            Self::Ineligible { .. } => "ineligible",
            Self::KeptOut { .. } => "kept out",
            Self::Blocked { .. } => "blocked",
            Self::Quarantined { .. } => "quarantined",
        }
    }

    /// Why the peer is left out or held.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::InKernel | Self::Pending => None,
            Self::Held { reason, .. }
            | Self::Ineligible { reason }
            | Self::KeptOut { reason, .. }
            | Self::Blocked { reason }
            | Self::Quarantined { reason } => Some(reason),
        }
    }

    /// The word and, for a peer left out, the reason.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::InKernel => "ok".to_owned(),
            Self::Pending => "pending".to_owned(),
            Self::Held { reason, .. } => format!("held: {reason}"),
            Self::Ineligible { reason }
            | Self::KeptOut { reason, .. }
            | Self::Blocked { reason } => reason.clone(),
            Self::Quarantined { reason } => format!("quarantined: {reason}"),
        }
    }
}
