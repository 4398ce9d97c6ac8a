//! What a peer keeps although the rows do not admit it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Held, HeldCause, HeldPeer};
use crate::model::{Absence, DesiredState, ObservedState, Profiles, PublicKey};
use crate::plan::meets::Meets;

impl Held {
    /// Holds those of these peers that may be missing from the rows by mistake, unless one would keep
    /// nothing: what a peer held `before`, it keeps until the rows take it.
    #[must_use]
    pub fn of(
        keys: impl IntoIterator<Item = PublicKey>,
        desired: &DesiredState,
        observed: &ObservedState,
        before: &Self,
    ) -> Self {
        let mut keeper = Keeper::new(desired, observed);
        let mut held = Self::default();
        for key in keys {
            if let Some(peer) = keeper.keep(&key, before) {
                held.hold(key, peer, desired);
            }
        }
        held
    }
}

/// Finds what each held peer keeps.
pub struct Keeper<'a> {
    desired: &'a DesiredState,
    observed: &'a ObservedState,
    profiles: Profiles,
    meets: Meets,
}

impl<'a> Keeper<'a> {
    pub fn new(desired: &'a DesiredState, observed: &'a ObservedState) -> Self {
        Self { desired, observed, profiles: Profiles::default(), meets: Meets::default() }
    }

    /// The state that a peer keeps although it may be missing from the rows by mistake.
    pub fn keep(&mut self, key: &PublicKey, before: &Held) -> Option<HeldPeer> {
        let Self { desired, observed, profiles, meets } = self;
        let present = observed.peers.get(key)?;
        if desired.blocks(key, &present.allowed_ips) {
            return None;
        }
        let (cause, row) = match desired.absence_with(key, &present.allowed_ips) {
            Absence::Gone { suspended: false } => (HeldCause::Gone, None),
            Absence::Barred(row, why) if why.is_deletion() => (HeldCause::Barred(why), Some(row)),
            Absence::Quarantined(row, reason) if reason.may_concern_many() => {
                (HeldCause::Unusable(reason.clone()), Some(row))
            }
            _ => return None,
        };
        let said = row.map(|row| (desired.prefixes_of(row), desired.reach_of(row, profiles)));
        let before = before.peers.get(key);
        let table = observed.firewall.as_ref();
        let mut keeps = BTreeMap::new();
        for prefix in present.allowed_ips.iter() {
            let gives = said.as_ref().is_none_or(|(prefixes, _)| prefixes.contains(&prefix));
            if !gives || desired.firewall().assignments.contains_key(&prefix) {
                continue;
            }
            let known = before.and_then(|peer| peer.keeps.get(&prefix));
            let had = known.or_else(|| table?.profile_of(&prefix));
            let reach = match (had, &said) {
                // Unknown: nothing, rather than what a prefix around it may reach.
                (None, _) => Arc::default(),
                (Some(had), None) => Arc::clone(had),
                (Some(had), Some((_, reach))) => meets.of(had, reach),
            };
            keeps.insert(prefix, reach);
        }
        let since = before.map_or(desired.as_of(), |peer| peer.since);
        let was_barred = match cause {
            HeldCause::Barred(_) => true,
            // This row does not bar its peer: `absence_with` asks for that first.
            HeldCause::Unusable(_) => false,
            HeldCause::Gone => before.is_some_and(|peer| peer.was_barred),
        };
        (!keeps.is_empty()).then_some(HeldPeer { keeps, cause, was_barred, since })
    }
}
