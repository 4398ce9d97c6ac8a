//! The gate: whether it may be in force, and the rules that it consists of.
//!
//! Our table marks each packet that comes by our link or goes to the pool, and takes the mark off again
//! once it is routed. So in between a packet without the mark shows that the table is gone, and a rule
//! of policy routing, which outlives every `nft flush ruleset`, drops it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Step;
use crate::model::{
    DesiredState, Gate, GateObstacle, HostRouting, InterfaceName, IpFamily, MarkBit, ObservedState,
    RoutingRule, RuleAction, Tag,
};

// Behind the kernel's rule for local addresses, before the rules of anyone else.
const FROM_PEERS: u32 = 1;
const FROM_HERE: u32 = 2;
const TO_PEERS: u32 = 3;
const END: u32 = 4;

/// The rules of the gate, toward these networks. What the host itself sends has no mark, and so passes by those
/// to peers.
#[must_use]
pub fn rules(
    interface: &InterfaceName,
    networks: impl IntoIterator<Item = IpNet>,
    mark: MarkBit,
) -> BTreeSet<RoutingRule> {
    let unmarked = Some((0, mark.bits()));
    let rule = |family, priority, action| {
        let (iif, to, mark, tag) = (None, None, None, Tag::Ours);
        RoutingRule { family, priority, iif, to, mark, action, tag }
    };
    let from_peers = |family| RoutingRule {
        iif: Some(interface.as_str().into()),
        mark: unmarked,
        ..rule(family, FROM_PEERS, RuleAction::Blackhole)
    };
    let mut rules = BTreeSet::from([from_peers(IpFamily::V4), from_peers(IpFamily::V6)]);
    for network in networks {
        let family = IpFamily::of(&network);
        let from_here = rule(family, FROM_HERE, RuleAction::Goto(END));
        let to_peers = rule(family, TO_PEERS, RuleAction::Blackhole);
        rules.extend([
            RoutingRule { iif: Some("lo".into()), ..from_here },
            RoutingRule { to: Some(network.trunc()), mark: unmarked, ..to_peers },
            rule(family, END, RuleAction::Nop),
        ]);
    }
    rules
}

/// Whether each family that has rules begins with the kernel's own for local addresses, as `ip rule` lists
/// it: `0: from all lookup local`. Without it our rules would see what is sent to this host itself.
fn begins_with_local(host: &HostRouting) -> bool {
    const LOOKUP: RuleAction = RuleAction::Other(1);
    let is_for_all = |rule: &RoutingRule| {
        let RoutingRule { priority, iif, to, mark, action, .. } = rule;
        (*priority, *action) == (0, LOOKUP) && iif.is_none() && to.is_none() && mark.is_none()
    };
    [IpFamily::V4, IpFamily::V6].into_iter().all(|family| {
        let mut rules =
            host.rules.iter().filter(|rule| rule.family == family && rule.tag == Tag::Foreign);
        rules.clone().next().is_none() || rules.any(is_for_all)
    })
}

/// Why the gate would disturb other programs, or not hold; `None`: it may be in force.
///
/// A reverse path filter that ignores marks looks routes up for packets without any, and would drop all
/// that come by our link or go to it (`fib_validate_source` in the kernel's net/ipv4/fib_frontend.c).
#[must_use]
pub fn obstacle(host: &HostRouting, mark: MarkBit) -> Option<GateObstacle> {
    if host.has_no_rules {
        return Some(GateObstacle::NoRules);
    }
    if host.checks_sources {
        return Some(GateObstacle::SourceChecks);
    }
    for rule in host.rules.iter().filter(|rule| rule.tag == Tag::Foreign) {
        if rule.mark.is_some_and(|(_, mask)| mask & mark.bits() != 0) {
            return Some(GateObstacle::SharedMark(rule.clone()));
        }
        // The rule for local addresses has 0, and leads to no other host.
        if (1..=END).contains(&rule.priority) {
            return Some(GateObstacle::EarlierRule(rule.clone()));
        }
    }
    if !begins_with_local(host) {
        return Some(GateObstacle::LocalRuleMoved);
    }
    host.networkd_removes_rules.then_some(GateObstacle::Networkd)
}

/// The rules that there should be.
#[must_use]
pub fn wanted(desired: &DesiredState, host: &HostRouting) -> BTreeSet<RoutingRule> {
    let base = &desired.firewall().base;
    let may_be = |gate: &Gate| {
        let obstacle = obstacle(host, gate.mark);
        obstacle.is_none() || gate.always && obstacle != Some(GateObstacle::NoRules)
    };
    desired
        .gate()
        .filter(may_be)
        .map_or_else(BTreeSet::new, |gate| rules(&base.interface, base.networks.gated(), gate.mark))
}

/// Whether all these rules are there.
#[must_use]
pub fn is_in_force(desired: &DesiredState, observed: &ObservedState) -> bool {
    let wanted = wanted(desired, &observed.routing);
    !wanted.is_empty() && wanted.is_subset(&observed.routing.rules)
}

/// Whether the gate's rules are not those that there should be.
#[must_use]
pub fn differs(desired: &DesiredState, observed: &ObservedState) -> bool {
    removal(desired, observed).or_else(|| addition(desired, observed)).is_some()
}

/// The step that takes away what no gate needs. It comes before the table is changed.
pub(super) fn removal(desired: &DesiredState, observed: &ObservedState) -> Option<Step> {
    let ours = observed.routing.rules.iter().filter(|rule| rule.tag == Tag::Ours);
    let wanted = wanted(desired, &observed.routing);
    let rules: BTreeSet<_> = ours.filter(|rule| !wanted.contains(rule)).cloned().collect();
    (!rules.is_empty()).then_some(Step::RemoveRules { rules })
}

/// The step that adds what the gate lacks. It comes after the table that marks packets.
pub(super) fn addition(desired: &DesiredState, observed: &ObservedState) -> Option<Step> {
    let wanted = wanted(desired, &observed.routing);
    let rules: BTreeSet<_> = wanted.difference(&observed.routing.rules).cloned().collect();
    (!rules.is_empty()).then_some(Step::AddRules { rules })
}
