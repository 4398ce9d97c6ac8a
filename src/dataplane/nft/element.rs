//! The elements of our sets and maps, written and read back.

use std::net::IpAddr;

use ipnet::IpNet;

use super::attr::{self, find, find_be32, find_in};
use super::expr::{Verdict, verdict_data};
use super::name::{Block, block_chain_name, chain_name, octets};
use super::set::Set;
use super::sys::{LIST_ELEM, data, elem};
use crate::model::{Address, ProfileId};

/// One element to add to a set or to delete from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// An address -> a profile.
    Profile(IpAddr, ProfileId),
    /// An address of such a map, whatever its profile: to delete it.
    Address(IpAddr),
    /// A profile -> its chain.
    Chain(ProfileId),
    /// A block of profiles -> its chain.
    Block(Block),
    /// A profile of a block.
    Member(ProfileId),
    /// A profile, and the first address of a prefix, or the server, that it may reach.
    Grant(ProfileId, IpAddr),
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
            Self::Chain(id) => goto(out, *id, &chain_name(*id)),
            Self::Block(block) => goto(out, block.first(), &block_chain_name(*block)),
            Self::Member(id) => key(out, &id.0.to_ne_bytes()),
            Self::Grant(id, address) => {
                key(out, &[&id.0.to_ne_bytes(), octets(address).as_slice()].concat());
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
                Some(Self::Profile(first_of(set, family.address(key)?)?, id))
            }
            Set::Chains => {
                let id = number(key)?;
                goes_to(dumped, &chain_name(id)).then_some(Self::Chain(id))
            }
            Set::Blocks => {
                let block = Block::of(number(key)?);
                goes_to(dumped, &block_chain_name(block)).then_some(Self::Block(block))
            }
            Set::Judged(_) | Set::Denied(_) => Some(Self::Member(number(key)?)),
            Set::Grants(_, family, _) | Set::Servers(_, family) => {
                let (id, granted) = key.split_at_checked(4)?;
                Some(Self::Grant(number(id)?, first_of(set, family.address(granted)?)?))
            }
            Set::Allowed(_, family) | Set::Internet(family) | Set::DenyLog(family) => {
                let address = family.address(key)?;
                Some(if end { Self::End(address) } else { Self::Start(address) })
            }
        }
    }
}

/// The address, if it is the first one of a prefix of the set's length: no other is ever looked up.
fn first_of(set: &Set, address: IpAddr) -> Option<IpAddr> {
    let prefix_len = match set {
        Set::Sites(_, prefix_len) | Set::Grants(_, _, prefix_len) => *prefix_len,
        _ => return Some(address),
    };
    let prefix = IpNet::new(address, prefix_len).ok()?;
    (prefix.network() == address).then_some(address)
}

/// A number's element in a verdict map.
fn goto(out: &mut Vec<u8>, ProfileId(number): ProfileId, chain: &str) {
    key(out, &number.to_ne_bytes());
    let goto = verdict_data(&Verdict::Goto(chain));
    attr::nested(out, elem::DATA, |out| goto.encode(out));
}

fn goes_to(dumped: &[u8], chain: &str) -> bool {
    let mut goto = Vec::new();
    verdict_data(&Verdict::Goto(chain)).encode(&mut goto);
    find(&goto, data::VERDICT).is_some_and(|wanted| {
        find_in(dumped, &[elem::DATA, data::VERDICT]).is_some_and(|found| found == wanted)
    })
}

fn key(out: &mut Vec<u8>, bytes: &[u8]) {
    attr::nested(out, elem::KEY, |out| attr::put(out, data::VALUE, bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::nft::name::Family;

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
            (Set::Blocks, Element::Block(Block(3))),
            (Set::Judged(Block(1)), Element::Member(ProfileId(1_025))),
            (Set::Grants(Block(1), Family::V6, 128), Element::Grant(ProfileId(1_025), address)),
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

    #[test]
    fn what_no_look_up_would_find_is_none_of_ours() {
        let address: IpAddr = "10.1.1.5".parse().unwrap();
        let cases = [
            (Set::Sites(Family::V4, 24), Element::Profile(address, ProfileId(5))),
            (Set::Grants(Block(1), Family::V4, 24), Element::Grant(ProfileId(1_025), address)),
        ];
        for (set, element) in cases {
            let mut bytes = Vec::new();
            element.encode(&mut bytes);
            assert_eq!(Element::decode(&set, find(&bytes, LIST_ELEM).unwrap()), None);
        }
    }
}
