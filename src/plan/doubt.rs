//! Withdrawals by a reading that refused steps have put in doubt, while there is no newer reading.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::moved::withdrawn_by;
use super::{Phase, Plan, Step};
use crate::model::{FirewallChange, ObservedState, ProfileId};

/// How the kernel may differ from a reading, because it did what it did not acknowledge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubt {
    /// The steps that may have given prefixes.
    given: Vec<Step>,
    table: Table,
}

/// The known effect of a step that the kernel did not acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unacknowledged {
    /// The kernel did not carry out any part.
    NotDone,
    /// It may have done it, or a part.
    Unsure,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Table {
    #[default]
    AsRead,
    /// Prefixes may have other places, and profiles other numbers.
    Unsure,
}

impl Doubt {
    /// Notes a step that was not acknowledged. A table that refused a change is as it was.
    pub fn refused(&mut self, step: &Step, how: Unacknowledged) {
        match (step, how) {
            (Step::AddPeer { .. } | Step::WidenPeer { .. }, _) => self.given.push(step.clone()),
            (Step::Firewall { .. }, Unacknowledged::Unsure) => self.table = Table::Unsure,
            _ => {}
        }
    }

    /// The steps that must count as done, so that what they gave is withdrawn. Each is named once.
    #[must_use]
    pub fn take_given(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.given)
    }

    /// Keeps the withdrawals that are safe. If the table may have been replaced since the reading, a profile's number
    /// may allow more than the reading says. Then only prefixes that are taken from peers, or are to be closed anyway,
    /// are closed. If the plan loads the whole table, all withdrawals are safe.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{FixedRules, ObservedFirewall, Peer, PublicKey};

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    fn prefix(last: u8) -> IpNet {
        format!("10.64.0.{last}/32").parse().unwrap()
    }

    fn close_or_narrow(phase: Phase, assign: &[(u8, u32)]) -> Step {
        let assign = assign.iter().map(|(last, id)| (prefix(*last), ProfileId(*id))).collect();
        Step::Firewall { phase, change: FirewallChange { assign, ..FirewallChange::default() } }
    }

    fn observed() -> ObservedState {
        let peer = Peer { allowed_ips: [prefix(1)].into_iter().collect(), ..Peer::default() };
        let table = ObservedFirewall::new(FixedRules::Open, BTreeMap::new(), BTreeMap::new());
        ObservedState {
            peers: [(key(1), peer)].into(),
            firewall: Some(table),
            ..ObservedState::default()
        }
    }

    #[test]
    fn in_a_table_that_may_be_another_withdrawals_only_close() {
        let withdrawals = Plan::new(vec![
            close_or_narrow(Phase::Revoke, &[(2, 0), (3, 7)]),
            Step::RemovePeer { key: key(1) },
        ]);
        let mut doubt = Doubt::default();
        doubt.refused(&Step::RemovePeer { key: key(2) }, Unacknowledged::Unsure);
        doubt.refused(&close_or_narrow(Phase::Policy, &[(3, 7)]), Unacknowledged::NotDone);
        assert_eq!(doubt.safe(withdrawals.clone(), &observed()), withdrawals);
        doubt.refused(&close_or_narrow(Phase::Policy, &[(3, 7)]), Unacknowledged::Unsure);
        // What is taken is closed, too, although the reading says that it is.
        let closing = Plan::new(vec![
            close_or_narrow(Phase::Revoke, &[(1, 0), (2, 0)]),
            Step::RemovePeer { key: key(1) },
        ]);
        assert_eq!(doubt.safe(withdrawals, &observed()), closing);
        assert!(doubt.safe(Plan::default(), &observed()).is_empty());
    }

    #[test]
    fn what_may_have_been_given_is_named_once() {
        let mut doubt = Doubt::default();
        let given = Step::AddPeer { key: key(1), peer: Peer::default() };
        doubt.refused(&given, Unacknowledged::NotDone);
        doubt.refused(&Step::SetUp, Unacknowledged::Unsure);
        assert_eq!(doubt.take_given(), [given]);
        assert!(doubt.take_given().is_empty());
    }
}
