//! The sets and maps of our table: their names, how they are declared, and their elements.

use std::fmt;
use std::net::IpAddr;

use super::attr::{self, Attr, find, find_be32, find_in};
use super::expr::{Verdict, verdict_data};
use super::profile::chain_name;
use super::sys::{LIST_ELEM, data, datatype, elem, set};
use super::table::TABLE;
use crate::model::{Address, ProfileId};

/// The two kinds of addresses. Everything is done for both.
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

    /// The length of a host's prefix.
    pub const fn bits(self) -> u8 {
        self.address_bytes() * 8
    }

    const fn datatype(self) -> u32 {
        match self {
            Self::V4 => datatype::IPV4_ADDR,
            Self::V6 => datatype::IPV6_ADDR,
        }
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

/// One set or map of our table. Its printed form is its name in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// A peer's own address -> its profile.
    Peers(Family),
    /// A site prefix of this length -> its profile. One hash map for each length in use, asked
    /// from the shortest to the longest: an interval map could not hold nested prefixes.
    Sites(Family, u8),
    /// A profile -> its chain.
    Chains,
    /// The ranges a profile allows, if they are too many to be rules.
    Allowed(ProfileId, Family),
    /// What is the internet: every address outside the special-purpose blocks.
    Internet(Family),
    /// How often each source was denied lately.
    DenyLog(Family),
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
            Self::Sites(family(digit)?, length.parse().ok()?)
        } else if let Some(rest) = name.strip_prefix("p_") {
            let (id, digit) = rest.split_once('_')?;
            Self::Allowed(ProfileId(id.parse().ok()?), family(digit)?)
        } else if let Some(rest) = name.strip_prefix("internet") {
            Self::Internet(family(rest)?)
        } else {
            Self::DenyLog(family(name.strip_prefix("denied")?)?)
        };
        (parsed.to_string() == name).then_some(parsed)
    }

    /// What is sent to declare it. `id` is any number that is unique in the transaction.
    pub fn declaration(&self, id: u32) -> Vec<Attr> {
        let mut attrs =
            vec![Attr::text(set::TABLE, TABLE), Attr::text(set::NAME, &self.to_string())];
        attrs.push(Attr::be32(set::ID, id));
        attrs.extend(self.shape());
        attrs.push(Attr::bytes(set::USERDATA, self.listing_hints()));
        attrs
    }

    /// Whether `dumped`, read back from the kernel, declares this set.
    pub fn is(&self, dumped: &[u8]) -> bool {
        let absent = |kind| find_be32(dumped, kind).is_none_or(|number| number == 0);
        let mut sent = Vec::new();
        self.shape().iter().for_each(|attr| attr.encode(&mut sent));
        let same = attr::Attrs(&sent).all(|(kind, value)| find(dumped, kind) == Some(value));
        same && [set::DATA_TYPE, set::TIMEOUT]
            .iter()
            .all(|kind| find(&sent, *kind).is_some() || absent(*kind))
    }

    fn shape(&self) -> Vec<Attr> {
        const MAX_SOURCES: u32 = 65_536;
        const FORGET_AFTER_MILLIS: u64 = 60_000;
        let key = |flags, kind, bytes: u8| {
            vec![
                Attr::be32(set::FLAGS, flags),
                Attr::be32(set::KEY_TYPE, kind),
                Attr::be32(set::KEY_LEN, bytes.into()),
            ]
        };
        let address = |flags, family: Family| key(flags, family.datatype(), family.address_bytes());
        match *self {
            Self::Peers(family) | Self::Sites(family, _) => {
                let mut attrs = address(set::FLAG_MAP, family);
                attrs.push(Attr::be32(set::DATA_TYPE, datatype::CLASSID));
                attrs.push(Attr::be32(set::DATA_LEN, 4));
                attrs
            }
            Self::Chains => {
                // A verdict has no length of its own: the kernel fills it in.
                let mut attrs = key(set::FLAG_MAP, datatype::CLASSID, 4);
                attrs.push(Attr::be32(set::DATA_TYPE, datatype::VERDICT));
                attrs
            }
            Self::Allowed(_, family) | Self::Internet(family) => {
                address(set::FLAG_INTERVAL, family)
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
            Self::Chains => (HOST, Some(UNKNOWN)),
            Self::Allowed(..) | Self::Internet(_) | Self::DenyLog(_) => (NETWORK, None),
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
            Self::Internet(family) => write!(f, "internet{family}"),
            Self::DenyLog(family) => write!(f, "denied{family}"),
        }
    }
}

/// One element to add to a set or to delete from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// An address -> a profile.
    Profile(IpAddr, ProfileId),
    /// An address of such a map, whatever its profile: to delete it.
    Address(IpAddr),
    /// A profile -> its chain.
    Chain(ProfileId),
    /// The first address of a range.
    Start(IpAddr),
    /// The first address of a range that reaches to the top of the space and has no end.
    OpenStart(IpAddr),
    /// The address after the last one of a range.
    End(IpAddr),
}

impl Element {
    /// The one or two elements that make a range.
    pub fn range<T: Address>((first, last): (T, T)) -> impl Iterator<Item = Self> {
        let (start, end) = match last.next() {
            Some(after) => (Self::Start(first.to_ip()), Some(Self::End(after.to_ip()))),
            None => (Self::OpenStart(first.to_ip()), None),
        };
        [Some(start), end].into_iter().flatten()
    }

    /// Appends the element to an element list.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // `NFTNL_UDATA_SET_ELEM_FLAGS`, 4 bytes, `SET_ELEM_F_INTERVAL_OPEN`: a hint for listings.
        const OPEN: [u8; 6] = [1, 4, 1, 0, 0, 0];
        attr::nested(out, LIST_ELEM, |out| match self {
            Self::Profile(address, id) => {
                key(out, &octets(address));
                attr::nested(out, elem::DATA, |out| {
                    attr::put(out, data::VALUE, &id.0.to_ne_bytes())
                });
            }
            Self::Address(address) | Self::Start(address) => key(out, &octets(address)),
            Self::OpenStart(address) => {
                key(out, &octets(address));
                attr::put(out, elem::USERDATA, &OPEN);
            }
            Self::Chain(id) => {
                key(out, &id.0.to_ne_bytes());
                let goto = verdict_data(&Verdict::Goto(&chain_name(*id)));
                attr::nested(out, elem::DATA, |out| goto.encode(out));
            }
            Self::End(address) => {
                attr::put(out, elem::FLAGS, &elem::FLAG_INTERVAL_END.to_be_bytes());
                key(out, &octets(address));
            }
        });
    }

    /// Reads an element of this set as the kernel dumps it. `None`: none that we would write.
    pub fn decode(set: &Set, dumped: &[u8]) -> Option<Self> {
        let key = find_in(dumped, &[elem::KEY, data::VALUE])?;
        let end = find_be32(dumped, elem::FLAGS).unwrap_or_default() & elem::FLAG_INTERVAL_END != 0;
        let number = |bytes: &[u8]| Some(ProfileId(u32::from_ne_bytes(bytes.try_into().ok()?)));
        match set {
            Set::Peers(family) | Set::Sites(family, _) => {
                let id = number(find_in(dumped, &[elem::DATA, data::VALUE])?)?;
                Some(Self::Profile(address(*family, key)?, id))
            }
            Set::Chains => {
                let id = number(key)?;
                let mut goto = Vec::new();
                verdict_data(&Verdict::Goto(&chain_name(id))).encode(&mut goto);
                let wanted = find(&goto, data::VERDICT)?;
                let found = find_in(dumped, &[elem::DATA, data::VERDICT])?;
                (wanted == found).then_some(Self::Chain(id))
            }
            Set::Allowed(_, family) | Set::Internet(family) | Set::DenyLog(family) => {
                let address = address(*family, key)?;
                Some(if end { Self::End(address) } else { Self::Start(address) })
            }
        }
    }
}

/// The address in network byte order.
pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub fn address(family: Family, octets: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => <[u8; 4]>::try_from(octets).ok()?.into(),
        Family::V6 => <[u8; 16]>::try_from(octets).ok()?.into(),
    })
}

fn key(out: &mut Vec<u8>, bytes: &[u8]) {
    attr::nested(out, elem::KEY, |out| attr::put(out, data::VALUE, bytes));
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
            Set::Internet(Family::V4),
            Set::DenyLog(Family::V6),
        ];
        for set in sets {
            assert_eq!(Set::named(&set.to_string()), Some(set));
        }
        for foreign in ["", "peer", "peer5", "site4_+24", "p_01_4", "p_1", "denied46", "x"] {
            assert_eq!(Set::named(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_range_to_the_top_has_no_end() {
        let range = |first: u32, last| Element::range((first, last)).collect::<Vec<_>>();
        let ip = |number: u32| number.to_ip();
        assert_eq!(range(5, 9), [Element::Start(ip(5)), Element::End(ip(10))]);
        assert_eq!(range(5, u32::MAX), [Element::OpenStart(ip(5))]);
    }

    #[test]
    fn elements_are_read_as_they_are_written() {
        let address: IpAddr = "fd00::7".parse().unwrap();
        let cases = [
            (Set::Peers(Family::V6), Element::Profile(address, ProfileId(70_000))),
            (Set::Chains, Element::Chain(ProfileId(3))),
            (Set::Internet(Family::V6), Element::Start(address)),
            (Set::Internet(Family::V6), Element::End(address)),
        ];
        for (set, element) in cases {
            let mut bytes = Vec::new();
            element.encode(&mut bytes);
            let dumped = find(&bytes, LIST_ELEM).unwrap();
            assert_eq!(Element::decode(&set, dumped), Some(element));
        }
    }
}
