//! Names in our table: the table's own, those of its chains, and the blocks of profiles.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::sys::{NFPROTO_IPV4, NFPROTO_IPV6, datatype};
use crate::model::ProfileId;

/// The table's name; its family is `inet`.
pub const TABLE: &str = "gatepost";

// The fixed chains; see `table`.
pub const DENY: &str = "deny";
pub const PASSED: &str = "passed";
pub const DNS: &str = "dns";
pub const SITES: &str = "sites";
pub const SITES_TO: &str = "sites_to";
pub const SITES_BY: &str = "sites_by";
pub const ARRIVALS: &str = "arrivals";
pub const FORGED: &str = "forged";
pub const FROM_PEERS: &str = "from_peers";
pub const CLOSED: &str = "closed";
pub const ERRORS: &str = "errors";
pub const JUDGE: &str = "judge";
pub const LIMITS: &str = "flow_limits";
pub const INBOUND: &str = "inbound";
pub const FORWARD: &str = "forward";
pub const INPUT: &str = "input";
pub const OUTPUT: &str = "output";
pub const OPENED: &str = "opened";
pub const OPENINGS: &str = "openings";
pub const ICMP_OUT: &str = "icmp_out";
pub const POSTROUTING: &str = "postrouting";

/// The two families of addresses. Each has sets and rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub const fn address_bytes(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// The family's number in a packet (`meta nfproto`).
    pub const fn nfproto(self) -> u8 {
        match self {
            Self::V4 => NFPROTO_IPV4,
            Self::V6 => NFPROTO_IPV6,
        }
    }

    /// The number of its ICMP.
    pub const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    /// The length of a host's prefix.
    pub const fn bits(self) -> u8 {
        self.address_bytes() * 8
    }

    pub const fn datatype(self) -> u32 {
        match self {
            Self::V4 => datatype::IPV4_ADDR,
            Self::V6 => datatype::IPV6_ADDR,
        }
    }

    /// The address of this family with these bytes, in network byte order.
    pub fn address(self, octets: &[u8]) -> Option<IpAddr> {
        Some(match self {
            Self::V4 => <[u8; 4]>::try_from(octets).ok()?.into(),
            Self::V6 => <[u8; 16]>::try_from(octets).ok()?.into(),
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "4",
            Self::V6 => "6",
        })
    }
}

/// The address's bytes, in network byte order.
pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// 1,024 consecutive profile numbers that share a chain; in block 0 each profile has its own chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block(pub u32);

impl Block {
    const BITS: u32 = 10;
    /// The bits of a profile's number that identify its block.
    pub const MASK: u32 = u32::MAX << Self::BITS;

    pub const fn of(ProfileId(id): ProfileId) -> Self {
        Self(id >> Self::BITS)
    }

    pub const fn first(self) -> ProfileId {
        ProfileId(self.0 << Self::BITS)
    }

    pub fn ids(self) -> RangeInclusive<ProfileId> {
        self.first()..=ProfileId(self.first().0 | !Self::MASK)
    }
}

/// The chain that judges peers with this profile.
pub fn chain_name(ProfileId(id): ProfileId) -> String {
    format!("p_{id}")
}

/// The profile that has this chain.
pub fn profile_of_chain(name: &str) -> Option<ProfileId> {
    let id = ProfileId(name.strip_prefix("p_")?.parse().ok()?);
    (chain_name(id) == name).then_some(id)
}

/// The chain that judges peers with a profile of this block.
pub fn block_chain_name(Block(block): Block) -> String {
    format!("b_{block}")
}

/// The block that has this chain.
pub fn block_of_chain(name: &str) -> Option<Block> {
    let block = Block(name.strip_prefix("b_")?.parse().ok()?);
    (block_chain_name(block) == name).then_some(block)
}
