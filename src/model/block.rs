//! The users, devices, keys and addresses that an operator has blocked on this host. No row lifts a block.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use super::{AllowedIps, Departed, DeviceId, KeyText, PeerRow, PublicKey, UserId};

/// The subject of a block, whatever rows say now or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// Every device of the user.
    User(UserId),
    Device(DeviceId),
    Key(PublicKey),
    /// Each peer that has the address, or a site prefix with it.
    Address(IpAddr),
}

/// When a block was made, and what the operator calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The user, the device as `user/device`, or the device that had the key or address.
    pub name: Box<str>,
    pub since: SystemTime,
}

/// A block that an operator set or lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockChange {
    /// The block is over; else it begins.
    pub lifted: bool,
    pub whom: Whom,
    pub block: Block,
    /// The peers of rows that it concerns.
    pub peers: Vec<Departed>,
}

impl BlockChange {
    /// `blocked` or `unblocked`
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        if self.lifted { "unblocked" } else { "blocked" }
    }
}

/// All blocks of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockList {
    blocks: BTreeMap<Whom, Block>,
    /// Why the earlier blocks are not known: then nothing may be granted.
    unreadable: Option<Box<str>>,
}

impl BlockList {
    /// A list of which only the blocks made from now on are known.
    #[must_use]
    pub const fn unreadable(why: Box<str>) -> Self {
        Self { blocks: BTreeMap::new(), unreadable: Some(why) }
    }

    /// Why the earlier blocks are not known.
    #[must_use]
    pub fn why_unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Adds a block. One that is there already stays.
    pub fn add(&mut self, whom: Whom, block: Block) {
        self.blocks.entry(whom).or_insert(block);
    }

    pub fn remove(&mut self, whom: &Whom) -> Option<Block> {
        self.blocks.remove(whom)
    }

    #[must_use]
    pub fn get(&self, whom: &Whom) -> Option<&Block> {
        self.blocks.get(whom)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Whom, &Block)> {
        self.blocks.iter()
    }

    /// The blocks of this list that `other` does not have.
    pub fn without(&self, other: &Self) -> impl Iterator<Item = (&Whom, &Block)> {
        self.blocks.iter().filter(|(whom, _)| !other.blocks.contains_key(whom))
    }

    /// Whether the row's peer is blocked.
    #[must_use]
    pub fn bars(&self, row: &PeerRow) -> bool {
        let has = |whom| self.blocks.contains_key(&whom);
        let by_key = || matches!(&row.public_key, KeyText::Key(key) if has(Whom::Key(*key)));
        !self.is_empty()
            && (has(Whom::User(row.user_id))
                || has(Whom::Device(row.device_id))
                || by_key()
                || has(Whom::Address(row.assigned_ip.addr()))
                || row.allowed_ips.iter().any(|prefix| self.has_address_in(prefix)))
    }

    /// Whether a peer of the kernel is blocked, as far as that can be known without rows.
    #[must_use]
    pub fn bars_peer(&self, key: &PublicKey, prefixes: &AllowedIps) -> bool {
        !self.is_empty()
            && (self.blocks.contains_key(&Whom::Key(*key))
                || prefixes.as_slice().iter().any(|prefix| self.has_address_in(prefix)))
    }

    fn has_address_in(&self, prefix: &ipnet::IpNet) -> bool {
        let (first, last) = (Whom::Address(prefix.network()), Whom::Address(prefix.broadcast()));
        self.blocks.range(first..=last).next().is_some()
    }
}

impl FromIterator<(Whom, Block)> for BlockList {
    fn from_iter<I: IntoIterator<Item = (Whom, Block)>>(blocks: I) -> Self {
        Self { blocks: blocks.into_iter().collect(), unreadable: None }
    }
}

impl Whom {
    /// As `gatepost blocked` calls it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Device(_) => "device",
            Self::Key(_) => "key",
            Self::Address(_) => "address",
        }
    }

    /// The id, key or address.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::User(id) => id.to_string(),
            Self::Device(id) => id.to_string(),
            Self::Key(key) => key.to_string(),
            Self::Address(address) => address.to_string(),
        }
    }

    /// Reads what [`Self::kind`] and [`Self::id`] wrote.
    #[must_use]
    pub fn parse(kind: &str, id: &str) -> Option<Self> {
        match kind {
            "user" => id.parse().ok().map(|id| Self::User(UserId(id))),
            "device" => id.parse().ok().map(|id| Self::Device(DeviceId(id))),
            "key" => id.parse().ok().map(Self::Key),
            "address" => id.parse().ok().map(Self::Address),
            _ => None,
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_of_an_address_concerns_prefixes_that_contain_it() {
        let block = Block { name: "".into(), since: SystemTime::UNIX_EPOCH };
        let address = Whom::Address("192.168.7.9".parse().unwrap());
        let list = BlockList::from_iter([(address, block)]);
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        let bars =
            |prefix: &str| list.bars_peer(&key, &AllowedIps::from_iter([prefix.parse().unwrap()]));
        assert!(bars("192.168.7.9/32") && bars("192.168.7.0/24") && bars("0.0.0.0/0"));
        assert!(!bars("192.168.8.0/24") && !bars("192.168.7.8/32") && !bars("::/0"));
    }

    #[test]
    fn each_kind_reads_back_what_it_wrote() {
        let id = uuid::Uuid::from_u128(7);
        let key = PublicKey::from_bytes([1; 32]).unwrap();
        let address = "fd00::1".parse().unwrap();
        for whom in [
            Whom::User(UserId(id)),
            Whom::Device(DeviceId(id)),
            Whom::Key(key),
            Whom::Address(address),
        ] {
            assert_eq!(Whom::parse(whom.kind(), &whom.id()), Some(whom));
        }
        assert_eq!(Whom::parse("group", &id.to_string()), None);
    }
}
