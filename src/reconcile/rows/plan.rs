//! Plans the changes that the rows, `[stale]` and the block list require now: all of them, or withdrawals
//! alone.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::{Origin, Refused, Rows};
use crate::model::{DesiredState, FirewallChange, FixedRules, KeyText, ObservedState, PublicKey};
use crate::plan::guard::{Guard, Whose, plan_guarded};
use crate::plan::{Held, Phase, Plan, PlanError, Scope, Step, is_ours, withdraw, withdrawals};
use crate::reconcile::options::StalePolicy;

/// The plan, and the peers that stay.
#[derive(Debug)]
pub struct Planned {
    pub plan: Plan,
    pub extent: Extent,
    pub held: Waiting,
    /// Why only withdrawals are planned, although rows decide.
    pub obstacle: Option<PlanError>,
}

/// How much of what is asked for a plan contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Whole,
    Withdrawals,
}

/// The peers whose removal is held back.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The rows do not admit them, and they stay.
    pub judged: Held,
    /// These waited before. No rows judge them now, or last good rows that predate what was held back admit
    /// them: they neither go nor wait for a confirmation.
    pub unjudged: Held,
}

impl Waiting {
    pub fn unjudged(unjudged: Held) -> Self {
        Self { judged: Held::default(), unjudged }
    }

    /// These rows hold the `judged` peers. A peer that `later` rows held waits on if these rows admit it. If they
    /// do not, something else removes it, such as a block.
    fn by(rows: &DesiredState, judged: Held, later: Held) -> Self {
        let unjudged = later.admitted_by(rows, &judged);
        Self { judged, unjudged }
    }
}

impl Planned {
    const fn new(plan: Plan, extent: Extent, held: Waiting) -> Self {
        Self { plan, extent, held, obstacle: None }
    }
}

impl Rows {
    /// The rows that plans follow: those that decide, or what can be used of refused ones.
    pub fn followed(&self) -> Option<&DesiredState> {
        self.rest().or(self.desired.as_ref())
    }

    /// The usable part of refused rows.
    pub(super) fn rest(&self) -> Option<&DesiredState> {
        self.refused.as_ref()?.rest.as_ref()
    }

    /// How many peers have a preshared key that this host cannot open, because it has no sealing key.
    pub(super) fn sealed_count(&self) -> usize {
        self.desired.as_ref().map_or(0, DesiredState::sealed_count)
    }

    /// What was held back by rows read before this time is confirmed by the setting. Rows that may be
    /// another gateway's confirm nothing.
    pub fn confirmed_at(&self) -> Option<SystemTime> {
        let ours = self.refused.as_ref().is_none_or(|refused| refused.whose() == Whose::Ours);
        self.followed().filter(|_| ours)?.settings().guard_confirmed_at
    }

    /// The peers whose removal waits by the rows that were read last, also while no plan can be made from them.
    pub(super) fn held(&self, observed: Option<&ObservedState>, guard: Guard<'_>) -> Held {
        let whose = self.refused.as_ref().map_or(Whose::Ours, Refused::whose);
        match (self.followed(), observed) {
            (Some(rows), Some(observed)) => Guard { whose, ..guard }.hold_all(rows, observed),
            _ => guard.held,
        }
    }

    /// Plans what the rows or `[stale]` ask for. Where that cannot be planned, plans withdrawals.
    /// `connected`: the peers with a live session, if a reading just showed them.
    pub fn plan(
        &self,
        observed: &ObservedState,
        scope: &Scope,
        guard: Guard<'_>,
        connected: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
    ) -> Planned {
        let Guard { limit, confirmed, granted, whose, .. } = guard;
        let former = self.held_by_later_rows(&guard);
        match self.deciding().filter(|_| self.may_grant() && self.withdrawing(observed).is_none()) {
            None => self.plan_withdrawals(observed, guard, connected),
            Some(desired) => match plan_guarded(desired, observed, scope, guard) {
                (Ok(plan), held) => {
                    Planned::new(plan, Extent::Whole, Waiting::by(desired, held, former))
                }
                (Err(error), held) => {
                    let held = held.with_those(&former);
                    let guard = Guard { limit, held, confirmed, granted, whose };
                    let withdrawals = self.withdrawals(desired, observed, guard);
                    Planned { obstacle: Some(error), ..withdrawals }
                }
            },
        }
    }

    /// Plans nothing but the withdrawals that the rows, `[stale]` and the block list ask for.
    pub fn plan_withdrawals(
        &self,
        observed: &ObservedState,
        guard: Guard<'_>,
        connected: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
    ) -> Planned {
        if let Some((rest, whose)) = self.withdrawing(observed) {
            return self.withdrawals(rest, observed, Guard { whose, ..guard });
        }
        match self.deciding() {
            Some(desired) => self.withdrawals(desired, observed, guard),
            None => {
                let withdraws = self.without_rows(observed, connected);
                let steps =
                    self.fence(observed).into_iter().chain(withdraws.steps().iter().cloned());
                let plan = Plan::new(steps.collect());
                Planned::new(plan, Extent::Withdrawals, Waiting::unjudged(guard.held))
            }
        }
    }

    /// The rows as a whole, or what `[stale]` leaves of them; `None`: the last ones were refused.
    fn deciding(&self) -> Option<&DesiredState> {
        let decides = self.refused.is_none() || self.age.suspends();
        self.desired.as_ref().filter(|_| decides)
    }

    /// The usable part of refused rows, and their owner, if withdrawals follow from it. A table that judges no
    /// packet is put right first, if `[stale]` decides which peers may stay.
    fn withdrawing(&self, observed: &ObservedState) -> Option<(&DesiredState, Whose)> {
        let refused = self.refused.as_ref()?;
        let (link, table) = (observed.interface.as_ref(), observed.firewall.as_ref());
        let guards = |name: &str| table.is_some_and(|table| table.guards(name));
        let is_guarded = link.is_none_or(|link| guards(&link.name));
        let repairs = self.age.suspends() && !is_guarded && self.desired.is_some();
        Some((refused.rest.as_ref().filter(|_| !repairs)?, refused.whose()))
    }

    fn withdrawals(
        &self,
        rows: &DesiredState,
        observed: &ObservedState,
        guard: Guard<'_>,
    ) -> Planned {
        if !is_ours(observed, self.public_key()) {
            let steps = self.fence(observed).into_iter().collect();
            let held = Waiting::unjudged(guard.held);
            return Planned::new(Plan::new(steps), Extent::Withdrawals, held);
        }
        let former = self.held_by_later_rows(&guard);
        let before = (guard.whose == Whose::InDoubt).then(|| guard.held.clone());
        let held = guard.hold_all(rows, observed);
        let plan = withdrawals(rows, observed, self.public_key(), &held);
        // A peer that stays because of a doubt waits for no confirmation.
        let held = match before {
            None => Waiting::by(rows, held, former),
            Some(before) => Waiting::unjudged(held.of_those(&before)),
        };
        Planned::new(plan, Extent::Withdrawals, held)
    }

    /// The peers that an earlier run of the agent held, if the rows are its last good ones. These rows lack the
    /// changes that it held back, and release no peer.
    fn held_by_later_rows(&self, guard: &Guard<'_>) -> Held {
        match self.origin {
            Origin::Database => Held::default(),
            Origin::LastGood | Origin::Unsealed => guard.held.clone(),
        }
    }

    /// The table that denies everything, if no table judges the packets of this gateway's link. Without
    /// rows, or with rows that cannot be used, none says what a link may forward that is there or comes.
    fn fence(&self, observed: &ObservedState) -> Option<Step> {
        let table = observed.firewall.as_ref();
        let interface = match &observed.interface {
            Some(link) if is_ours(observed, self.public_key()) => link.name.parse().ok()?,
            Some(_) => return None,
            // A table may judge the packets of a link with a former name.
            None if table.is_some_and(|table| *table.rules() != FixedRules::Open) => return None,
            None => self.local.interface.clone(),
        };
        if table.is_some_and(|table| table.guards(interface.as_str())) {
            return None;
        }
        let change = FirewallChange {
            load_base: Some(self.local.base_without_rows(interface)),
            ..FirewallChange::default()
        };
        Some(Step::Firewall { phase: Phase::Fence, change })
    }

    /// `[stale]` and the block list need no rows. Only a reading shows which sessions are alive.
    fn without_rows(
        &self,
        observed: &ObservedState,
        connected: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
    ) -> Plan {
        let connected = match self.age.suspending() {
            None | Some(StalePolicy::Keep) => None,
            Some(StalePolicy::DenyNew) => connected(),
            Some(StalePolicy::Down) => Some(BTreeSet::new()),
        };
        let blocked = self.blocked(observed);
        let stays = |key: &&PublicKey| {
            !blocked.contains(*key) && connected.as_ref().is_none_or(|alive| alive.contains(*key))
        };
        let stay = observed.peers.keys().filter(stays).copied().collect();
        withdraw(observed, self.public_key(), &stay, self.local.flush_conntrack)
    }

    /// The peers of the kernel that the block list bars, by their rows or by what they hold.
    pub fn blocked(&self, observed: &ObservedState) -> BTreeSet<PublicKey> {
        if self.block_list.is_empty() {
            return BTreeSet::new();
        }
        let rows = self.desired.iter().chain(self.rest()).flat_map(DesiredState::blocked);
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
