//! Which packets pass, and which the rows allow: from the edges of every prefix to every network that
//! a policy may name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use gatepost::model::{DesiredState, ObservedState, Peer, Profile, PublicKey};
use ipnet::IpNet;

use super::plain::Plain;
use super::tables::DEVICES;

/// What passes: from the source of this number, sent by this peer, to the destinations whose bits are
/// set. A second bit for each destination stands for a question to a DNS server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach(BTreeMap<(usize, PublicKey), u32>);

struct Probes {
    sources: Vec<IpAddr>,
    destinations: Vec<IpAddr>,
}

fn probes() -> &'static Probes {
    static PROBES: OnceLock<Probes> = OnceLock::new();
    PROBES.get_or_init(|| {
        let parse = |text: &str| text.parse().unwrap();
        let mut sources: Vec<IpAddr> =
            (1..=DEVICES).map(|number| parse(&format!("10.64.0.{}", number + 1))).collect();
        sources.extend(["192.168.0.1", "192.168.1.1", "10.64.0.200"].map(parse));
        sources.extend(["fd20:0:0:1::1", "fd20:0:0:2::1"].map(parse));
        let destinations = [
            "172.16.0.1",
            "172.16.1.1",
            "172.16.9.1",
            "10.64.0.77",
            "10.0.0.53",
            "9.9.9.9",
            "fd30:0:1::1",
            "fd30:0:9::1",
            "fd31::1",
        ];
        Probes { sources, destinations: destinations.map(parse).to_vec() }
    })
}

fn longest<T>(prefixes: impl Iterator<Item = (IpNet, T)>, address: IpAddr) -> Option<T> {
    let around = prefixes.filter(|(prefix, _)| prefix.contains(&address));
    around.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, beside)| beside)
}

fn sender(peers: &BTreeMap<PublicKey, Peer>, source: IpAddr) -> Option<PublicKey> {
    let held = peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(|net| (net, *key)));
    longest(held, source)
}

fn bits(profile: &Profile) -> u32 {
    let destinations = probes().destinations.iter().enumerate();
    destinations.fold(0, |bits, (number, destination)| {
        let plain = u32::from(profile.allows(*destination));
        let asks = plain | u32::from(profile.dns_servers.contains(destination));
        bits | plain << (2 * number) | asks << (2 * number + 1)
    })
}

/// The destinations of these bits, and whether each is a question to a DNS server.
fn asked(bits: u32) -> impl Iterator<Item = (IpAddr, bool)> {
    let destinations = probes().destinations.iter().enumerate();
    destinations.flat_map(move |(number, destination)| {
        let plain = (bits >> (2 * number) & 1 == 1).then_some((*destination, false));
        let asks = (bits >> (2 * number + 1) & 1 == 1).then_some((*destination, true));
        plain.into_iter().chain(asks)
    })
}

/// Whether a table judges what comes from the link that is there.
pub fn is_judged(state: &ObservedState) -> bool {
    let link = state.interface.as_ref();
    let table = state.firewall.as_ref();
    link.is_none_or(|link| table.is_some_and(|table| table.guards(&link.name)))
}

impl Reach {
    /// What passes in the kernel as it is.
    pub fn of_kernel(state: &ObservedState) -> Self {
        if state.interface.as_ref().is_some_and(|link| link.up) {
            Self::behind_the_link(state)
        } else {
            Self::default()
        }
    }

    /// What passes once the link is up.
    pub fn behind_the_link(state: &ObservedState) -> Self {
        let table = state.firewall.as_ref().filter(|_| is_judged(state));
        Self::of_peers(&state.peers, |source| match table {
            None => u32::MAX,
            Some(table) => {
                let judged_by = table.judged_by(source);
                let profile = judged_by.and_then(|(_, id)| table.profiles().get(&id));
                profile.map_or(0, |profile| bits(profile))
            }
        })
    }

    /// What rows allow.
    pub fn of_rows(desired: &DesiredState) -> Self {
        let assignments = &desired.firewall().assignments;
        Self::of_peers(desired.peers(), |source| {
            let places = assignments.iter().map(|(prefix, profile)| (*prefix, profile));
            longest(places, source).map_or(0, |profile: &Arc<Profile>| bits(profile))
        })
    }

    fn of_peers(peers: &BTreeMap<PublicKey, Peer>, reach: impl Fn(IpAddr) -> u32) -> Self {
        let mut passing = BTreeMap::new();
        for (number, source) in probes().sources.iter().enumerate() {
            let Some(sender) = sender(peers, *source) else { continue };
            let bits = reach(*source);
            if bits != 0 {
                passing.insert((number, sender), bits);
            }
        }
        Self(passing)
    }

    /// # Panics
    /// If anything passes that no row allows.
    pub fn must_lie_within(&self, plain: &Plain<'_>) {
        for ((number, sender), bits) in &self.0 {
            let source = probes().sources[*number];
            for (destination, is_question) in asked(*bits) {
                assert!(
                    plain.may_pass(*sender, source, destination, is_question),
                    "no row lets {sender} send from {source} to {destination}"
                );
            }
        }
    }

    /// # Panics
    /// If anything is denied that a row allows with which no other contends.
    pub fn must_contain(&self, plain: &Plain<'_>) {
        for (number, source) in probes().sources.iter().enumerate() {
            let passing = self.0.iter().filter(|((from, _), _)| *from == number);
            let passing = passing.fold(0, |all, (_, bits)| all | bits);
            for (destination, is_question) in asked(!passing) {
                assert!(
                    !plain.must_pass(*source, destination, is_question),
                    "a row lets a peer send from {source} to {destination}, and it may not"
                );
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What passes here and in none of the others.
    pub fn beyond(&self, others: &[&Self]) -> Self {
        let beyond = self.0.iter().map(|(key, bits)| {
            let allowed = others.iter().filter_map(|other| other.0.get(key));
            (*key, bits & !allowed.fold(0, |all, bits| all | bits))
        });
        Self(beyond.filter(|(_, bits)| *bits != 0).collect())
    }

    /// Without what these peers send.
    pub fn without(mut self, senders: &BTreeSet<PublicKey>) -> Self {
        self.0.retain(|(_, sender), _| !senders.contains(sender));
        self
    }

    /// The flows that these packets open: from which address, by whom.
    pub fn flows(&self) -> impl Iterator<Item = (IpAddr, PublicKey)> + '_ {
        self.0.keys().map(|(number, sender)| (probes().sources[*number], *sender))
    }
}

/// Who has an address now.
pub fn holder(state: &ObservedState, source: IpAddr) -> Option<PublicKey> {
    sender(&state.peers, source)
}
