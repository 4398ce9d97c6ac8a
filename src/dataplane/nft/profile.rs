//! A profile's chain: what it allows as rules, and the rules read back as what they allow.
//!
//! A few ranges are rules of the chain itself; many are an interval set. Thousands of small
//! profiles then need no sets, which the kernel finds by name only one after the other
//! (`nft_set_lookup` in `net/netfilter/nf_tables_api.c`); chains it finds by hash.

use std::net::IpAddr;

use super::element::Element;
use super::expr::{
    Cmp, Ct, Direction, Expr, Meta, Rule, Verdict, cmp, counter, ct_tuple, is_rule, load, lookup,
    mask, meta_set, verdict,
};
use super::name::{DENY, DNS, Family, PASSED, octets};
use super::set::Set;
use super::sys::data;
use crate::model::{Address, Profile, ProfileId, Ranges};

/// More ranges than these become a set. A rule costs about 15 ns a packet, a set about 70 ns.
const MAX_RANGES_AS_RULES: usize = 32;

/// One rule of a profile's chain. Destinations are those of the flow, not of the packet: the reply
/// tuple's source is the real destination, after any rewriting, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileRule {
    /// First: counts what is judged, and clears our number from the packet's priority.
    Judged,
    /// Destinations from the first to the last address.
    Range(IpAddr, IpAddr),
    /// Destinations in the profile's set.
    Set(Family),
    /// A DNS server, on port 53.
    Dns(IpAddr),
    /// Last: counts and denies the rest.
    Denied,
}

/// The rules of a profile's chain, in order.
pub fn rules(profile: &Profile) -> Vec<ProfileRule> {
    let mut rules = vec![ProfileRule::Judged];
    push_ranges(&mut rules, Family::V4, &profile.allow4);
    push_ranges(&mut rules, Family::V6, &profile.allow6);
    rules.extend(profile.dns_servers.iter().map(|server| ProfileRule::Dns(*server)));
    rules.push(ProfileRule::Denied);
    rules
}

fn push_ranges<T: Address>(rules: &mut Vec<ProfileRule>, family: Family, ranges: &Ranges<T>) {
    if as_set(ranges) {
        rules.push(ProfileRule::Set(family));
    } else {
        let ranges = ranges.as_slice().iter();
        rules.extend(ranges.map(|(first, last)| ProfileRule::Range(first.to_ip(), last.to_ip())));
    }
}

fn as_set<T>(ranges: &Ranges<T>) -> bool {
    ranges.as_slice().len() > MAX_RANGES_AS_RULES
}

/// Whether a profile's ranges of this family are a set.
pub fn has_set(profile: &Profile, family: Family) -> bool {
    match family {
        Family::V4 => as_set(&profile.allow4),
        Family::V6 => as_set(&profile.allow6),
    }
}

/// The elements of a profile's set of this family; `None`: the ranges are few enough to be rules.
pub fn set_elements(profile: &Profile, family: Family) -> Option<Vec<Element>> {
    fn elements<T: Address>(ranges: &Ranges<T>) -> Option<Vec<Element>> {
        as_set(ranges).then(|| ranges.as_slice().iter().copied().flat_map(Element::range).collect())
    }
    match family {
        Family::V4 => elements(&profile.allow4),
        Family::V6 => elements(&profile.allow6),
    }
}

impl ProfileRule {
    pub fn encode(&self, id: ProfileId) -> Rule {
        match *self {
            Self::Judged => {
                vec![load(&0u32.to_ne_bytes()), meta_set(Meta::Priority), counter()]
            }
            Self::Range(first, last) => {
                let mut rule = vec![destination(Family::of(&first))];
                rule.extend(in_range(&octets(&first), &octets(&last)));
                rule.push(verdict(&Verdict::Goto(PASSED)));
                rule
            }
            Self::Set(family) => vec![
                destination(family),
                lookup(&Set::Allowed(id, family).to_string()),
                verdict(&Verdict::Goto(PASSED)),
            ],
            Self::Dns(server) => vec![
                destination(Family::of(&server)),
                cmp(Cmp::Eq, &octets(&server)),
                verdict(&Verdict::Jump(DNS)),
            ],
            Self::Denied => vec![counter(), verdict(&Verdict::Goto(DENY))],
        }
    }

    /// What a rule read from this profile's chain is. `None`: it is not one that we would write, nor, in
    /// a `former` table, one that version 0.1.0 wrote.
    pub fn decode(id: ProfileId, found: &[Expr], former: bool) -> Option<Self> {
        let guess = Self::guess(found)?;
        let mut rule = guess.encode(id);
        if let Self::Range(..) | Self::Set(_) = guess
            && former
        {
            rule.pop();
            rule.push(verdict(&Verdict::Accept));
        }
        is_rule(&rule, found).then_some(guess)
    }

    /// What the rule must be if it is one of ours; [`decode`](Self::decode) proves it.
    fn guess(found: &[Expr]) -> Option<Self> {
        let names: Vec<&str> = found.iter().map(Expr::name).collect();
        let value = |at: usize, kind| found[at].find(&[kind, data::VALUE]);
        let family = || match u32::from_be_bytes(found[0].find(&[2])?.try_into().ok()?) {
            key if key == Ct::SrcIp as u32 => Some(Family::V4),
            key if key == Ct::SrcIp6 as u32 => Some(Family::V6),
            _ => None,
        };
        match names[..] {
            ["immediate", "meta", "counter"] => Some(Self::Judged),
            ["counter", "immediate"] => Some(Self::Denied),
            ["ct", "lookup", "immediate"] => Some(Self::Set(family()?)),
            ["ct", "cmp", "immediate"] => {
                let prefix = value(1, 3)?;
                let first = filled(family()?, prefix, 0)?;
                let chain = found[2].text(&[2, data::VERDICT, data::VERDICT_CHAIN]);
                Some(match chain == Some(DNS) {
                    true => Self::Dns(first),
                    false => Self::Range(first, filled(family()?, prefix, 0xff)?),
                })
            }
            ["ct", "bitwise", "cmp", "immediate"] => {
                let (mask, first) = (value(1, 4)?, value(2, 3)?);
                let last: Vec<u8> =
                    first.iter().zip(mask).map(|(first, mask)| first | !mask).collect();
                Some(Self::Range(filled(family()?, first, 0)?, filled(family()?, &last, 0)?))
            }
            ["ct", "cmp", "cmp", "immediate"] => {
                let (first, last) = (value(1, 3)?, value(2, 3)?);
                Some(Self::Range(filled(family()?, first, 0)?, filled(family()?, last, 0)?))
            }
            _ => None,
        }
    }
}

/// Loads where the flow really goes.
fn destination(family: Family) -> Expr {
    ct_tuple(Direction::Reply, Ct::source(family))
}

/// Compares as the `nft` program would: whole bytes where the range is a prefix of whole bytes,
/// a mask where it is another prefix, else both ends.
fn in_range(first: &[u8], last: &[u8]) -> Rule {
    match prefix_bits(first, last) {
        Some(bits) if bits > 0 && bits % 8 == 0 => vec![cmp(Cmp::Eq, &first[..bits / 8])],
        Some(_) => {
            let bits: Vec<u8> =
                first.iter().zip(last).map(|(first, last)| !(first ^ last)).collect();
            vec![mask(&bits), cmp(Cmp::Eq, first)]
        }
        None => vec![cmp(Cmp::Gte, first), cmp(Cmp::Lte, last)],
    }
}

/// The length of the prefix that is exactly this range.
fn prefix_bits(first: &[u8], last: &[u8]) -> Option<usize> {
    let number =
        |octets: &[u8]| octets.iter().fold(0u128, |sum, octet| sum << 8 | u128::from(*octet));
    let (first_number, last_number) = (number(first), number(last));
    let free = first_number ^ last_number;
    let is_prefix = free & free.wrapping_add(1) == 0 && first_number & free == 0;
    is_prefix.then(|| first.len() * 8 - free.count_ones() as usize)
}

/// The address that starts with these bytes and goes on with `fill`.
fn filled(family: Family, octets: &[u8], fill: u8) -> Option<IpAddr> {
    let mut bytes = octets.to_vec();
    bytes.resize(family.address_bytes().into(), fill);
    (octets.len() <= bytes.len()).then(|| family.address(&bytes)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> ProfileRule {
        ProfileRule::Range(first.parse().unwrap(), last.parse().unwrap())
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let id = ProfileId(9);
        let rules = [
            ProfileRule::Judged,
            range("10.0.0.0", "10.255.255.255"),
            range("10.0.0.0", "10.0.0.127"),
            range("10.0.0.1", "10.0.0.1"),
            range("10.0.0.1", "10.0.0.2"),
            range("0.0.0.0", "255.255.255.255"),
            range("fd00::", "fd00::ffff"),
            range("fd00::1", "fd00::ffff"),
            range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            range("2000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ProfileRule::Set(Family::V4),
            ProfileRule::Set(Family::V6),
            ProfileRule::Dns("10.0.0.53".parse().unwrap()),
            ProfileRule::Dns("fd00::53".parse().unwrap()),
            ProfileRule::Denied,
        ];
        for rule in rules {
            assert_eq!(ProfileRule::decode(id, &rule.encode(id), false), Some(rule), "{rule:?}");
        }
    }

    #[test]
    fn a_rule_of_another_profile_is_not_ours() {
        let foreign = ProfileRule::Set(Family::V4).encode(ProfileId(8));
        assert_eq!(ProfileRule::decode(ProfileId(9), &foreign, false), None);
    }

    #[test]
    fn only_real_prefixes_are_prefixes() {
        assert_eq!(prefix_bits(&[10, 0, 0, 0], &[10, 0, 0, 255]), Some(24));
        assert_eq!(prefix_bits(&[0; 16], &[255; 16]), Some(0));
        assert_eq!(prefix_bits(&[10, 0, 0, 7], &[10, 0, 0, 7]), Some(32));
        assert_eq!(prefix_bits(&[10, 0, 0, 128], &[10, 0, 1, 127]), None);
        assert_eq!(prefix_bits(&[10, 0, 0, 1], &[10, 0, 0, 2]), None);
    }
}
