//! The state that the rows and the kernel both allow, and the steps that withdraw the rest.
//!
//! When the whole of what is desired cannot be applied, withdrawals still must be: a revoked peer
//! goes and a narrowed policy narrows, whatever stands in the way of the rest. The meet never adds
//! anything, so it is safe wherever the plan is not.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;

use super::meets::Meets;
use super::prefix::prefixes_around;
use super::{Held, Phase, Plan, Step, firewall};
use crate::model::{
    AllowedIps, DesiredFirewall, DesiredState, FirewallBase, FirewallChange, InterfaceName,
    LinkOwner, ObservedFirewall, ObservedState, Profile, ProfileId, PublicKey,
};

/// Which peers there may be, and what they may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// The prefixes of each peer. A packet is from the peer whose prefix around its source is the
    /// longest.
    pub peers: BTreeMap<PublicKey, AllowedIps>,
    /// The destinations of packets from a prefix; the longest prefix decides, and a missing prefix has none.
    pub reach: BTreeMap<IpNet, Arc<Profile>>,
}

impl From<&DesiredState> for Allowed {
    fn from(desired: &DesiredState) -> Self {
        let peers = desired.peers().iter().map(|(key, peer)| (*key, peer.allowed_ips.clone()));
        Self { peers: peers.collect(), reach: desired.firewall().assignments.clone() }
    }
}

/// The peers that are in both, of each the prefixes in both, and the reach that both allow.
///
/// A prefix that its peer loses, or that the rows give to another peer, reaches nothing: the peer
/// whose prefix contains it would otherwise gain its addresses. A place in the firewall whose
/// addresses no peer holds stays as it is.
#[must_use]
pub fn meet(desired: &Allowed, observed: &ObservedState) -> Allowed {
    meet_within(desired, observed, places(observed).collect())
}

/// The places of the kernel's table, each with what it reaches; `None`: its profile is not there.
fn places(observed: &ObservedState) -> impl Iterator<Item = (IpNet, Option<Arc<Profile>>)> {
    observed.firewall.iter().flat_map(|table| {
        let reach = |(place, id): (&IpNet, &ProfileId)| (*place, table.profiles().get(id).cloned());
        table.assignments().iter().map(reach)
    })
}

/// The meet where the kernel judges by these places.
fn meet_within(
    desired: &Allowed,
    observed: &ObservedState,
    places: BTreeMap<IpNet, Option<Arc<Profile>>>,
) -> Allowed {
    let in_both = |(key, had): (&PublicKey, &AllowedIps)| {
        let kept = desired.peers.get(key)?.intersection(had);
        Some((*key, kept))
    };
    let present = || observed.peers.iter().map(|(key, peer)| (key, &peer.allowed_ips));
    let holders = Longest::of(holders(present()));
    let wanted_holders = Longest::of(self::holders(desired.peers.iter()));
    let wanted = Longest::of(desired.reach.iter().map(|(prefix, profile)| (*prefix, profile)));
    let mut keys: BTreeSet<IpNet> = places.keys().chain(desired.reach.keys()).copied().collect();
    keys.extend(holders.map.keys());
    let places = Longest::of(places);

    let mut meets = Meets::default();
    let reach = keys.into_iter().map(|prefix| {
        let judged = places.around(&prefix).and_then(|(_, profile)| profile.as_ref());
        let both = match holders.around(&prefix) {
            None => judged.map(Arc::clone),
            Some((held, holder)) => {
                let keeps = desired.peers.get(holder).is_some_and(|it| it.contains(&held));
                let wanted_holder = wanted_holders.around(&prefix).map(|(_, holder)| holder);
                let stays = keeps && wanted_holder == Some(holder);
                let wanted = wanted.around(&prefix).map(|(_, profile)| *profile);
                judged.zip(wanted).filter(|_| stays).map(|(one, other)| meets.of(one, other))
            }
        };
        (prefix, both.unwrap_or_default())
    });
    let reach = reach.collect();
    Allowed { peers: present().filter_map(in_both).collect(), reach }
}

/// The steps that make the kernel what a [`meet`] allows. They only take away.
///
/// `ours` is the public part of the private key by which a link is known as this gateway's: peers of
/// any other link are left alone. A table whose fixed rules are not those of this version is not
/// changed. Prefixes that are taken keep a place that reaches nothing, and which a later plan
/// removes.
#[must_use]
pub fn narrow(meet: &Allowed, observed: &ObservedState, ours: PublicKey, cuts_flows: bool) -> Plan {
    if !is_ours(observed, ours) {
        return Plan::default();
    }
    let table = observed.firewall.as_ref().filter(|table| table.base().is_some());
    let change = table.map(|table| narrowing(meet, table)).filter(|change| !change.is_empty());
    let change = change.map(|change| Step::Firewall { phase: Phase::Revoke, change });
    Plan::new(change.into_iter().chain(taking(meet, observed, cuts_flows)).collect())
}

/// The steps that take from peers what the meet does not leave them.
fn taking(
    meet: &Allowed,
    observed: &ObservedState,
    cuts_flows: bool,
) -> impl Iterator<Item = Step> {
    let (mut taken, mut peers) = (BTreeSet::new(), Vec::new());
    for (key, peer) in &observed.peers {
        let Some(kept) = meet.peers.get(key) else {
            taken.extend(peer.allowed_ips.iter());
            peers.push(Step::RemovePeer { key: *key });
            continue;
        };
        let kept = kept.intersection(&peer.allowed_ips);
        if kept != peer.allowed_ips {
            taken.extend(peer.allowed_ips.difference(&kept).iter());
            peers.push(Step::NarrowPeer { key: *key, allowed_ips: kept });
        }
    }
    let cut = (cuts_flows && !taken.is_empty()).then_some(Step::CutFlows { prefixes: taken });
    cut.into_iter().chain(peers)
}

/// Whether a link is evidently the one of the private key whose public part is `ours`.
#[must_use]
pub fn is_ours(observed: &ObservedState, ours: PublicKey) -> bool {
    observed.interface.as_ref().is_some_and(|link| {
        link.public_key == Some(ours) && !matches!(link.owner, LinkOwner::Foreign(_))
    })
}

/// The withdrawals that the rows ask for while the whole that they ask for cannot be planned: peers
/// that they do not admit and that are not held, prefixes and reach that they do not grant.
///
/// Without a table that judges them, all packets of the link pass. Then the withdrawals begin with a
/// table that grants the peers that are there what the rows and the hold grant them. A table with the
/// rules of another version is replaced, because only the rules of this version can be narrowed.
#[must_use]
pub fn withdrawals(
    desired: &DesiredState,
    observed: &ObservedState,
    ours: PublicKey,
    held: &Held,
) -> Plan {
    let mut allowed = Allowed::from(desired);
    allowed.peers.extend(held.peers().iter().map(|(key, peer)| (*key, peer.allowed_ips())));
    allowed.reach.extend(held.reach().map(|(prefix, reach)| (*prefix, Arc::clone(reach))));
    let known = |link: &str, table: &ObservedFirewall| table.guards(link) && table.base().is_some();
    let unknown = observed.interface.as_ref().filter(|link| {
        let table = observed.firewall.as_ref();
        is_ours(observed, ours) && !table.is_some_and(|table| known(&link.name, table))
    });
    // A name that no table can guard holds up no withdrawal.
    let Some((link, interface)) =
        unknown.and_then(|link| Some((link, InterfaceName::from_str(&link.name).ok()?)))
    else {
        return narrow(&meet(&allowed, observed), observed, ours, desired.cuts_flows());
    };
    let base = FirewallBase { interface, ..desired.firewall().base.clone() };
    let former = observed.firewall.as_ref().filter(|table| table.guards(&link.name));
    let (met, changes) = match former {
        Some(table) => replacing(base, table, &allowed, observed),
        None => fencing(base, &allowed, observed),
    };
    let changes = changes.into_iter().map(|(phase, change)| Step::Firewall { phase, change });
    Plan::new(changes.chain(taking(&met, observed, desired.cuts_flows())).collect())
}

/// The table of this version in place of one that judges every packet by other rules, in one change.
///
/// A profile that cannot be read, because it was edited, counts as allowing what the rows allow.
fn replacing(
    base: FirewallBase,
    table: &ObservedFirewall,
    allowed: &Allowed,
    observed: &ObservedState,
) -> (Allowed, Vec<(Phase, FirewallChange)>) {
    let readable = |(place, profile): (IpNet, Option<Arc<Profile>>)| {
        let is_closed = table.assignments().get(&place) == Some(&ProfileId::NOTHING);
        let unread = || allowed.reach.get(&place).filter(|_| !is_closed).cloned();
        (place, profile.or_else(unread))
    };
    let met = meet_within(allowed, observed, places(observed).map(readable).collect());
    let change = firewall::load(&base, table, &narrowing(&met, table));
    (met, vec![(Phase::Revoke, change)])
}

/// The table where none judges packets, with what the rows allow of what is there.
fn fencing(
    base: FirewallBase,
    allowed: &Allowed,
    observed: &ObservedState,
) -> (Allowed, Vec<(Phase, FirewallChange)>) {
    let all = allowed.reach.iter().map(|(prefix, profile)| (*prefix, Some(Arc::clone(profile))));
    let met = meet_within(allowed, observed, all.collect());
    let wanted = DesiredFirewall { base, assignments: met.reach.clone() };
    let nothing = BTreeSet::new();
    let fence = firewall::diff(&wanted, None, None, &nothing, &nothing);
    (met, fence.into_changes().collect())
}

/// The steps that take every peer but those that `stay` from a link of this gateway, without a single
/// row. Nothing else is touched.
#[must_use]
pub fn withdraw(
    observed: &ObservedState,
    ours: PublicKey,
    stay: &BTreeSet<PublicKey>,
    cuts_flows: bool,
) -> Plan {
    let staying = observed.peers.iter().filter(|(key, _)| stay.contains(*key));
    let reach = places(observed).filter_map(|(place, profile)| Some((place, profile?)));
    let allowed = Allowed {
        peers: staying.map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect(),
        reach: reach.collect(),
    };
    narrow(&meet(&allowed, observed), observed, ours, cuts_flows)
}

/// The change after which every place of this table reaches what both it and another one allow. What has no
/// place in the other reaches nothing: the place around it there is another peer's.
pub(super) fn narrowing_to(other: &ObservedFirewall, table: &ObservedFirewall) -> FirewallChange {
    let mut meets = Meets::default();
    let mut both = |prefix: &IpNet| {
        let reaches = table.profile_of(prefix)?;
        Some(meets.of(reaches, other.profile_of(prefix)?))
    };
    let places = table.assignments();
    let new = other.assignments().keys().filter(|prefix| !places.contains_key(prefix));
    // What is new within the place of another peer reaches nothing, rather than what that peer does.
    let within = new.filter(|prefix| prefixes_around(**prefix).any(|it| places.contains_key(&it)));
    let within: Vec<_> = within.map(|prefix| (*prefix, Arc::default())).collect();
    let reach = places.keys().map(|prefix| (*prefix, both(prefix).unwrap_or_default()));
    let reach = reach.chain(within).collect();
    narrowing(&Allowed { peers: BTreeMap::new(), reach }, table)
}

/// The change after which every address reaches what the meet says.
fn narrowing(meet: &Allowed, table: &ObservedFirewall) -> FirewallChange {
    let mut change = FirewallChange::default();
    let reach = Longest::of(meet.reach.iter().map(|(prefix, profile)| (*prefix, profile)));
    let (mut free, mut new) = (table.free_ids(), HashMap::<&Profile, ProfileId>::new());
    let nothing = Profile::default();
    for (prefix, wanted) in &meet.reach {
        // Without a place of its own it reaches what the prefix around it will reach.
        let reaches = match table.assignments().get(prefix) {
            Some(_) => table.profile_of(prefix).map_or(&nothing, |profile| profile),
            None => reach.shorter(prefix).map_or(&nothing, |(_, profile)| profile),
        };
        if reaches == &**wanted {
            continue;
        }
        let id = if **wanted == nothing {
            Some(ProfileId::NOTHING)
        } else {
            table.id_of(wanted).or_else(|| new.get(&**wanted).copied()).or_else(|| {
                let id = free.next()?;
                change.put_profiles.insert(id, (true, Arc::clone(wanted)));
                new.insert(wanted, id);
                Some(id)
            })
        };
        // Out of numbers, which takes 4 billion profiles: denied.
        change.assign.insert(*prefix, id.unwrap_or(ProfileId::NOTHING));
    }
    change
}

fn holders<'a>(
    peers: impl Iterator<Item = (&'a PublicKey, &'a AllowedIps)>,
) -> impl Iterator<Item = (IpNet, PublicKey)> {
    peers.flat_map(|(key, prefixes)| prefixes.iter().map(|prefix| (prefix, *key)))
}

/// Prefixes with values, found by the longest prefix. They have few lengths, and one look into the
/// map is made for each.
struct Longest<T> {
    map: BTreeMap<IpNet, T>,
    /// From the longest.
    lengths4: Vec<u8>,
    lengths6: Vec<u8>,
}

impl<T> Longest<T> {
    fn of(prefixes: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let map: BTreeMap<IpNet, T> = prefixes.into_iter().collect();
        let lengths = |v4: bool| {
            let family = map.keys().filter(|prefix| prefix.addr().is_ipv4() == v4);
            let lengths: BTreeSet<u8> = family.map(IpNet::prefix_len).collect();
            lengths.into_iter().rev().collect()
        };
        Self { lengths4: lengths(true), lengths6: lengths(false), map }
    }

    /// The longest prefix that contains this one, which may be itself.
    fn around(&self, prefix: &IpNet) -> Option<(IpNet, &T)> {
        self.find(prefix, |len| len <= prefix.prefix_len())
    }

    /// The longest prefix around this one that is not itself.
    fn shorter(&self, prefix: &IpNet) -> Option<(IpNet, &T)> {
        self.find(prefix, |len| len < prefix.prefix_len())
    }

    fn find(&self, prefix: &IpNet, suits: impl Fn(u8) -> bool) -> Option<(IpNet, &T)> {
        let lengths = if prefix.addr().is_ipv4() { &self.lengths4 } else { &self.lengths6 };
        lengths.iter().filter(|len| suits(**len)).find_map(|len| {
            let around = IpNet::new(prefix.addr(), *len).ok()?.trunc();
            Some((around, self.map.get(&around)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FixedRules, Peer};

    #[test]
    fn what_the_rows_give_to_another_inside_a_kept_prefix_reaches_nothing() {
        let [site, inner]: [IpNet; 2] =
            ["192.168.0.0/23", "192.168.0.0/24"].map(|text| text.parse().unwrap());
        let [one, other] = [1, 2].map(|number| PublicKey::from_bytes([number; 32]).unwrap());
        let server = Box::from(["10.0.0.53".parse().unwrap()]);
        let profile = Arc::new(Profile { dns_servers: server, ..Profile::default() });
        let profiles = BTreeMap::from([(ProfileId(1), Arc::clone(&profile))]);
        let places = BTreeMap::from([(site, ProfileId(1))]);
        let peer = Peer { allowed_ips: AllowedIps::from_iter([site]), ..Peer::default() };
        let observed = ObservedState {
            peers: [(one, peer)].into(),
            firewall: Some(ObservedFirewall::new(FixedRules::Open, profiles, places)),
            ..ObservedState::default()
        };
        let prefixes = |prefix| AllowedIps::from_iter([prefix]);
        let desired = Allowed {
            peers: [(one, prefixes(site)), (other, prefixes(inner))].into(),
            reach: [site, inner].map(|prefix| (prefix, Arc::clone(&profile))).into(),
        };
        let met = meet(&desired, &observed);
        assert_eq!(met.peers, [(one, prefixes(site))].into());
        assert_eq!(met.reach, [(site, profile), (inner, Arc::default())].into());
    }
}
