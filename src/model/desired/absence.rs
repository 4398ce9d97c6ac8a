//! Why there is no peer for a key, and what its row still says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;
use ipnet::IpNet;
use uuid::Uuid;

use super::evaluate::listed_dns;
use super::{Departed, DesiredState, Entry, Ineligible, OwnStanding, Reason, Standing};
use crate::model::policy::Recipe;
use crate::model::{AllowedIps, DeviceId, KeyText, PeerId, PeerRow, Profile, PublicKey, UserId};

/// Why the rows admit no peer for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence<'a> {
    /// No row names the key.
    Gone {
        /// The rows are stale, and the peer had no session when they became so.
        suspended: bool,
    },
    /// A row names the key, and its device has no right to a tunnel.
    Barred(&'a PeerRow, Ineligible),
    /// A row names the key, and cannot be used.
    Quarantined(&'a PeerRow, &'a Reason),
    /// The rows admit it.
    Admitted,
}

/// Profiles of rows that are not admitted: many of them have the same policies.
#[derive(Debug, Default)]
pub struct Profiles(HashMap<Recipe, Arc<Profile>>);

impl DesiredState {
    /// Why the rows admit no peer for this key, where they admit none. Of several rows, one that is
    /// left out on purpose decides.
    #[must_use]
    pub fn absence(&self, key: &PublicKey) -> Absence<'_> {
        let holder = self.key_claims.holder(key).and_then(|id| self.entries.get(&id));
        if let Some(entry) = holder {
            return match entry.standing.public() {
                Standing::Quarantined(reason) => Absence::Quarantined(&entry.row, reason),
                _ => Absence::Admitted,
            };
        }
        let mut barred = None;
        for entry in self.barred_by(key) {
            let (absence, may_be_a_mistake) = match &entry.standing {
                OwnStanding::Ineligible(why) => {
                    (Absence::Barred(&entry.row, *why), why.is_deletion())
                }
                OwnStanding::Quarantined(reason) => {
                    (Absence::Quarantined(&entry.row, reason), reason.may_concern_many())
                }
                OwnStanding::Admitted(_) | OwnStanding::Contested(_) => continue,
            };
            if !may_be_a_mistake {
                return absence;
            }
            barred = Some(absence);
        }
        let suspended = self.admit_only.as_ref().is_some_and(|only| !only.contains(key));
        barred.unwrap_or(Absence::Gone { suspended })
    }

    /// As [`Self::absence`], of a peer that holds these prefixes. Where no row names its key, a row decides that
    /// assigns its address to another key and has no right to a tunnel: the key was replaced, and the row says
    /// what became of the device.
    #[must_use]
    pub fn absence_with(&self, key: &PublicKey, prefixes: &AllowedIps) -> Absence<'_> {
        let absence = self.absence(key);
        if absence != (Absence::Gone { suspended: false }) || self.barred_at.is_empty() {
            return absence;
        }
        let successors = prefixes.iter().flat_map(|prefix| self.barred_at(prefix));
        // One that is left out on purpose decides.
        successors
            .min_by_key(|(_, why)| why.is_deletion())
            .map_or(absence, |(row, why)| Absence::Barred(row, why))
    }

    /// The peers that are kept out although nothing else bars them.
    pub fn kept_out(&self) -> impl Iterator<Item = PublicKey> {
        self.kept_out_and(Ineligible::is_only_kept_out)
    }

    /// The peers that are kept out and have a right to a tunnel, whatever else bars them for now.
    pub fn kept_out_and_entitled(&self) -> impl Iterator<Item = PublicKey> {
        self.kept_out_and(Ineligible::is_entitled)
    }

    fn kept_out_and(&self, is: fn(&Ineligible) -> bool) -> impl Iterator<Item = PublicKey> {
        let keys = self.kept_out.iter();
        keys.filter(move |key| self.barred_by(key).any(|entry| entry.is_barred_and(is))).copied()
    }

    /// Whether the rows admit a peer for this key: it is there, or this host alone bars this device.
    #[must_use]
    pub fn rows_admit(&self, key: &PublicKey, device_id: DeviceId) -> bool {
        let by_host_alone = |entry: &Entry| {
            entry.row.device_id == device_id && entry.is_barred_and(Ineligible::is_by_host_alone)
        };
        self.peers.contains_key(key) || self.barred_by(key).any(by_host_alone)
    }

    /// Whether this row admits a peer for this key, and this host alone bars it.
    #[must_use]
    pub fn is_barred_by_host_alone(&self, key: &PublicKey, id: PeerId) -> bool {
        let entry = self.entries.get(&id).filter(|_| self.barred.contains(&(*key, id)));
        entry.is_some_and(|entry| entry.is_barred_and(Ineligible::is_by_host_alone))
    }

    /// The rows that have a right to a tunnel for a key, whatever else bars the peer. Of several rows for
    /// a key, the one that is admitted comes last.
    pub fn entitled(&self) -> impl Iterator<Item = (PublicKey, &PeerRow)> {
        let barred = self.barred.iter().filter_map(|(key, id)| Some((*key, self.entries.get(id)?)));
        let entitled = barred.filter(|(_, entry)| entry.is_barred_and(Ineligible::is_entitled));
        let admitted = self.peers.keys().filter_map(|key| Some((*key, self.row_of(key)?)));
        entitled.map(|(key, entry)| (key, &entry.row)).chain(admitted)
    }

    /// The devices and users of these ids that have no right to a tunnel, by the keys that their rows name.
    #[must_use]
    pub fn withdrawn(&self, ids: &BTreeSet<Uuid>) -> BTreeMap<PublicKey, Departed> {
        let peers = ids.iter().flat_map(|id| {
            let of_user = self.peers_of_user(UserId(*id));
            self.peers_of_device(DeviceId(*id)).into_iter().chain(of_user)
        });
        let entries = peers.filter_map(|id| self.entries.get(&id));
        let withdrawn = entries.filter(|entry| entry.is_barred_and(|why| !why.is_entitled()));
        let named = withdrawn.filter_map(|Entry { row, standing }| {
            Some((barred_key(row, standing)?, Departed::from(row)))
        });
        named.collect()
    }

    /// The rows that name a key without being candidates for it.
    fn barred_by(&self, key: &PublicKey) -> impl Iterator<Item = &Entry> {
        peers_at(&self.barred, *key).filter_map(|id| self.entries.get(&id))
    }

    /// The rows that are not eligible and assign this address.
    fn barred_at(&self, address: IpNet) -> impl Iterator<Item = (&PeerRow, Ineligible)> {
        peers_at(&self.barred_at, address).filter_map(|id| match self.entries.get(&id)? {
            Entry { row, standing: OwnStanding::Ineligible(why) } => Some((row, *why)),
            Entry { .. } => None,
        })
    }

    /// Whether the host's block list bars a peer that holds these prefixes.
    #[must_use]
    pub fn blocks(&self, key: &PublicKey, prefixes: &AllowedIps) -> bool {
        self.block_list.bars_peer(key, prefixes)
    }

    /// The prefixes that a row asks for, whether or not its device has a right to a tunnel.
    #[must_use]
    pub fn prefixes_of(&self, row: &PeerRow) -> AllowedIps {
        self.context().asked_prefixes(row)
    }

    /// The destinations that the policies let a row's device reach, whether or not it has a right to a tunnel.
    #[must_use]
    pub fn reach_of(&self, row: &PeerRow, known: &mut Profiles) -> Arc<Profile> {
        let dns_servers = listed_dns(&self.gateway_dns, row);
        let recipe = self.book.recipe(row.user_id, row.device_id, &dns_servers);
        if let Some(profile) = known.0.get(&recipe) {
            return Arc::clone(profile);
        }
        let profile = self.book.made(row.user_id, row.device_id, &recipe);
        known.0.insert(recipe, Arc::clone(&profile));
        profile
    }
}

/// The peers that an index has at a key.
pub(super) fn peers_at<K: Ord + Copy>(
    index: &BTreeSet<(K, PeerId)>,
    key: K,
) -> impl Iterator<Item = PeerId> {
    let (first, last) = (PeerId(Uuid::nil()), PeerId(Uuid::max()));
    index.range((key, first)..=(key, last)).map(|(_, id)| *id)
}

/// The key that a row names without being a candidate for it.
pub(super) fn barred_key(row: &PeerRow, standing: &OwnStanding) -> Option<PublicKey> {
    match (&row.public_key, standing) {
        (KeyText::Key(key), OwnStanding::Ineligible(_) | OwnStanding::Quarantined(_)) => Some(*key),
        _ => None,
    }
}
