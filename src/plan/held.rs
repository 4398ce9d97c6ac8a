//! Peers whose removal is held back: they keep the meet of what the kernel holds and what the rows
//! still say of them.

pub(super) mod keeper;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::meets::Meets;
use crate::model::{AllowedIps, DesiredState, Ineligible, Peer, Profile, PublicKey, Reason};

/// Peers in the kernel whose removal is held back. Everything else is planned around them.
///
/// However many they are, holding one more and asking about one prefix cost no look at the others.
#[derive(Debug, Clone, Default)]
pub struct Held {
    peers: BTreeMap<PublicKey, HeldPeer>,
    /// The peer that keeps each prefix.
    keepers: BTreeMap<IpNet, PublicKey>,
    /// The prefixes that need a route of their own.
    outside: BTreeSet<IpNet>,
    /// Those of whom it is not known what they keep: the next plan finds it out.
    unknown: BTreeSet<PublicKey>,
    /// How many have a row that cannot be used.
    unusable: usize,
    /// How many have no row.
    gone: usize,
    /// How many were barred while they are held.
    barred: usize,
    /// How often a peer was held that was not held before.
    arrivals: u64,
    /// How often a held peer was barred that was not barred before.
    barrings: u64,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.peers == other.peers
    }
}

/// A peer that the rows do not admit, and that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPeer {
    /// The prefixes that it keeps, at least one, and what they may reach. They get it back if the
    /// firewall is flushed in the meantime.
    keeps: BTreeMap<IpNet, Arc<Profile>>,
    cause: HeldCause,
    /// Whether its own row, or what is known of its device without one, barred it last while it is held. That
    /// removal waits, also once the row is gone or back.
    was_barred: bool,
    /// The database's time of the rows from which on it was held.
    since: SystemTime,
}

/// Why the rows do not admit a peer that is held. One mistake may do that to many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldCause {
    /// No row names its key.
    Gone,
    /// Its device or user is deleted, or the user is not active.
    Barred(Ineligible),
    /// Its row cannot be used.
    Unusable(Reason),
}

impl fmt::Display for HeldCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("its row is gone"),
            Self::Barred(why) => why.fmt(f),
            Self::Unusable(reason) => reason.fmt(f),
        }
    }
}

impl HeldPeer {
    #[must_use]
    pub const fn cause(&self) -> &HeldCause {
        &self.cause
    }

    #[must_use]
    pub const fn since(&self) -> SystemTime {
        self.since
    }

    /// Whether packets from a prefix that it keeps may reach this address on every port.
    #[must_use]
    pub fn allows(&self, prefix: &IpNet, destination: IpAddr) -> bool {
        self.keeps.get(prefix).is_some_and(|profile| profile.allows(destination))
    }

    /// Whether its own row, or what is known of its device without one, barred it last while it is held.
    #[must_use]
    pub const fn was_barred(&self) -> bool {
        self.was_barred
    }

    pub(super) const fn is_unusable(&self) -> bool {
        matches!(self.cause, HeldCause::Unusable(_))
    }

    /// Whether no row names it.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self.cause, HeldCause::Gone)
    }

    /// The desired state of a peer that the kernel holds as `present`.
    fn peer(&self, present: &Peer) -> Peer {
        Peer { allowed_ips: self.allowed_ips(), ..present.clone() }
    }

    /// A peer that no row names keeps no more than what is `granted` to it.
    pub(super) fn narrowed(mut self, granted: Option<&Arc<Profile>>, meets: &mut Meets) -> Self {
        if let Some(granted) = granted.filter(|_| self.is_gone()) {
            self.keeps.values_mut().for_each(|keeps| *keeps = meets.of(keeps, granted));
        }
        self
    }

    /// The DNS servers that it may ask whatever the policies say.
    #[must_use]
    pub fn dns_servers(&self) -> BTreeSet<IpAddr> {
        self.keeps.values().flat_map(|keeps| keeps.dns_servers.iter().copied()).collect()
    }

    /// The prefixes that it keeps.
    #[must_use]
    pub fn allowed_ips(&self) -> AllowedIps {
        self.keeps.keys().copied().collect()
    }
}

impl Held {
    /// Peers that an earlier run of the agent held, each since this time of the database, and which of them
    /// were `barred` meanwhile.
    #[must_use]
    pub fn recalled(
        since: impl IntoIterator<Item = (PublicKey, SystemTime)>,
        barred: &BTreeSet<PublicKey>,
    ) -> Self {
        let mut held = Self::default();
        for (key, since) in since {
            held.recall(key, since, barred.contains(&key));
        }
        held.count_new_since(&Self::default())
    }

    fn recall(&mut self, key: PublicKey, since: SystemTime, was_barred: bool) {
        let (keeps, cause) = (BTreeMap::new(), HeldCause::Gone);
        self.gone += 1;
        self.barred += usize::from(was_barred);
        self.peers.insert(key, HeldPeer { keeps, cause, was_barred, since });
        self.unknown.insert(key);
    }

    /// The peers that were held `before`, and no others. Of one that is not among these, it is not known
    /// what it keeps.
    #[must_use]
    pub fn of_those(self, before: &Self) -> Self {
        self.retain(|key, _| before.peers.contains_key(key)).with_those(before).counted_as(before)
    }

    /// Adds the peers that were held `before` and are missing here. What these keep is not known.
    #[must_use]
    pub fn with_those(mut self, before: &Self) -> Self {
        for (key, peer) in &before.peers {
            if !self.peers.contains_key(key) {
                self.recall(*key, peer.since, peer.was_barred);
            }
        }
        self
    }

    /// Keeps the peers that `rows` admit, and takes the counts from `held`.
    #[must_use]
    pub fn admitted_by(self, rows: &DesiredState, held: &Self) -> Self {
        if self.is_empty() {
            return self;
        }
        self.retain(|key, _| rows.peers().contains_key(key)).counted_as(held)
    }

    /// Counts the peers as arrivals that were not held `before`, and those as newly barred that were not barred
    /// then.
    #[must_use]
    pub(crate) fn count_new_since(self, before: &Self) -> Self {
        let (mut arrivals, mut barrings) = (before.arrivals, before.barrings);
        for (key, peer) in &self.peers {
            let former = before.peers.get(key);
            arrivals += u64::from(former.is_none());
            barrings += u64::from(peer.was_barred && !former.is_some_and(HeldPeer::was_barred));
        }
        Self { arrivals, barrings, ..self }
    }

    fn counted_as(self, other: &Self) -> Self {
        Self { arrivals: other.arrivals, barrings: other.barrings, ..self }
    }

    /// Narrows what peers without a row keep to what is `granted` to them.
    #[must_use]
    pub(crate) fn narrowed(mut self, granted: &BTreeMap<PublicKey, Arc<Profile>>) -> Self {
        let mut meets = Meets::default();
        for (key, granted) in granted {
            if let Some(peer) = self.peers.remove(key) {
                self.peers.insert(*key, peer.narrowed(Some(granted), &mut meets));
            }
        }
        self
    }

    /// The entries of `granted` that allow less than a peer without a row keeps.
    #[must_use]
    pub fn narrowing(
        &self,
        mut granted: BTreeMap<PublicKey, Arc<Profile>>,
    ) -> BTreeMap<PublicKey, Arc<Profile>> {
        let mut meets = Meets::default();
        granted.retain(|key, granted| {
            let gone = self.peers.get(key).filter(|peer| peer.is_gone());
            let mut keeps = gone.into_iter().flat_map(|peer| peer.keeps.values());
            keeps.any(|keeps| !Arc::ptr_eq(&meets.of(keeps, granted), keeps))
        });
        granted
    }

    /// Holds a peer that was not held before.
    pub(super) fn hold_anew(&mut self, key: PublicKey, peer: HeldPeer, desired: &DesiredState) {
        self.arrivals += 1;
        self.hold(key, peer, desired);
    }

    /// How often a peer was held that was not held before: a number that tells whether there are new
    /// ones.
    #[must_use]
    pub const fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Holds a peer, or what it keeps now.
    pub(super) fn hold(&mut self, key: PublicKey, peer: HeldPeer, desired: &DesiredState) {
        let was_barred = self.peers.get(&key).is_some_and(HeldPeer::was_barred);
        self.release(&key);
        for prefix in peer.keeps.keys() {
            self.keepers.insert(*prefix, key);
            if !desired.covers(prefix) {
                self.outside.insert(*prefix);
            }
        }
        self.unusable += usize::from(peer.is_unusable());
        self.gone += usize::from(peer.is_gone());
        self.barred += usize::from(peer.was_barred);
        self.barrings += u64::from(peer.was_barred && !was_barred);
        self.peers.insert(key, peer);
    }

    /// Holds a peer no more.
    pub(super) fn release(&mut self, key: &PublicKey) {
        let Some(peer) = self.peers.remove(key) else { return };
        for prefix in peer.keeps.keys() {
            self.keepers.remove(prefix);
            self.outside.remove(prefix);
        }
        self.unknown.remove(key);
        self.unusable -= usize::from(peer.is_unusable());
        self.gone -= usize::from(peer.is_gone());
        self.barred -= usize::from(peer.was_barred);
    }

    /// Holds only the peers for which this is true.
    #[must_use]
    pub(super) fn retain(mut self, stays: impl Fn(&PublicKey, &HeldPeer) -> bool) -> Self {
        let goes = self.peers.iter().filter(|(key, peer)| !stays(key, peer)).map(|(key, _)| *key);
        for key in goes.collect::<Vec<_>>() {
            self.release(&key);
        }
        self
    }

    #[must_use]
    pub const fn peers(&self) -> &BTreeMap<PublicKey, HeldPeer> {
        &self.peers
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The desired state of a held peer that is `present`; `None`: it is not held.
    pub(super) fn peer(&self, key: &PublicKey, present: Option<&Peer>) -> Option<Peer> {
        Some(self.peers.get(key)?.peer(present?))
    }

    pub(super) fn keeps(&self, key: &PublicKey, prefix: &IpNet) -> bool {
        self.keepers.get(prefix) == Some(key)
    }

    /// The held peer that keeps this prefix.
    pub(super) fn keeper(&self, prefix: &IpNet) -> Option<&PublicKey> {
        self.keepers.get(prefix)
    }

    /// Those of whom it is not known what they keep.
    pub(super) const fn unknown(&self) -> &BTreeSet<PublicKey> {
        &self.unknown
    }

    /// How many have a row that cannot be used.
    pub(super) const fn unusable(&self) -> usize {
        self.unusable
    }

    /// How many are named by no row.
    #[must_use]
    pub const fn gone(&self) -> usize {
        self.gone
    }

    /// How many were barred while they are held.
    #[must_use]
    pub const fn barred(&self) -> usize {
        self.barred
    }

    /// How often a held peer was barred that was not barred before: a number that tells whether there are newly
    /// barred ones.
    #[must_use]
    pub const fn barrings(&self) -> u64 {
        self.barrings
    }

    /// Those that were barred while they are held.
    pub fn were_barred(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.iter().filter(|(_, peer)| peer.was_barred).map(|(key, _)| key)
    }

    /// Remembers whether this peer was barred while it is held.
    pub(crate) fn set_barred(&mut self, key: &PublicKey, was_barred: bool) {
        let Some(peer) = self.peers.get_mut(key).filter(|it| it.was_barred != was_barred) else {
            return;
        };
        peer.was_barred = was_barred;
        match was_barred {
            true => (self.barred, self.barrings) = (self.barred + 1, self.barrings + 1),
            false => self.barred -= 1,
        }
    }

    /// Whether this peer is held and no row names it.
    #[must_use]
    pub fn is_without_row(&self, key: &PublicKey) -> bool {
        self.peers.get(key).is_some_and(HeldPeer::is_gone)
    }

    /// The peers that no row names.
    pub fn without_row(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.iter().filter(|(_, peer)| peer.is_gone()).map(|(key, _)| key)
    }

    /// The destinations of a prefix that a held peer keeps.
    pub(super) fn reach_of(&self, prefix: &IpNet) -> Option<&Arc<Profile>> {
        self.peers.get(self.keepers.get(prefix)?)?.keeps.get(prefix)
    }

    /// The destinations of the prefixes of held peers, in their order.
    pub fn reach(&self) -> impl Iterator<Item = (&IpNet, &Arc<Profile>)> {
        let reach = |(prefix, key)| Some((prefix, self.peers.get(key)?.keeps.get(prefix)?));
        self.keepers.iter().filter_map(reach)
    }

    /// The desired routes, and those to held prefixes.
    pub(super) fn routes<'a>(&self, desired: &'a DesiredState) -> Cow<'a, BTreeSet<IpNet>> {
        if self.outside.is_empty() {
            Cow::Borrowed(desired.routes())
        } else {
            Cow::Owned(desired.routes_with(self.outside.iter().copied()))
        }
    }
}
