//! The state of the kernel, as far as it concerns us.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{GatewayId, HostRouting, ObservedFirewall, ObservedInterface, Peer, PublicKey, Tag};

/// The state that was read back from the kernel, updated by our own acknowledged writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedState {
    /// The link that has our interface's name, else a renamed link with our mark.
    /// `None`: there is neither.
    pub interface: Option<ObservedInterface>,
    /// Other links with our mark, by their names.
    pub strays: BTreeMap<Box<str>, Stray>,
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Routes out of our interface: those that carry our protocol number, and those that the kernel
    /// made for its addresses, which are never removed.
    pub routes: BTreeMap<IpNet, Tag>,
    /// The networks of other links' addresses, each with the link's name. Links with our mark are left
    /// out.
    pub networks: BTreeMap<IpNet, Box<str>>,
    /// The host's routing on which the gate depends, and the gate itself.
    pub routing: HostRouting,
    /// `None`: our table does not exist.
    pub firewall: Option<ObservedFirewall>,
}

/// A link that carries our mark and is not our interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// The gateway that the mark names.
    pub owner: GatewayId,
    pub up: bool,
}
