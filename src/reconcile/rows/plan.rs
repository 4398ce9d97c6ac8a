//! What the rows, `[stale]` and the block list ask of the kernel.

use std::collections::BTreeSet;

use super::{Rows, StalePolicy};
use crate::model::{DesiredState, KeyText, ObservedState, PublicKey};
use crate::plan::guard::{Guard, MaxRemoved, plan_guarded};
use crate::plan::{Held, Plan, PlanError, Scope, Unnamed, plan, withdraw, withdrawals};

impl Rows {
    /// Plans what the rows or `[stale]` ask for, and which peers stay although no row wants them.
    /// `connected`: the peers with a live session, if a reading just showed them.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn plan(
        &self,
        observed: &ObservedState,
        scope: &Scope,
        guard: Guard<'_>,
        connected: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
    ) -> Result<(Plan, Held), PlanError> {
        let blocked = self.blocked(observed);
        let suspends = self.age.suspends();
        if let Some(refused) = self.refused.as_ref().filter(|_| !suspends) {
            let unnamed = refused.unnamed(guard.limit);
            let planned = match &refused.rest {
                Some(rest) => withdrawals(rest, observed, self.public_key(), unnamed, &blocked),
                None => self.withdraw(observed, |key| blocked.contains(key)),
            };
            return Ok((planned, Held::default()));
        }
        let Some(desired) = &self.desired else {
            // `[stale]` needs no rows. Only a reading shows which sessions are alive.
            let stay = match self.age.suspending() {
                None | Some(StalePolicy::Keep) => None,
                Some(StalePolicy::DenyNew) => connected(),
                Some(StalePolicy::Down) => Some(BTreeSet::new()),
            };
            let ended = |key: &PublicKey| stay.as_ref().is_some_and(|stay| !stay.contains(key));
            let planned = self.withdraw(observed, |key| blocked.contains(key) || ended(key));
            return Ok((planned, Held::default()));
        };
        if self.block_list.why_unreadable().is_some() {
            return Ok((self.withdrawals(observed, guard.limit), Held::default()));
        }
        if suspends {
            // `[stale]` removes peers on purpose: none is held back.
            return Ok((plan(desired, observed, scope)?, Held::default()));
        }
        // Nor is a peer that an operator blocks.
        let confirmed = guard.confirmed | &blocked;
        plan_guarded(desired, observed, scope, Guard { confirmed: &confirmed, ..guard })
    }

    /// The withdrawals that go on although no plan of the whole can be made.
    pub fn withdrawals(&self, observed: &ObservedState, limit: MaxRemoved) -> Plan {
        let (unnamed, blocked) = (Unnamed::Go { at_most: limit }, self.blocked(observed));
        match self.desired.as_ref().filter(|_| self.refused.is_none()) {
            Some(rows) => withdrawals(rows, observed, self.public_key(), unnamed, &blocked),
            None => self.withdraw(observed, |key| blocked.contains(key)),
        }
    }

    fn withdraw(&self, observed: &ObservedState, goes: impl Fn(&PublicKey) -> bool) -> Plan {
        let stay = observed.peers.keys().filter(|key| !goes(key)).copied().collect();
        withdraw(observed, self.public_key(), &stay, self.local.flush_conntrack)
    }

    /// The peers of the kernel that the block list bars, by their rows or by what they hold.
    pub fn blocked(&self, observed: &ObservedState) -> BTreeSet<PublicKey> {
        if self.block_list.is_empty() {
            return BTreeSet::new();
        }
        let rest = self.refused.as_ref().and_then(|refused| refused.rest.as_ref());
        let rows = self.desired.iter().chain(rest).flat_map(DesiredState::blocked);
        let by_row = rows.filter_map(|row| match row.public_key {
            KeyText::Key(key) => Some(key).filter(|key| observed.peers.contains_key(key)),
            KeyText::Bad { .. } => None,
        });
        let by_hold = observed
            .peers
            .iter()
            .filter(|(key, peer)| self.block_list.bars_peer(key, &peer.allowed_ips));
        by_row.chain(by_hold.map(|(key, _)| *key)).collect()
    }
}
