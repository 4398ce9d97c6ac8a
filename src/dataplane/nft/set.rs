//! The sets and maps of our table: their names, and how they are declared.

use std::fmt;

use super::attr::Attr;
use super::expr::{Expr, counter};
use super::name::{Block, Family, TABLE};
use super::sys::{datatype, set};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};
use crate::model::ProfileId;

/// One set or map of our table. Its printed form is its name in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// A peer's own address -> its profile.
    Peers(Family),
    /// A site prefix of this length -> its profile. One hash map for each length in use, looked up
    /// from the shortest to the longest: an interval map could not hold nested prefixes.
    Sites(Family, u8),
    /// A profile -> its chain.
    Chains,
    /// The ranges a profile allows, if they are too many to be rules.
    Allowed(ProfileId, Family),
    /// A block of profiles -> the block's chain.
    Blocks,
    /// Counts for each profile of a block all packets that were judged.
    Judged(Block),
    /// A profile of the block and a prefix of this length that it allows.
    Grants(Block, Family, u8),
    /// A profile of the block and a DNS server that it may ask.
    Servers(Block, Family),
    /// Counts for each profile of a block the packets that were denied.
    Denied(Block),
    /// The internet: every address outside the special-purpose blocks.
    Internet(Family),
    /// Networks of site prefixes.
    Networks(Family),
    /// How often each source was denied in the last minute.
    DenyLog(Family),
    /// Addresses that opened flows, each with their count.
    Flows(Family),
}

impl Set {
    /// The set that has this name, if it can be one of ours.
    pub fn named(name: &str) -> Option<Self> {
        let family = |digit: &str| match digit {
            "4" => Some(Family::V4),
            "6" => Some(Family::V6),
            _ => None,
        };
        let parsed = if name == "profile" {
            Self::Chains
        } else if let Some(rest) = name.strip_prefix("peer") {
            Self::Peers(family(rest)?)
        } else if let Some(rest) = name.strip_prefix("site") {
            let (digit, length) = rest.split_once('_')?;
            let (family, length) = (family(digit)?, length.parse().ok()?);
            (1..family.bits()).contains(&length).then_some(Self::Sites(family, length))?
        } else if let Some(rest) = name.strip_prefix("p_") {
            let (id, digit) = rest.split_once('_')?;
            Self::Allowed(ProfileId(id.parse().ok()?), family(digit)?)
        } else if name == "block" {
            Self::Blocks
        } else if let Some(rest) = name.strip_prefix("b_") {
            let (block, rest) = rest.split_once('_')?;
            let block = Block(block.parse().ok()?);
            match (rest, rest.split_once('_')) {
                ("all", _) => Self::Judged(block),
                ("deny", _) => Self::Denied(block),
                (_, Some((digit, length))) => {
                    let (family, length) = (family(digit)?, length.parse().ok()?);
                    (length <= family.bits()).then_some(Self::Grants(block, family, length))?
                }
                _ => Self::Servers(block, family(rest.strip_prefix("dns")?)?),
            }
        } else if let Some(rest) = name.strip_prefix("networks") {
            Self::Networks(family(rest)?)
        } else if let Some(rest) = name.strip_prefix("internet") {
            Self::Internet(family(rest)?)
        } else if let Some(rest) = name.strip_prefix("flows") {
            Self::Flows(family(rest)?)
        } else {
            Self::DenyLog(family(name.strip_prefix("denied")?)?)
        };
        (parsed.to_string() == name).then_some(parsed)
    }

    /// The block of profiles that it belongs to.
    pub const fn block(&self) -> Option<Block> {
        match self {
            Self::Judged(block)
            | Self::Grants(block, ..)
            | Self::Servers(block, _)
            | Self::Denied(block) => Some(*block),
            _ => None,
        }
    }

    /// Whether it holds the ranges of this profile.
    pub fn is_of(&self, id: ProfileId) -> bool {
        matches!(self, Self::Allowed(profile, _) if *profile == id)
    }

    // What a rule does to a dynamic set (`enum nft_dynset_ops`).
    pub const ADD: u32 = 0;
    pub const UPDATE: u32 = 1;

    /// What is sent to declare it. `id` is any number that is unique in the transaction.
    pub fn declaration(&self, id: u32) -> Vec<Attr> {
        let mut attrs =
            vec![Attr::text(set::TABLE, TABLE), Attr::text(set::NAME, &self.to_string())];
        attrs.push(Attr::be32(set::ID, id));
        attrs.extend(self.shape());
        if self.counts() {
            attrs.push(counter().attr(set::EXPR));
        }
        attrs.push(Attr::bytes(set::USERDATA, self.listing_hints()));
        attrs
    }

    /// Whether `dumped`, read back from the kernel, declares this set.
    pub fn is(&self, dumped: Attributes<'_>) -> Result<bool, NetlinkError> {
        let sent = self.shape();
        for attr in &sent {
            if !dumped.find(attr.kind())?.is_some_and(|found| attr.is_encoded_as(found.value)) {
                return Ok(false);
            }
        }
        for kind in [set::FLAGS, set::DATA_TYPE, set::TIMEOUT] {
            let is_zero = |found: Attribute<'_>| found.value.iter().all(|byte| *byte == 0);
            let is_sent = sent.iter().any(|attr| attr.kind() == kind);
            if !is_sent && !dumped.find(kind)?.is_none_or(is_zero) {
                return Ok(false);
            }
        }
        let counts = dumped.find(set::EXPR)?.map(|dumped| Expr::read(&dumped)).transpose()?;
        Ok(counts.map(|expr| expr.name() == "counter") == self.counts().then_some(true))
    }

    /// Whether each element counts the packets that match it.
    const fn counts(&self) -> bool {
        matches!(self, Self::Judged(_) | Self::Denied(_))
    }

    fn shape(&self) -> Vec<Attr> {
        const MAX_SOURCES: u32 = 65_536;
        /// As many as WireGuard takes peers.
        const MAX_OPENERS: u32 = 1 << 20;
        const FORGET_AFTER_MILLIS: u64 = 60_000;
        let key = |flags, kind, bytes: u8| {
            // The kernel dumps no attribute for no flags.
            let flags = (flags != 0).then(|| Attr::be32(set::FLAGS, flags));
            let key = [Attr::be32(set::KEY_TYPE, kind), Attr::be32(set::KEY_LEN, bytes.into())];
            flags.into_iter().chain(key).collect::<Vec<_>>()
        };
        let address = |flags, family: Family| key(flags, family.datatype(), family.address_bytes());
        match *self {
            Self::Peers(family) | Self::Sites(family, _) => {
                let mut attrs = address(set::FLAG_MAP, family);
                attrs.push(Attr::be32(set::DATA_TYPE, datatype::CLASSID));
                attrs.push(Attr::be32(set::DATA_LEN, 4));
                attrs
            }
            Self::Judged(_) | Self::Denied(_) => key(0, datatype::CLASSID, 4),
            Self::Grants(_, family, _) | Self::Servers(_, family) => key(
                0,
                datatype::CLASSID << datatype::BITS | family.datatype(),
                4 + family.address_bytes(),
            ),
            Self::Chains | Self::Blocks => {
                // A verdict has no length of its own: the kernel fills it in.
                let mut attrs = key(set::FLAG_MAP, datatype::CLASSID, 4);
                attrs.push(Attr::be32(set::DATA_TYPE, datatype::VERDICT));
                attrs
            }
            Self::Allowed(_, family) | Self::Internet(family) | Self::Networks(family) => {
                address(set::FLAG_INTERVAL, family)
            }
            Self::Flows(family) => {
                let mut attrs = address(set::FLAG_EVAL, family);
                attrs.push(Attr::nest(set::DESC, vec![Attr::be32(set::DESC_SIZE, MAX_OPENERS)]));
                attrs
            }
            Self::DenyLog(family) => {
                let mut attrs = address(set::FLAG_TIMEOUT | set::FLAG_EVAL, family);
                attrs.push(Attr::nest(set::DESC, vec![Attr::be32(set::DESC_SIZE, MAX_SOURCES)]));
                attrs.push(Attr::be64(set::TIMEOUT, FORGET_AFTER_MILLIS));
                attrs
            }
        }
    }

    /// The byte orders that the `nft` program wants to know to list keys and data.
    fn listing_hints(&self) -> Vec<u8> {
        const KEY_ORDER: u8 = 0;
        const DATA_ORDER: u8 = 1;
        const DATA_INTERVAL: u8 = 6;
        const UNKNOWN: u32 = 0;
        const HOST: u32 = 1;
        const NETWORK: u32 = 2;
        let (key, value) = match self {
            Self::Peers(_) | Self::Sites(..) => (NETWORK, Some(HOST)),
            Self::Chains | Self::Blocks => (HOST, Some(UNKNOWN)),
            Self::Judged(_) | Self::Denied(_) => (HOST, None),
            Self::Grants(..) | Self::Servers(..) => (UNKNOWN, None),
            Self::Allowed(..)
            | Self::Internet(_)
            | Self::Networks(_)
            | Self::DenyLog(_)
            | Self::Flows(_) => (NETWORK, None),
        };
        let mut hints = Vec::new();
        let mut hint = |kind: u8, number: u32| {
            hints.extend_from_slice(&[kind, 4]);
            hints.extend_from_slice(&number.to_ne_bytes());
        };
        hint(KEY_ORDER, key);
        if let Some(order) = value {
            hint(DATA_ORDER, order);
            hint(DATA_INTERVAL, 0);
        }
        hints
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peers(family) => write!(f, "peer{family}"),
            Self::Sites(family, length) => write!(f, "site{family}_{length}"),
            Self::Chains => f.write_str("profile"),
            Self::Allowed(ProfileId(id), family) => write!(f, "p_{id}_{family}"),
            Self::Blocks => f.write_str("block"),
            Self::Judged(Block(block)) => write!(f, "b_{block}_all"),
            Self::Denied(Block(block)) => write!(f, "b_{block}_deny"),
            Self::Grants(Block(block), family, length) => write!(f, "b_{block}_{family}_{length}"),
            Self::Servers(Block(block), family) => write!(f, "b_{block}_dns{family}"),
            Self::Internet(family) => write!(f, "internet{family}"),
            Self::Networks(family) => write!(f, "networks{family}"),
            Self::DenyLog(family) => write!(f, "denied{family}"),
            Self::Flows(family) => write!(f, "flows{family}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed() {
        let sets = [
            Set::Peers(Family::V4),
            Set::Sites(Family::V6, 64),
            Set::Chains,
            Set::Allowed(ProfileId(4_000_000_000), Family::V6),
            Set::Blocks,
            Set::Judged(Block(1)),
            Set::Denied(Block(0xf_ffff)),
            Set::Grants(Block(7), Family::V6, 128),
            Set::Servers(Block(7), Family::V4),
            Set::Internet(Family::V4),
            Set::Networks(Family::V6),
            Set::DenyLog(Family::V6),
            Set::Flows(Family::V4),
        ];
        for set in sets {
            assert_eq!(Set::named(&set.to_string()), Some(set));
        }
        for foreign in [
            "",
            "peer",
            "peer5",
            "site4_+24",
            "site4_0",
            "site4_32",
            "site6_200",
            "b_1_4_33",
            "p_01_4",
            "p_1",
            "b_1",
            "b_1_4",
            "b_1_4_",
            "denied46",
            "x",
        ] {
            assert_eq!(Set::named(foreign), None, "{foreign}");
        }
    }
}
