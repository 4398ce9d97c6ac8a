//! What can be withdrawn by a reading that refused steps have put in doubt, while there is no newer one.
//! Pure.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::interlock::withdrawn_by;
use super::{Phase, Plan, Step};
use crate::model::{FirewallChange, ObservedState, ProfileId};

/// How the kernel may differ from a reading, because it did what it did not acknowledge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubt {
    /// The steps that may have given prefixes.
    given: Vec<Step>,
    table: Table,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Table {
    #[default]
    AsRead,
    /// Prefixes may have other places, and profiles other numbers.
    Unsure,
}

impl Doubt {
    /// Notes a step that was refused.
    pub fn refused(&mut self, step: &Step) {
        match step {
            Step::AddPeer { .. } | Step::WidenPeer { .. } => self.given.push(step.clone()),
            Step::Firewall { .. } => self.table = Table::Unsure,
            _ => {}
        }
    }

    /// The steps that must count as done, so that what they gave is withdrawn. Each is named once.
    #[must_use]
    pub fn take_given(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.given)
    }

    /// What is safe of these withdrawals. In a table that may be another by now, a number may lead to
    /// more than the reading says: only what is taken from peers is closed there, and what is to be closed
    /// anyway. A table that is loaded anew is what the plan assumes.
    #[must_use]
    pub fn safe(&self, withdrawals: Plan, observed: &ObservedState) -> Plan {
        let loads = |step: &Step| matches!(step, Step::Firewall { change, .. } if change.load_base.is_some());
        if self.table == Table::AsRead || withdrawals.steps().iter().any(loads) {
            return withdrawals;
        }
        let taken = withdrawals.steps().iter().flat_map(|step| match step {
            Step::Firewall { change, .. } => closed_by(change),
            step => withdrawn_by(step, observed).iter().collect(),
        });
        let assign = taken.map(|prefix| (prefix, ProfileId::NOTHING)).collect();
        let change = FirewallChange { assign, ..FirewallChange::default() };
        let is_change = |step: &Step| matches!(step, Step::Firewall { .. });
        let close = Step::Firewall { phase: Phase::Revoke, change: change.clone() };
        let rest = withdrawals.without(is_change);
        let close = (!change.is_empty() && observed.firewall.is_some()).then_some(close);
        Plan::new(close.into_iter().chain(rest.steps().iter().cloned()).collect())
    }
}

fn closed_by(change: &FirewallChange) -> BTreeSet<IpNet> {
    let closed = change.assign.iter().filter(|(_, place)| **place == ProfileId::NOTHING);
    closed.map(|(prefix, _)| *prefix).collect()
}
