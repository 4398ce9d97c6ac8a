//! The elements of our sets and maps, written and read back.

use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::{Verdict, verdict_data};
use super::name::{Block, Family, block_chain_name, chain_name, octets};
use super::set::Set;
use super::sys::{LIST_ELEM, data, elem};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError, put, put_nested};
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
        put_nested(out, LIST_ELEM, |out| match self {
            Self::Profile(address, id) => {
                key(out, &octets(address));
                let id = id.0.to_ne_bytes();
                put_nested(out, elem::DATA, |out| put(out, data::VALUE, &id));
            }
            Self::Address(address) | Self::Start(address) => key(out, &octets(address)),
            Self::OpenStart(address) => {
                key(out, &octets(address));
                put(out, elem::USERDATA, &OPEN);
            }
            Self::Chain(id) => jump(out, *id, &chain_name(*id)),
            Self::Block(block) => jump(out, block.first(), &block_chain_name(*block)),
            Self::Member(id) => key(out, &id.0.to_ne_bytes()),
            Self::Grant(id, address) => {
                key(out, &[&id.0.to_ne_bytes(), octets(address).as_slice()].concat());
            }
            Self::End(address) => {
                put(out, elem::FLAGS, &elem::FLAG_INTERVAL_END.to_be_bytes());
                key(out, &octets(address));
            }
        });
    }

    /// Reads an element of this set as the kernel dumps it. `None`: it is not one that we would write.
    pub fn decode(set: &Set, dumped: Attributes<'_>) -> Result<Option<Self>, NetlinkError> {
        // An element for every other key has none itself.
        let Some(key) = dumped.find_in(&[elem::KEY, data::VALUE])? else { return Ok(None) };
        Ok(match set {
            Set::Peers(family) | Set::Sites(family, _) => {
                let Some(id) = dumped.find_in(&[elem::DATA, data::VALUE])? else { return Ok(None) };
                let id = ProfileId(id.u32()?);
                first_of(set, address(*family, &key)?).map(|address| Self::Profile(address, id))
            }
            Set::Chains => {
                let id = ProfileId(key.u32()?);
                jumps_to(dumped, &chain_name(id))?.then_some(Self::Chain(id))
            }
            Set::Blocks => {
                let block = Block::of(ProfileId(key.u32()?));
                jumps_to(dumped, &block_chain_name(block))?.then_some(Self::Block(block))
            }
            Set::Judged(_) | Set::Denied(_) => Some(Self::Member(ProfileId(key.u32()?))),
            Set::Grants(_, family, _) | Set::Servers(_, family) => {
                let (id, address) = pair(*family, &key)?;
                first_of(set, address).map(|address| Self::Grant(id, address))
            }
            Set::Allowed(_, family)
            | Set::Internet(family)
            | Set::Networks(family)
            | Set::DenyLog(family)
            | Set::Flows(family) => {
                let flags = dumped.find(elem::FLAGS)?.map_or(Ok(0), |flags| flags.be32())?;
                let address = address(*family, &key)?;
                let is_end = flags & elem::FLAG_INTERVAL_END != 0;
                Some(if is_end { Self::End(address) } else { Self::Start(address) })
            }
        })
    }
}

fn address(family: Family, key: &Attribute<'_>) -> Result<IpAddr, NetlinkError> {
    Ok(match family {
        Family::V4 => key.fixed::<4>()?.into(),
        Family::V6 => key.fixed::<16>()?.into(),
    })
}

/// A profile and an address.
fn pair(family: Family, key: &Attribute<'_>) -> Result<(ProfileId, IpAddr), NetlinkError> {
    let (id, address): (_, IpAddr) = match family {
        Family::V4 => {
            let [a, b, c, d, address @ ..] = key.fixed::<8>()?;
            ([a, b, c, d], address.into())
        }
        Family::V6 => {
            let [a, b, c, d, address @ ..] = key.fixed::<20>()?;
            ([a, b, c, d], address.into())
        }
    };
    Ok((ProfileId(u32::from_ne_bytes(id)), address))
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

/// A number's element in a verdict map. It jumps, because a packet that is on its way through the rules when a
/// transaction makes the chain finds the chain without rules (`nft_do_chain`): it comes back, and is denied.
fn jump(out: &mut Vec<u8>, ProfileId(number): ProfileId, chain: &str) {
    key(out, &number.to_ne_bytes());
    let jump = verdict_data(&Verdict::Jump(chain));
    put_nested(out, elem::DATA, |out| jump.encode(out));
}

fn jumps_to(dumped: Attributes<'_>, chain: &str) -> Result<bool, NetlinkError> {
    let found = dumped.find_in(&[elem::DATA, data::VERDICT])?;
    let jump = verdict_data(&Verdict::Jump(chain));
    Ok(found.is_some_and(|found| jump.is_encoded_as(found.value)))
}

fn key(out: &mut Vec<u8>, bytes: &[u8]) {
    put_nested(out, elem::KEY, |out| put(out, data::VALUE, bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::Place;

    fn decode(set: &Set, list: &[u8]) -> Result<Option<Element>, NetlinkError> {
        let list = Attributes::new(list, Place::of("NFT_MSG_NEWSETELEM"));
        Element::decode(set, list.require(LIST_ELEM)?.nested())
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
            (Set::Blocks, Element::Block(Block(3))),
            (Set::Judged(Block(1)), Element::Member(ProfileId(1_025))),
            (Set::Grants(Block(1), Family::V6, 128), Element::Grant(ProfileId(1_025), address)),
            (Set::Internet(Family::V6), Element::Start(address)),
            (Set::Internet(Family::V6), Element::End(address)),
        ];
        for (set, element) in cases {
            let mut bytes = Vec::new();
            element.encode(&mut bytes);
            assert_eq!(decode(&set, &bytes), Ok(Some(element)));
        }
    }

    #[test]
    fn an_element_that_no_look_up_would_find_is_not_ours() {
        let address: IpAddr = "10.1.1.5".parse().unwrap();
        let cases = [
            (Set::Sites(Family::V4, 24), Element::Profile(address, ProfileId(5))),
            (Set::Grants(Block(1), Family::V4, 24), Element::Grant(ProfileId(1_025), address)),
        ];
        for (set, element) in cases {
            let mut bytes = Vec::new();
            element.encode(&mut bytes);
            assert_eq!(decode(&set, &bytes), Ok(None));
        }
    }

    #[test]
    fn a_key_of_the_wrong_size_is_an_error_and_a_missing_key_is_not_ours() {
        let set = Set::Peers(Family::V6);
        let mut bytes = Vec::new();
        Element::Profile("10.0.0.1".parse().unwrap(), ProfileId(1)).encode(&mut bytes);
        assert_eq!(
            decode(&set, &bytes).unwrap_err().to_string(),
            "the kernel sent a malformed NFT_MSG_NEWSETELEM, attribute 1/1/1: its value has 4 \
             bytes instead of 16"
        );
        let mut catch_all = Vec::new();
        put_nested(&mut catch_all, LIST_ELEM, |out| put(out, elem::FLAGS, &2u32.to_be_bytes()));
        assert_eq!(decode(&set, &catch_all), Ok(None));
    }
}
