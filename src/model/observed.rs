//! What the kernel holds, as far as it concerns us.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{ObservedFirewall, ObservedInterface, Peer, PublicKey};

/// What was read back from the kernel, or what that reading became by our own acknowledged writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedState {
    /// `None`: no link has our interface's name.
    pub interface: Option<ObservedInterface>,
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Routes out of our interface that carry our protocol number.
    pub routes: BTreeSet<IpNet>,
    /// `None`: our table does not exist.
    pub firewall: Option<ObservedFirewall>,
}
