//! Why there is no peer for a key, and what its row still says.

use std::sync::Arc;

use foldhash::HashMap;

use super::evaluate::listed_dns;
use super::{DesiredState, Ineligible, OwnStanding};
use crate::model::policy::Recipe;
use crate::model::{AllowedIps, KeyText, PeerId, PeerRow, Profile, PublicKey};

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
    Quarantined,
}

/// Profiles of rows that are not admitted: many of them have the same policies.
#[derive(Debug, Default)]
pub struct Profiles(HashMap<Recipe, Arc<Profile>>);

impl DesiredState {
    /// Why the rows admit no peer for this key, where they admit none. Of several rows, one that is
    /// no mere deletion decides.
    #[must_use]
    pub fn absence(&self, key: &PublicKey) -> Absence<'_> {
        if self.key_claims.holder(key).is_some() {
            return Absence::Quarantined;
        }
        let (first, last) = (PeerId(uuid::Uuid::nil()), PeerId(uuid::Uuid::max()));
        let named = self.barred.range((*key, first)..=(*key, last));
        let mut barred = None;
        for entry in named.filter_map(|(_, id)| self.entries.get(id)) {
            match &entry.standing {
                OwnStanding::Ineligible(why) if why.is_deletion() => {
                    barred = Some(Absence::Barred(&entry.row, *why));
                }
                OwnStanding::Ineligible(why) => return Absence::Barred(&entry.row, *why),
                _ => return Absence::Quarantined,
            }
        }
        let suspended = self.admit_only.as_ref().is_some_and(|only| !only.contains(key));
        barred.unwrap_or(Absence::Gone { suspended })
    }

    /// Whether the host's block list bars a peer that holds these prefixes.
    #[must_use]
    pub fn blocks(&self, key: &PublicKey, prefixes: &AllowedIps) -> bool {
        self.block_list.bars_peer(key, prefixes)
    }

    /// The prefixes that a row gives its peer, whether or not its device has a right to a tunnel.
    #[must_use]
    pub fn prefixes_of(&self, row: &PeerRow) -> AllowedIps {
        self.context().prefixes(row).unwrap_or_default()
    }

    /// What the policies let a row's device reach, whether or not it has a right to a tunnel.
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

/// The key that a row names without being a candidate for it.
pub(super) fn barred_key(row: &PeerRow, standing: &OwnStanding) -> Option<PublicKey> {
    match (&row.public_key, standing) {
        (KeyText::Key(key), OwnStanding::Ineligible(_) | OwnStanding::Quarantined(_)) => Some(*key),
        _ => None,
    }
}
