//! A WireGuard gateway as it runs, or as a file describes it.

use std::collections::BTreeMap;

use gatepost::model::{PresharedKey, PublicKey};
use ipnet::IpNet;

use super::names::PeerName;

/// A WireGuard gateway.
pub struct Found {
    pub public_key: PublicKey,
    pub listen_port: u16,
    /// Mark on the encrypted packets; 0: none.
    pub fwmark: u32,
    /// `None`: as `wg-quick` chooses it.
    pub mtu_bytes: Option<u32>,
    /// The gateway's own, each with the prefix length of its network.
    pub addresses: Vec<IpNet>,
    pub peers: Vec<FoundPeer>,
}

/// A peer of the found gateway.
pub struct FoundPeer {
    /// Where its section begins in the file; `None`: it was read from the interface.
    pub line: Option<usize>,
    pub name: Option<PeerName>,
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub allowed_ips: Vec<IpNet>,
}

/// Further contents of a file: the owners of its keys, and the addresses that the gateway translates.
#[derive(Default)]
pub struct Labels {
    pub names: BTreeMap<PublicKey, PeerName>,
    /// Whether a command of the file translates addresses; `None`: it does not describe the interface.
    pub masquerades: Option<bool>,
}
