//! Taking peers from a link without knowing a single row.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Phase, Plan, Step};
use crate::model::{
    FirewallChange, LinkOwner, ObservedFirewall, ObservedState, ProfileId, PublicKey,
};

/// The steps that take every peer but those that `stay` from a link that has our mark and our
/// private key: `ours` is its public part. Nothing else is touched, and nothing is given.
///
/// In the order of every revocation: the prefixes come to reach nothing, their flows are cut where
/// `cuts_flows` says so, and then the peers go.
#[must_use]
pub fn withdraw(
    observed: &ObservedState,
    ours: PublicKey,
    stay: &BTreeSet<PublicKey>,
    cuts_flows: bool,
) -> Plan {
    let is_ours = observed.interface.as_ref().is_some_and(|link| {
        matches!(link.owner, LinkOwner::Ours(_)) && link.public_key == Some(ours)
    });
    let gone = observed.peers.iter().filter(|(key, _)| is_ours && !stay.contains(*key));
    let prefixes: BTreeSet<IpNet> =
        gone.clone().flat_map(|(_, peer)| peer.allowed_ips.iter()).collect();
    let mut steps = Vec::new();
    let change = shut(observed.firewall.as_ref(), &prefixes);
    if !change.is_empty() {
        steps.push(Step::Firewall { phase: Phase::Revoke, change });
    }
    if cuts_flows && !prefixes.is_empty() {
        steps.push(Step::CutFlows { prefixes });
    }
    steps.extend(gone.map(|(key, _)| Step::RemovePeer { key: *key }));
    Plan::new(steps)
}

/// Without a place a prefix would be judged as one around it: so it has one that reaches nothing. A
/// table whose fixed rules are not ours as we know them is left as it is.
fn shut(table: Option<&ObservedFirewall>, prefixes: &BTreeSet<IpNet>) -> FirewallChange {
    let mut change = FirewallChange::default();
    if let Some(table) = table.filter(|table| table.base().is_some()) {
        let reaches = |prefix: &&IpNet| {
            table.assignments().get(*prefix).is_some_and(|place| *place != ProfileId::NOTHING)
        };
        change.assign =
            prefixes.iter().filter(reaches).map(|prefix| (*prefix, ProfileId::NOTHING)).collect();
    }
    change
}
