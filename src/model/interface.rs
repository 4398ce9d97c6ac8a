//! The WireGuard interface and its peers: as wanted and as found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::SystemTime;

use ipnet::IpNet;

use super::{GatewayId, PresharedKey, PrivateKey, PublicKey};

/// The name of a network interface: 1 to 15 bytes of `[A-Za-z0-9._-]`, as `dev_valid_name` in
/// the kernel's `net/core/dev.c` allows, less what would need quoting in a shell or in nft.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceName(Box<str>);

/// Why a text is no interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no interface name: 1 to 15 of A-Z a-z 0-9 . _ - and neither '.' nor '..'")]
pub struct InterfaceNameError(Box<str>);

impl InterfaceName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, InterfaceNameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=15).contains(&text.len()) && text.bytes().all(plain) && text != "." && text != ".."
        {
            Ok(Self(text.into()))
        } else {
            Err(InterfaceNameError(text.into()))
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InterfaceName({})", self.0)
    }
}

/// A peer's prefixes: sorted, each once, host bits zero.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct AllowedIps(Few);

/// Nearly all peers have one prefix, which takes no memory of its own.
#[derive(Clone, PartialEq, Eq)]
enum Few {
    One(IpNet),
    /// Any other number of them.
    Many(Box<[IpNet]>),
}

impl Default for Few {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

impl AllowedIps {
    #[must_use]
    pub fn as_slice(&self) -> &[IpNet] {
        match &self.0 {
            Few::One(prefix) => std::slice::from_ref(prefix),
            Few::Many(prefixes) => prefixes,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.as_slice().iter().copied()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    #[must_use]
    pub fn contains(&self, prefix: &IpNet) -> bool {
        self.as_slice().binary_search(prefix).is_ok()
    }

    /// The prefixes that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|prefix| other.contains(prefix)).collect()
    }

    /// The prefixes that are here and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.iter().filter(|prefix| !other.contains(prefix)).collect()
    }
}

impl FromIterator<IpNet> for AllowedIps {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut prefixes = prefixes.into_iter().map(|prefix| prefix.trunc());
        let (first, second) = (prefixes.next(), prefixes.next());
        if let (Some(one), None) = (first, second) {
            return Self(Few::One(one));
        }
        let mut all: Vec<IpNet> = first.into_iter().chain(second).chain(prefixes).collect();
        all.sort_unstable();
        all.dedup();
        Self(match all[..] {
            [one] => Few::One(one),
            _ => Few::Many(all.into_boxed_slice()),
        })
    }
}

impl fmt::Display for AllowedIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, prefix) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{prefix}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for AllowedIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// The desired or observed state of one peer in the kernel. Equal values need no write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    pub preshared_key: Option<PresharedKey>,
    pub allowed_ips: AllowedIps,
    /// Seconds between keepalives that the gateway sends; 0: none. Clients behind NAT send them,
    /// a gateway does not, so 0 is what is always wanted.
    pub keepalive_secs: u16,
}

/// The desired state of the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredInterface {
    pub name: InterfaceName,
    pub gateway_id: GatewayId,
    pub private_key: PrivateKey,
    pub listen_port: u16,
    /// Mark on the encrypted packets; 0: none.
    pub fwmark: u32,
    pub mtu_bytes: u32,
    /// Addresses with the prefix length of their pool.
    pub addresses: BTreeSet<IpNet>,
}

impl DesiredInterface {
    /// The networks of its addresses, to which the kernel makes routes by itself.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.iter().filter_map(network)
    }
}

/// The program that made the link that serves as our interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkOwner {
    /// A WireGuard device (kernel, or our userspace device) whose alias names this gateway.
    Ours(GatewayId),
    /// A WireGuard device without our alias. Ours to adopt only if it holds our private key.
    Unmarked,
    /// Not a WireGuard device; the text says what it is (`dummy`, `bridge`, ...).
    Foreign(String),
}

/// Whether an object on our interface carries our tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    Ours,
    /// Another program's: accepted where the same is desired, never removed.
    Foreign,
}

/// The observed state of the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedInterface {
    /// As the kernel has it. It may have been renamed to anything that the kernel accepts.
    pub name: Box<str>,
    pub owner: LinkOwner,
    pub up: bool,
    /// It was put into a VRF, whose name its packets come under then.
    pub has_master: bool,
    /// It was down for a moment, which ended its sessions, and none was begun since.
    pub sessions_ended: bool,
    /// `None`: no private key is set.
    pub public_key: Option<PublicKey>,
    pub listen_port: u16,
    pub fwmark: u32,
    pub mtu_bytes: u32,
    /// Link-local IPv6 addresses that are not ours, which the kernel may add by itself, are left out.
    pub addresses: BTreeMap<IpNet, Tag>,
}

impl ObservedInterface {
    /// Like [`DesiredInterface::networks`].
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.keys().filter_map(network)
    }
}

/// The network of an address; a host's own prefix has none.
pub(crate) fn network(address: &IpNet) -> Option<IpNet> {
    (address.prefix_len() < address.max_prefix_len()).then(|| address.trunc())
}

/// The kernel's counters for one peer. Never part of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<SystemTime>,
    /// Bytes the gateway received from the peer since the peer was added.
    pub rx_bytes: u64,
    /// Bytes the gateway sent to the peer since the peer was added.
    pub tx_bytes: u64,
}
