//! Prefixes that were taken from their peers while they could still open flows.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::moved::{given_by, withdrawn_by};
use super::{Plan, Step};
use crate::model::{ObservedState, ProfileId};

/// The prefixes whose next holder might inherit flows, although their place in the firewall says that
/// their peer is merely put back: this agent took them, and the kernel refused to close them first, or
/// to cut their flows. Until a cut is acknowledged, such a prefix is given only with a cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Uncut {
    /// An earlier run of the agent left it: it may be any prefix.
    #[default]
    Any,
    These {
        prefixes: BTreeSet<IpNet>,
        /// The prefixes that the plan under way cuts and does not take, or gives to a peer.
        settling: BTreeSet<IpNet>,
    },
}

impl Uncut {
    /// The plan that also cuts the flows of these prefixes, as far as it gives them to peers.
    #[must_use]
    pub fn cut_in(&self, plan: Plan, cuts_flows: bool) -> Plan {
        let is_uncut = |prefix: &IpNet| match self {
            Self::Any => true,
            Self::These { prefixes, .. } => prefixes.contains(prefix),
        };
        let given = plan.steps().iter().flat_map(given_by);
        let given: BTreeSet<IpNet> = given.filter(is_uncut).collect();
        if given.is_empty() || !cuts_flows {
            return plan;
        }
        plan.cutting(given)
    }

    /// A plan is about to be applied: what it takes may be gone from now on, whatever becomes of the
    /// answers.
    pub fn begin(&mut self, plan: &Plan, observed: &ObservedState) {
        let Self::These { prefixes, settling } = self else { return };
        let taken = taken_by(plan, observed);
        let cut = plan.steps().iter().filter_map(|step| match step {
            Step::CutFlows { prefixes } => Some(prefixes),
            _ => None,
        });
        *settling = cut.flatten().filter(|prefix| !taken.contains(prefix)).copied().collect();
        settling.extend(plan.steps().iter().flat_map(given_by));
        prefixes.extend(taken);
    }

    /// The kernel acknowledged every step of the plan: `observed` is the result. Prefixes that were closed
    /// before they were cut and taken have no flows.
    pub fn applied(&mut self, observed: &ObservedState) {
        let Self::These { prefixes, settling } = self else { return };
        let table = observed.firewall.as_ref();
        let is_open = |prefix: &IpNet| {
            let place = table.and_then(|table| table.assignments().get(prefix));
            place.is_some_and(|place| *place != ProfileId::NOTHING)
        };
        prefixes.retain(|prefix| is_open(prefix) && !settling.contains(prefix));
        settling.clear();
    }

    /// The whole kernel is what it should be: every open place has its peer, and no other prefix has a
    /// place.
    pub fn proven(&mut self) {
        *self = Self::These { prefixes: BTreeSet::new(), settling: BTreeSet::new() };
    }
}

fn taken_by(plan: &Plan, observed: &ObservedState) -> BTreeSet<IpNet> {
    let taken = |step: &Step| withdrawn_by(step, observed).iter().collect::<Vec<_>>();
    plan.steps().iter().flat_map(taken).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{FirewallChange, FixedRules, ObservedFirewall, Peer, PublicKey};
    use crate::plan::Phase;

    const PREFIX: &str = "10.64.0.1/32";

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    fn peer() -> Peer {
        Peer { allowed_ips: [PREFIX.parse().unwrap()].into_iter().collect(), ..Peer::default() }
    }

    fn prefixes() -> BTreeSet<IpNet> {
        [PREFIX.parse().unwrap()].into()
    }

    fn taking() -> Plan {
        let assign = prefixes().into_iter().map(|prefix| (prefix, ProfileId::NOTHING)).collect();
        let change = FirewallChange { assign, ..FirewallChange::default() };
        Plan::new(vec![
            Step::Firewall { phase: Phase::Revoke, change },
            Step::CutFlows { prefixes: prefixes() },
            Step::RemovePeer { key: key(1) },
        ])
    }

    fn giving() -> Plan {
        Plan::new(vec![Step::AddPeer { key: key(2), peer: peer() }, Step::OpenSessions])
    }

    fn observed() -> ObservedState {
        let places = BTreeMap::from([(PREFIX.parse().unwrap(), ProfileId(7))]);
        let table = ObservedFirewall::new(FixedRules::Open, BTreeMap::new(), places);
        ObservedState {
            peers: [(key(1), peer())].into(),
            firewall: Some(table),
            ..ObservedState::default()
        }
    }

    fn none() -> Uncut {
        let mut uncut = Uncut::default();
        uncut.proven();
        uncut
    }

    /// What is left uncut after a plan was applied without the steps that `refused` chooses.
    fn after(plan: &Plan, refused: impl Fn(&Step) -> bool) -> Uncut {
        let (mut uncut, mut observed) = (none(), observed());
        uncut.begin(plan, &observed);
        let acknowledged = plan.steps().iter().filter(|step| !refused(step));
        acknowledged.for_each(|step| observed.apply(step));
        if !plan.steps().iter().any(refused) {
            uncut.applied(&observed);
        }
        uncut
    }

    #[test]
    fn a_prefix_that_was_closed_and_cut_is_given_without_another_cut() {
        let uncut = after(&taking(), |_| false);
        assert_eq!(uncut, none());
        assert_eq!(uncut.cut_in(giving(), true), giving());
    }

    #[test]
    fn a_prefix_that_was_taken_while_it_was_open_is_given_with_a_cut() {
        let refused: [fn(&Step) -> bool; 3] = [
            |step| matches!(step, Step::Firewall { .. }),
            |step| matches!(step, Step::CutFlows { .. }),
            |step| matches!(step, Step::RemovePeer { .. }),
        ];
        let cut = Step::CutFlows { prefixes: prefixes() };
        let add = Step::AddPeer { key: key(2), peer: peer() };
        let expected = Plan::new(vec![cut, add, Step::OpenSessions]);
        for refused in refused {
            assert_eq!(after(&taking(), refused).cut_in(giving(), true), expected);
        }
        let unclosed = taking().without(|step| matches!(step, Step::Firewall { .. }));
        assert_eq!(after(&unclosed, |_| false).cut_in(giving(), true), expected);
        assert_eq!(Uncut::Any.cut_in(giving(), true), expected);
        assert_eq!(Uncut::Any.cut_in(giving(), false), giving());
    }

    #[test]
    fn a_cut_that_is_acknowledged_is_not_repeated() {
        let mut uncut = after(&taking(), |step| matches!(step, Step::Firewall { .. }));
        let mut observed = observed();
        observed.peers.clear();
        let plan = uncut.cut_in(giving(), true);
        uncut.begin(&plan, &observed);
        plan.steps().iter().for_each(|step| observed.apply(step));
        assert_ne!(uncut, none());
        uncut.applied(&observed);
        assert_eq!(uncut, none());
    }
}
