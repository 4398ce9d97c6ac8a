//! Packets worth trying, and which of them pass.
//!
//! A packet passes when the device takes it and the firewall lets it through. WireGuard takes it
//! when the longest allowed prefix around its source is its sender's; the firewall, when the longest
//! assigned prefix around its source has a profile that allows its destination. Without a table, or
//! with one that guards another interface, everything that the device takes passes.
//!
//! Every packet that passes opens a flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use gatepost::model::{
    Address, DesiredState, ObservedFirewall, ObservedState, Peer, Profile, PublicKey, Ranges,
};
use gatepost::plan::ModelKernel;
use ipnet::IpNet;

/// A packet as far as anybody judges it: who sent it, from which address, to which, and whether it
/// is a question to a DNS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub sender: PublicKey,
    pub source: IpAddr,
    pub destination: IpAddr,
    dns: bool,
}

/// The longest of these prefixes around an address, with what stands beside it.
fn longest<T>(prefixes: impl IntoIterator<Item = (IpNet, T)>, address: IpAddr) -> Option<T> {
    let around = prefixes.into_iter().filter(|(prefix, _)| prefix.contains(&address));
    around.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, beside)| beside)
}

pub fn sender(peers: &BTreeMap<PublicKey, Peer>, source: IpAddr) -> Option<PublicKey> {
    holding(peers, source).map(|(_, key)| key)
}

/// The peer that holds an address, and its prefix around it.
pub fn holding(peers: &BTreeMap<PublicKey, Peer>, address: IpAddr) -> Option<(IpNet, PublicKey)> {
    let held = peers.iter().flat_map(|(key, peer)| {
        peer.allowed_ips.iter().map(move |prefix| (prefix, (prefix, *key)))
    });
    longest(held, address)
}

pub fn lets_through(profile: &Profile, destination: IpAddr, dns: bool) -> bool {
    profile.allows(destination) || dns && profile.dns_servers.contains(&destination)
}

/// By which place packets from an address should be judged.
pub fn judged_by(desired: &DesiredState, source: IpAddr) -> Option<(&IpNet, &Arc<Profile>)> {
    let assigned = desired.firewall().assignments.iter();
    longest(assigned.map(|(prefix, profile)| (*prefix, (prefix, profile))), source)
}

/// What the packets from one address may reach.
enum Reach<'a> {
    Everything,
    Of(Option<&'a Arc<Profile>>),
}

/// Everything worth trying: from the edges of every prefix to the edges of every range that either
/// state knows. Between two neighbouring edges nothing differs.
pub struct Probes {
    sources: BTreeSet<IpAddr>,
    destinations: BTreeSet<IpAddr>,
}

impl Probes {
    pub fn of<const N: usize>(states: [&DesiredState; N]) -> Self {
        let mut probes = Self { sources: BTreeSet::new(), destinations: BTreeSet::new() };
        for firewall in states.map(DesiredState::firewall) {
            for (prefix, profile) in &firewall.assignments {
                probes.sources.extend(edges_of_prefix(*prefix));
                edges_of_ranges(&profile.allow4, &mut probes.destinations);
                edges_of_ranges(&profile.allow6, &mut probes.destinations);
                probes.destinations.extend(&profile.dns_servers);
            }
        }
        probes
    }

    /// What passes in the kernel as it is.
    pub fn passing(&self, state: &ObservedState, firewall: &Filter) -> BTreeSet<Packet> {
        if !state.interface.as_ref().is_some_and(|link| link.up) {
            return BTreeSet::new();
        }
        self.let_through(&state.peers, |source| match firewall {
            Filter::Missing => Reach::Everything,
            Filter::Table(table) => {
                let judged_by = table.judged_by(source);
                Reach::Of(judged_by.and_then(|(_, id)| table.profiles().get(&id)))
            }
        })
    }

    /// What the rows of a database allow.
    pub fn allowed_by(&self, desired: &DesiredState) -> BTreeSet<Packet> {
        let assignments = &desired.firewall().assignments;
        self.let_through(desired.peers(), |source| {
            let places = assignments.iter().map(|(prefix, profile)| (*prefix, profile));
            Reach::Of(longest(places, source))
        })
    }

    fn let_through<'a>(
        &self,
        peers: &BTreeMap<PublicKey, Peer>,
        reach: impl Fn(IpAddr) -> Reach<'a>,
    ) -> BTreeSet<Packet> {
        let mut passed = BTreeSet::new();
        for source in &self.sources {
            let Some(sender) = sender(peers, *source) else { continue };
            let profile = match reach(*source) {
                Reach::Of(None) => continue,
                Reach::Of(Some(profile)) => Some(profile),
                Reach::Everything => None,
            };
            for destination in &self.destinations {
                for dns in [false, true] {
                    if profile.is_none_or(|profile| lets_through(profile, *destination, dns)) {
                        let (source, destination) = (*source, *destination);
                        passed.insert(Packet { sender, source, destination, dns });
                    }
                }
            }
        }
        passed
    }
}

pub enum Filter {
    Missing,
    Table(ObservedFirewall),
}

impl Filter {
    pub fn of(state: &ObservedState, desired: &DesiredState) -> Self {
        let ours = &desired.firewall().base.interface;
        match &state.firewall {
            Some(table) if table.guards(ours.as_str()) => Self::Table(table.clone()),
            _ => Self::Missing,
        }
    }
}

impl Filter {
    /// What judges the packets of the link that is there, whatever its name.
    pub fn of_link(state: &ObservedState) -> Self {
        let link = state.interface.as_ref();
        match &state.firewall {
            Some(table) if link.is_some_and(|link| table.guards(&link.name)) => {
                Self::Table(table.clone())
            }
            _ => Self::Missing,
        }
    }
}

fn edges_of_prefix(prefix: IpNet) -> Vec<IpAddr> {
    match prefix {
        IpNet::V4(net) => around::<u32>(net.network().into(), net.broadcast().into()),
        IpNet::V6(net) => around::<u128>(net.network().into(), net.broadcast().into()),
    }
}

fn edges_of_ranges<T: Address>(ranges: &Ranges<T>, edges: &mut BTreeSet<IpAddr>) {
    edges.extend(ranges.as_slice().iter().flat_map(|(first, last)| around(*first, *last)));
}

fn around<T: Address>(first: T, last: T) -> Vec<IpAddr> {
    [first.previous(), Some(first), Some(last), last.next()]
        .into_iter()
        .flatten()
        .map(Address::to_ip)
        .collect()
}

/// What passes now. Each of these packets opens a flow.
pub fn send_all(
    kernel: &mut ModelKernel,
    probes: &Probes,
    desired: &DesiredState,
) -> BTreeSet<Packet> {
    let passing = probes.passing(&kernel.state, &Filter::of(&kernel.state, desired));
    kernel.flows.extend(passing.iter().map(|packet| (packet.source, packet.sender)));
    passing
}
