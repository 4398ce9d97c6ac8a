//! Why a row that looks like a peer is left out.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::model::psk::PskError;
use crate::model::{BeyondLimit, DeviceId, KeyError, PeerId};

/// The reason one peer is left out. Everybody else goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    BadKey {
        text: Box<str>,
        why: KeyError,
    },
    GatewayKey,
    /// Another row holds the same key.
    KeyTaken {
        by: PeerId,
    },
    NotAHost {
        assigned_ip: IpNet,
    },
    OutsidePool {
        address: IpAddr,
        pool: IpNet,
    },
    GatewayAddress {
        address: IpAddr,
    },
    NetworkAddress {
        address: IpAddr,
        pool: IpNet,
    },
    BroadcastAddress {
        address: IpAddr,
        pool: IpNet,
    },
    PrefixTaken {
        prefix: IpNet,
        by: PeerId,
    },
    BadPresharedKey {
        why: PskError,
    },
    /// Only where setting `gateway.strict_ip_allocations` is true.
    NotAllocated {
        address: IpAddr,
    },
    /// Only where setting `gateway.strict_ip_allocations` is true.
    AllocatedToOther {
        address: IpAddr,
        device_id: DeviceId,
    },
    /// Too many entries of `allowed_ips` or `dns_servers`.
    BeyondLimit(BeyondLimit),
}

impl Reason {
    /// Whether one mistake (an emptied table of allocations, a mistyped pool, a lost sealing key) may
    /// quarantine many peers for this reason. The others concern one row, or give away what it claims.
    #[must_use]
    pub const fn may_concern_many(&self) -> bool {
        match self {
            Self::NotAHost { .. }
            | Self::OutsidePool { .. }
            | Self::BadPresharedKey { .. }
            | Self::NotAllocated { .. }
            | Self::BeyondLimit(_) => true,
            Self::BadKey { .. }
            | Self::GatewayKey
            | Self::KeyTaken { .. }
            | Self::GatewayAddress { .. }
            | Self::NetworkAddress { .. }
            | Self::BroadcastAddress { .. }
            | Self::PrefixTaken { .. }
            | Self::AllocatedToOther { .. } => false,
        }
    }

    /// A short word for metrics and JSON; never changes for one variant.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadKey { .. } => "bad_key",
            Self::GatewayKey => "gateway_key",
            Self::KeyTaken { .. } => "key_taken",
            Self::NotAHost { .. } => "not_a_host",
            Self::OutsidePool { .. } => "outside_pool",
            Self::GatewayAddress { .. } => "gateway_address",
            Self::NetworkAddress { .. } => "network_address",
            Self::BroadcastAddress { .. } => "broadcast_address",
            Self::PrefixTaken { .. } => "prefix_taken",
            Self::BadPresharedKey { .. } => "bad_preshared_key",
            Self::NotAllocated { .. } => "not_allocated",
            Self::AllocatedToOther { .. } => "allocated_to_other",
            Self::BeyondLimit(_) => "beyond_limit",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadKey { text, why } => {
                let shown: String = text.chars().take(60).collect();
                write!(f, "public_key {shown:?} {why}: write the key that `wg pubkey` prints")
            }
            Self::GatewayKey => f.write_str(
                "public_key is the gateway's own: the device needs a key pair of its own",
            ),
            Self::KeyTaken { by } => {
                write!(f, "peer {by} has the same public_key: give each device its own key pair")
            }
            Self::NotAHost { assigned_ip } => write!(
                f,
                "assigned_ip {assigned_ip} is not one address: write {} instead",
                assigned_ip.addr()
            ),
            Self::OutsidePool { address, pool } => write!(
                f,
                "assigned_ip {address} is outside the gateway's vpn_cidr {pool}: assign a free \
                 address of it"
            ),
            Self::GatewayAddress { address } => write!(
                f,
                "assigned_ip {address} is the gateway's own tunnel address: assign another"
            ),
            Self::NetworkAddress { address, pool } => {
                write!(f, "assigned_ip {address} is the network address of {pool}: assign another")
            }
            Self::BroadcastAddress { address, pool } => write!(
                f,
                "assigned_ip {address} is the broadcast address of {pool}: assign another"
            ),
            Self::PrefixTaken { prefix, by } => write!(
                f,
                "{prefix} belongs to peer {by}, which holds its allocation or is older: assign \
                 another"
            ),
            Self::BadPresharedKey { why } => write!(f, "preshared_key_ciphertext: {why}"),
            Self::NotAllocated { address } => write!(
                f,
                "no ip_allocations row with status 'allocated' holds {address} for this device, \
                 and gateway.strict_ip_allocations is true: add the row"
            ),
            Self::AllocatedToOther { address, device_id } => write!(
                f,
                "ip_allocations gives {address} to device {device_id}, and \
                 gateway.strict_ip_allocations is true: assign this device another address"
            ),
            Self::BeyondLimit(beyond) => beyond.fmt(f),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
