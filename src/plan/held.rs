//! Peers whose removal is held back: no row admits them, and they keep what they have for now.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{
    AllowedIps, DesiredFirewall, DesiredState, ObservedState, Peer, Profile, PublicKey,
};

/// Peers in the kernel whose removal is held back. Everything else is planned around them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    peers: BTreeSet<PublicKey>,
    /// What each of their prefixes could reach when they were first held. They get it back if the
    /// firewall is flushed in the meantime.
    reach: BTreeMap<IpNet, Arc<Profile>>,
}

impl Held {
    /// Holds these peers with what they have, and with what `before` knows of their prefixes.
    #[must_use]
    pub fn of(peers: BTreeSet<PublicKey>, observed: &ObservedState, before: &Self) -> Self {
        let held = peers.iter().filter_map(|key| observed.peers.get(key));
        let table = observed.firewall.as_ref();
        let reach = held.flat_map(|peer| peer.allowed_ips.iter()).map(|prefix| {
            let present = || table.and_then(|table| table.profile_of(&prefix));
            let known = before.reach.get(&prefix).or_else(present);
            // Unknown: nothing, rather than what a prefix around it may reach.
            (prefix, known.cloned().unwrap_or_default())
        });
        Self { reach: reach.collect(), peers }
    }

    #[must_use]
    pub const fn peers(&self) -> &BTreeSet<PublicKey> {
        &self.peers
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// A desired peer without the prefixes that held peers still have: the kernel would move them.
    pub(super) fn spare<'a>(&self, wanted: &'a Peer) -> Cow<'a, Peer> {
        let taken = |prefix: &IpNet| self.reach.contains_key(prefix);
        if self.is_empty() || !wanted.allowed_ips.as_slice().iter().any(taken) {
            return Cow::Borrowed(wanted);
        }
        let left: AllowedIps = wanted.allowed_ips.iter().filter(|prefix| !taken(prefix)).collect();
        Cow::Owned(Peer { allowed_ips: left, ..wanted.clone() })
    }

    /// The desired firewall, with what held prefixes may reach.
    pub(super) fn firewall<'a>(&self, desired: &'a DesiredState) -> Cow<'a, DesiredFirewall> {
        let mut firewall = Cow::Borrowed(desired.firewall());
        if !self.is_empty() {
            let reach = self.reach.iter().map(|(prefix, profile)| (*prefix, Arc::clone(profile)));
            firewall.to_mut().assignments.extend(reach);
        }
        firewall
    }

    /// The desired routes, and those to held prefixes.
    pub(super) fn routes<'a>(&self, desired: &'a DesiredState) -> Cow<'a, BTreeSet<IpNet>> {
        if self.is_empty() {
            Cow::Borrowed(desired.routes())
        } else {
            Cow::Owned(desired.routes_with(self.reach.keys().copied()))
        }
    }
}
