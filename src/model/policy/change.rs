//! Describes a change of policies: which destinations are gained or lost, by which policy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::flatten::select;
use super::resolve::{Internet, Policy, Verdict, decisions, verdict_of};
use super::{Plain, PolicyBook, Quoted};
use crate::count::count;
use crate::model::{DeviceId, PolicyId, Profile, Ranges, UserId};
use foldhash::{HashMap, HashMapExt};

/// A device whose reach changes, or may.
#[derive(Debug, Clone, Copy)]
pub struct ReachChange<'a> {
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub username: &'a str,
    pub device_name: &'a str,
    /// The destinations that it may reach now, by the kernel or an earlier book; `None`: none.
    pub old: Option<&'a Profile>,
    /// The destinations that it may reach then; `None`: the device has no place here any more.
    pub new: Option<&'a Profile>,
}

/// One thing that some users gain or lose. Prints as one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyChange {
    #[serde(flatten)]
    pub fact: Fact,
    /// Devices by user, both by name.
    pub who: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
}

/// A gain or a loss, and its cause.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Fact {
    #[serde(rename = "turn")]
    pub direction: Direction,
    pub cause: Cause,
    /// DNS servers are meant on port 53 only.
    #[serde(flatten, serialize_with = "as_texts")]
    pub what: Profile,
}

/// Which way it goes. What is lost is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Loses,
    Gains,
}

/// Why something is gained or lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// This policy decides there now: it allows what is gained, it denies what is lost.
    Policy { id: PolicyId, name: Box<str> },
    /// No policy decides there any more, so the setting `policy.default_effect` does.
    NoPolicy,
    /// DNS servers are listed for the peer, or no longer.
    DnsServers,
    /// The device has no place on this gateway any more.
    Gone,
}

/// Tells what changes for these devices when the policies become those of the book. One entry for
/// everything that many gain or lose for one reason, losses first; devices with the same profiles
/// and policies are worked out once.
#[must_use]
pub fn describe_changes<'a>(
    book: &PolicyBook,
    shifts: impl IntoIterator<Item = ReachChange<'a>>,
) -> Vec<PolicyChange> {
    let mut known: HashMap<_, Vec<Fact>> = HashMap::new();
    let mut told: BTreeMap<Fact, BTreeMap<Box<str>, BTreeSet<Box<str>>>> = BTreeMap::new();
    for shift in shifts.into_iter().filter(|shift| shift.old != shift.new) {
        let policies = book.policies_of(shift.user_id, shift.device_id);
        let ids: Vec<PolicyId> = policies.iter().map(|policy| policy.id).collect();
        let profiles = [shift.old, shift.new].map(|profile| profile.map(std::ptr::from_ref));
        let facts = known
            .entry((profiles, ids))
            .or_insert_with(|| facts(&policies, book.default_effect(), shift.old, shift.new));
        for fact in facts.iter() {
            let who = told.entry(fact.clone()).or_default();
            who.entry(shift.username.into()).or_default().insert(shift.device_name.into());
        }
    }
    told.into_iter().map(|(fact, who)| PolicyChange { fact, who }).collect()
}

fn facts(
    policies: &[&Policy],
    default: Verdict,
    old: Option<&Profile>,
    new: Option<&Profile>,
) -> Vec<Fact> {
    let nothing = Profile::default();
    let (before, after) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
    let mut facts: BTreeMap<(Direction, Cause), Profile> = BTreeMap::new();
    let decisions = Decisions { policies, default, gone: new.is_none() };
    for (direction, cause, ranges) in decisions.differences(&before.allow4, &after.allow4) {
        facts.entry((direction, cause)).or_default().allow4 = ranges;
    }
    for (direction, cause, ranges) in decisions.differences(&before.allow6, &after.allow6) {
        facts.entry((direction, cause)).or_default().allow6 = ranges;
    }
    for (direction, these, those) in
        [(Direction::Loses, before, after), (Direction::Gains, after, before)]
    {
        let only = these.dns_servers.iter().filter(|server| !those.dns_servers.contains(server));
        let servers: Box<[IpAddr]> = only.copied().collect();
        if !servers.is_empty() {
            let cause = if decisions.gone { Cause::Gone } else { Cause::DnsServers };
            facts.entry((direction, cause)).or_default().dns_servers = servers;
        }
    }
    facts.into_iter().map(|((direction, cause), what)| Fact { direction, cause, what }).collect()
}

/// The policies that decide about a device after the change.
struct Decisions<'a> {
    policies: &'a [&'a Policy],
    default: Verdict,
    gone: bool,
}

impl Decisions<'_> {
    /// The gains and losses of one family, by cause.
    fn differences<T: Internet>(
        &self,
        before: &Ranges<T>,
        after: &Ranges<T>,
    ) -> Vec<(Direction, Cause, Ranges<T>)> {
        let (lost, gained) = (before.difference(after), after.difference(before));
        let differences: Vec<_> = if self.gone {
            vec![(Direction::Loses, Cause::Gone, lost)]
        } else if lost.is_empty() && gained.is_empty() {
            vec![]
        } else {
            let stretches = decisions::<T>(self.policies);
            let winners: BTreeSet<Option<usize>> = stretches.iter().map(|at| at.winner).collect();
            let decided = |winner| select(&stretches, |at| at == winner);
            let direction = |winner| match verdict_of(self.policies, self.default, winner) {
                Verdict::Deny => (Direction::Loses, lost.intersection(&decided(winner))),
                Verdict::Allow => (Direction::Gains, gained.intersection(&decided(winner))),
            };
            let told = winners.into_iter().map(|winner| (direction(winner), self.cause(winner)));
            told.map(|((direction, ranges), cause)| (direction, cause, ranges)).collect()
        };
        differences.into_iter().filter(|(_, _, ranges)| !ranges.is_empty()).collect()
    }

    fn cause(&self, winner: Option<usize>) -> Cause {
        match winner.and_then(|rank| self.policies.get(rank)) {
            Some(policy) => Cause::Policy { id: policy.id, name: policy.name.clone() },
            None => Cause::NoPolicy,
        }
    }
}

impl fmt::Display for PolicyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST_DEVICES: usize = 4;
        let devices = self.who.iter().flat_map(|(user, devices)| {
            devices.iter().map(move |device| format!("{}/{}", Plain(user), Plain(device)))
        });
        let who: Vec<String> = devices.collect();
        f.write_str(&who[..who.len().min(MOST_DEVICES)].join(", "))?;
        let more = who.len().saturating_sub(MOST_DEVICES);
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        let many = who.len() > 1;
        f.write_str(match (self.fact.direction, many) {
            (Direction::Loses, false) => " loses ",
            (Direction::Loses, true) => " lose ",
            (Direction::Gains, false) => " gains ",
            (Direction::Gains, true) => " gain ",
        })?;
        self.fact.fmt(f)
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_words(&self.what))?;
        match (&self.cause, self.direction) {
            (Cause::Policy { name, .. }, Direction::Gains) => {
                write!(f, " by policy {}", Quoted(name))
            }
            (Cause::Policy { name, .. }, Direction::Loses) => {
                write!(f, ": policy {} denies it", Quoted(name))
            }
            (Cause::NoPolicy, Direction::Gains) => f.write_str(": setting policy.default_effect"),
            (Cause::NoPolicy, Direction::Loses) => f.write_str(": no policy grants it any more"),
            (Cause::DnsServers, Direction::Gains) => f.write_str(": listed for the peer"),
            (Cause::DnsServers, Direction::Loses) => {
                f.write_str(": not listed for the peer any more")
            }
            (Cause::Gone, _) => f.write_str(": the peer is removed"),
        }
    }
}

/// Describes the destinations of a profile; empty: none.
#[must_use]
pub fn in_words(what: &Profile) -> String {
    let mut places = Vec::new();
    places.extend(what.dns_servers.iter().map(|server| format!("{server} port 53")));
    describe(&what.allow4, "the IPv4 internet", &mut places);
    describe(&what.allow6, "the IPv6 internet", &mut places);
    places.join(", ")
}

/// The ranges in words, the internet as one where it is whole, a long list cut.
fn describe<T: Internet>(ranges: &Ranges<T>, internet: &str, places: &mut Vec<String>) {
    const MOST_RANGES: usize = 6;
    let whole = T::internet().difference(ranges).is_empty();
    let everything = ranges.complement().is_empty();
    let rest = if whole && !everything {
        places.push(internet.to_owned());
        ranges.difference(T::internet())
    } else {
        ranges.clone()
    };
    places.extend(rest.texts().take(MOST_RANGES));
    let more = rest.as_slice().len().saturating_sub(MOST_RANGES);
    if more > 0 {
        places.push(count(more, "more range"));
    }
}

fn as_texts<S: Serializer>(what: &Profile, to: S) -> Result<S::Ok, S::Error> {
    let ranges: Vec<String> = what.allow4.texts().chain(what.allow6.texts()).collect();
    let mut map = to.serialize_map(Some(2))?;
    map.serialize_entry("destinations", &ranges)?;
    map.serialize_entry("dns_servers", &what.dns_servers)?;
    map.end()
}
