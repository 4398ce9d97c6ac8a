//! Which steps of a plan may still be applied once one was refused.
//!
//! A plan is safe because of its order: what a step gives was taken from its former holder by the
//! steps before it. Once a step is refused, that order protects only the steps that do not depend on
//! it. The others are withheld, and the next plan, made from a new reading, contains them again. Of a
//! change of policies, only what concerns the failed prefixes is withheld.
//! Withdrawals go on: they wait only for what would otherwise hand their prefixes to another peer.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::moved::{given_by, withdrawn_by};
use super::prefix::{may_contain_others, prefixes_around};
use super::{Parted, Phase, Step};
use crate::model::{FirewallChange, ObservedState, ProfileId, PublicKey};

/// The grants that are still allowed after the refusals so far. Later variants include earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Grants {
    /// Nothing: the firewall is not what the plan assumes.
    None,
    /// The destinations of present peers may change, but no peer is added: the link is not what clients know.
    Policies,
    #[default]
    All,
}

/// Decides, step by step, what is applied of a plan.
///
/// Ask [`permits`](Self::permits) before each step, in the order of the plan, and tell
/// [`failed`](Self::failed) of each step that was refused or withheld. `observed` is always the
/// reading as the acknowledged steps so far have changed it.
#[derive(Debug, Clone, Default)]
pub struct Interlock {
    grants: Grants,
    /// The table could not be loaded: every packet that the device takes may pass.
    unfenced: bool,
    /// The link could not be created.
    no_link: bool,
    /// Prefixes whose place in the firewall still reaches what it did, and which another peer's
    /// prefix contains: that peer would get their place with them.
    exposed: BTreeSet<IpNet>,
    /// Prefixes whose tracked flows may be there still: the next holder would inherit them.
    uncut: BTreeSet<IpNet>,
    /// Prefixes that may be with their former peer still, or not with the next one yet.
    unmoved: BTreeSet<IpNet>,
    /// Profiles that were not loaded: their numbers may lead to what was there before.
    unloaded: BTreeSet<ProfileId>,
}

impl Interlock {
    /// Whether a step may be applied.
    #[must_use]
    pub fn permits(&self, step: &Step, observed: &ObservedState) -> bool {
        match step {
            Step::Firewall { phase: Phase::Revoke, .. }
            | Step::RemoveRules { .. }
            | Step::FreeLink { .. }
            | Step::CutFlows { .. }
            | Step::OpenSessions
            | Step::TakeDown { .. } => true,
            Step::RemovePeer { .. } | Step::NarrowPeer { .. } => {
                !self.no_link && self.may_withdraw(step, observed)
            }
            Step::Firewall { phase: Phase::Policy, change } => {
                self.grants >= Grants::Policies && !self.concerns_failed(change, observed)
            }
            Step::Firewall { change, .. } => {
                let loaded = |id| !self.unloaded.contains(id);
                self.grants == Grants::All
                    && change.assign.values().all(loaded)
                    && !self.concerns_failed(change, observed)
            }
            _ => {
                let free = |it: IpNet| !self.uncut.contains(&it) && !self.unmoved.contains(&it);
                self.grants == Grants::All && given_by(step).all(free)
            }
        }
    }

    /// Returns the part of a change of policies that may be applied although [`permits`](Self::permits) says
    /// no, because it concerns no failed step. `None`: no part.
    #[must_use]
    pub fn part_of(&self, step: &Step, observed: &ObservedState) -> Option<Step> {
        let Step::Firewall { phase: Phase::Policy, change } = step else { return None };
        if self.grants < Grants::Policies {
            return None;
        }
        let table = observed.firewall.as_ref();
        let place = |prefix: &IpNet| table?.assignments().get(prefix).copied();
        let failed: BTreeSet<IpNet> = self.uncut.union(&self.unmoved).copied().collect();
        // What is to come under a number that a failed prefix leads to would be that prefix's, too.
        let loads = change.load_base.is_some();
        let kept: BTreeSet<ProfileId> =
            failed.iter().filter(|_| !loads).filter_map(place).collect();
        let is_kept = |id: &ProfileId| kept.contains(id) && change.put_profiles.contains_key(id);
        let mut part = FirewallChange { remove_profiles: Vec::new(), ..change.clone() };
        part.put_profiles.retain(|id, _| !kept.contains(id));
        part.unassign.retain(|prefix| !failed.contains(prefix));
        part.assign.retain(|prefix, id| !failed.contains(prefix) && !is_kept(id));
        if part.is_empty() {
            return None;
        }
        // Without a place of its own, a failed prefix would reach what the prefix around it is to. And
        // one that had a place keeps one, which tells the next plan what to cut.
        let shut = failed.iter().filter(|prefix| match place(prefix) {
            Some(_) => loads,
            None => prefixes_around(**prefix)
                .any(|around| place(&around).is_some() || part.assign.contains_key(&around)),
        });
        let shut: Vec<_> = shut.map(|prefix| (*prefix, ProfileId::NOTHING)).collect();
        part.assign.extend(shut);
        Some(Step::Firewall { phase: Phase::Policy, change: part })
    }

    /// Notes a step that was withheld, or refused, perhaps after the kernel applied a part.
    pub fn not_applied(&mut self, step: &Step, observed: &ObservedState) {
        match step {
            Step::Firewall { phase, change } => match phase {
                Phase::Open => {}
                Phase::Revoke => {
                    self.grants = Grants::None;
                    self.exposed.extend(exposed_without(change, observed));
                }
                phase => {
                    self.grants = Grants::None;
                    self.unfenced |= *phase == Phase::Fence;
                }
            },
            // A table that marks no packets for these rules would cut off all peers.
            Step::RemoveRules { .. } => self.grants = Grants::None,
            Step::CreateLink { .. } => {
                self.grants = Grants::None;
                self.no_link = true;
            }
            // Without a port, a mark, an MTU or an address, peers are as safe as with it.
            Step::ClaimLink { .. } | Step::RenameLink { .. } | Step::SetPrivateKey { .. } => {
                self.grants = self.grants.min(Grants::Policies);
            }
            Step::CutFlows { prefixes } => self.uncut.extend(prefixes),
            Step::RemovePeer { .. } | Step::NarrowPeer { .. } => {
                self.unmoved.extend(withdrawn_by(step, observed).iter());
            }
            _ => self.unmoved.extend(given_by(step)),
        }
    }

    /// Notes what was not loaded of a change of the firewall that was loaded in parts.
    pub fn parted<E>(&mut self, phase: Phase, parted: &Parted<E>, observed: &ObservedState) {
        self.unloaded.extend(parted.unloadable.iter().map(|(id, ..)| *id));
        let Some((change, _)) = &parted.left else { return };
        if phase == Phase::Policy && parted.lacks_room {
            // Only who should get these destinations waits for them.
            self.unmoved.extend(change.assign.keys());
            self.unloaded.extend(change.put_profiles.keys());
        } else {
            self.not_applied(&Step::Firewall { phase, change: change.clone() }, observed);
        }
    }

    /// Whether the prefixes that a step withdraws from its peer may go now.
    ///
    /// A prefix that is closed and uncut stays: it reaches nothing, and its peer tells the next plan
    /// what to cut. One that could not be closed goes, cut or not: its place in the firewall tells.
    fn may_withdraw(&self, step: &Step, observed: &ObservedState) -> bool {
        if self.exposed.is_empty() && self.uncut.is_empty() {
            return true;
        }
        let table = observed.firewall.as_ref().filter(|_| !self.unfenced);
        let is_closed = |prefix: &IpNet| {
            table.is_some_and(|table| {
                let place = table.assignments().get(prefix);
                place.is_none_or(|place| *place == ProfileId::NOTHING)
            })
        };
        withdrawn_by(step, observed).as_slice().iter().all(|prefix| {
            let stays = self.uncut.contains(prefix) && is_closed(prefix);
            !self.exposed.contains(prefix) && !stays
        })
    }

    /// Whether a change opens, moves or forgets a prefix of which an earlier step failed.
    fn concerns_failed(&self, change: &FirewallChange, observed: &ObservedState) -> bool {
        if self.uncut.is_empty() && self.unmoved.is_empty() {
            return false;
        }
        let failed = |prefix: &IpNet| self.uncut.contains(prefix) || self.unmoved.contains(prefix);
        let changes_in_place = |prefix: &IpNet| {
            let table = observed.firewall.as_ref();
            let place = table.and_then(|table| table.assignments().get(prefix));
            place.is_some_and(|place| change.put_profiles.contains_key(place))
        };
        change.load_base.is_some()
            || change.unassign.iter().any(failed)
            || change.assign.keys().any(failed)
            || self.uncut.union(&self.unmoved).any(changes_in_place)
    }
}

/// Of the prefixes that a refused change was to close, those that a prefix of another peer contains. A
/// prefix without a place is closed by the closing of the place around it.
fn exposed_without(
    change: &FirewallChange,
    observed: &ObservedState,
) -> impl Iterator<Item = IpNet> {
    let closes = |prefix: &IpNet| change.assign.get(prefix) == Some(&ProfileId::NOTHING);
    let places = observed.firewall.as_ref().map(|table| table.assignments());
    let closes_around = |prefix: &IpNet| {
        let has_place = places.is_some_and(|places| places.contains_key(prefix));
        !has_place && prefixes_around(*prefix).any(|around| closes(&around))
    };
    let held = observed
        .peers
        .iter()
        .flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |prefix| (prefix, key)));
    let holders: BTreeMap<IpNet, &PublicKey> = held
        .filter(|(prefix, _)| may_contain_others(prefix) || closes(prefix) || closes_around(prefix))
        .collect();
    let closing = change.assign.keys().filter(|prefix| closes(prefix));
    let closing = closing.chain(holders.keys().filter(|prefix| closes_around(prefix)));
    let is_exposed = |prefix: &&IpNet| {
        let mut around = prefixes_around(**prefix).filter_map(|around| holders.get(&around));
        around.any(|holder| Some(holder) != holders.get(*prefix))
    };
    // A change that was loaded in parts may have closed it.
    let is_closed = |prefix: &&IpNet| {
        places.is_some_and(|places| places.get(*prefix) == Some(&ProfileId::NOTHING))
    };
    let open = closing.filter(|prefix| !is_closed(prefix));
    open.filter(is_exposed).copied().collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FixedRules, ObservedFirewall, Peer};

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn peer(prefixes: &[&str]) -> Peer {
        let allowed_ips = prefixes.iter().map(|text| prefix(text)).collect();
        Peer { allowed_ips, ..Peer::default() }
    }

    fn observed(peers: &[(u8, &[&str])], places: &[(&str, u32)]) -> ObservedState {
        let places = places.iter().map(|(text, id)| (prefix(text), ProfileId(*id))).collect();
        let table = ObservedFirewall::new(FixedRules::Open, BTreeMap::new(), places);
        let peers = peers.iter().map(|(number, prefixes)| (key(*number), peer(prefixes)));
        ObservedState { peers: peers.collect(), firewall: Some(table), ..ObservedState::default() }
    }

    fn firewall(phase: Phase, assign: &[(&str, u32)]) -> Step {
        let assign = assign.iter().map(|(text, id)| (prefix(text), ProfileId(*id))).collect();
        Step::Firewall { phase, change: FirewallChange { assign, ..FirewallChange::default() } }
    }

    fn after(failed: &[&Step], observed: &ObservedState) -> Interlock {
        let mut interlock = Interlock::default();
        failed.iter().for_each(|step| interlock.not_applied(step, observed));
        interlock
    }

    #[test]
    fn after_a_failed_policy_peers_are_removed_and_none_is_added() {
        let observed = observed(&[(1, &["10.64.0.2/32"])], &[]);
        let (remove, add) =
            (Step::RemovePeer { key: key(1) }, Step::AddPeer { key: key(2), peer: peer(&[]) });
        let refused = after(&[&firewall(Phase::Policy, &[])], &observed);
        assert!(refused.permits(&remove, &observed));
        assert!(!refused.permits(&add, &observed));
        let port = after(&[&Step::SetListenPort { port: 1 }], &observed);
        assert!(port.permits(&add, &observed));
    }

    #[test]
    fn peer_keeps_its_address_when_flow_cut_fails() {
        let closed = observed(&[(1, &["10.64.0.2/32"]), (3, &["10.64.0.3/32"])], &[]);
        let remove = |number| Step::RemovePeer { key: key(number) };
        let add = |text| Step::AddPeer { key: key(2), peer: peer(&[text]) };
        let policy = |text| firewall(Phase::Policy, &[(text, 1)]);
        let cut = Step::CutFlows { prefixes: [prefix("10.64.0.2/32")].into() };
        let uncut = after(&[&cut], &closed);
        assert!(!uncut.permits(&remove(1), &closed));
        assert!(!uncut.permits(&policy("10.64.0.2/32"), &closed));
        assert!(!uncut.permits(&add("10.64.0.2/32"), &closed));
        // What has nothing to do with that address goes on.
        assert!(uncut.permits(&remove(3), &closed));
        assert!(uncut.permits(&policy("10.64.0.3/32"), &closed));
        assert!(uncut.permits(&add("10.64.0.4/32"), &closed));
    }

    #[test]
    fn peer_that_could_not_be_closed_goes_although_flow_cut_fails() {
        let open = observed(&[(1, &["10.64.0.2/32"])], &[("10.64.0.2/32", 1)]);
        let revoke = firewall(Phase::Revoke, &[]);
        let cut = Step::CutFlows { prefixes: [prefix("10.64.0.2/32")].into() };
        assert!(after(&[&revoke], &open).permits(&cut, &open));
        let neither = after(&[&revoke, &cut], &open);
        assert!(neither.permits(&Step::RemovePeer { key: key(1) }, &open));
        assert!(!neither.permits(&firewall(Phase::Policy, &[]), &open));
        assert!(!neither.permits(&Step::AddPeer { key: key(2), peer: peer(&[]) }, &open));
    }

    #[test]
    fn open_prefix_within_another_peers_stays_with_its_holder() {
        let (host, site) = ("192.168.1.2/32", "192.168.1.0/24");
        let open = observed(&[(1, &[host]), (2, &[site])], &[(host, 1), (site, 2)]);
        let refused = after(&[&firewall(Phase::Revoke, &[(host, 0)])], &open);
        assert!(!refused.permits(&Step::RemovePeer { key: key(1) }, &open));
        assert!(refused.permits(&Step::RemovePeer { key: key(2) }, &open));
        // Inside its own prefix it stays with the same peer.
        let own = observed(&[(1, &[host, site])], &[(host, 1), (site, 2)]);
        let refused = after(&[&firewall(Phase::Revoke, &[(host, 0)])], &own);
        assert!(refused.permits(&Step::RemovePeer { key: key(1) }, &own));
    }

    #[test]
    fn prefix_without_a_place_stays_where_the_place_around_it_could_not_be_closed() {
        let (inner, site) = ("192.168.0.0/24", "192.168.0.0/23");
        let open = observed(&[(1, &[inner]), (2, &[site])], &[(site, 1)]);
        let refused = after(&[&firewall(Phase::Revoke, &[(site, 0)])], &open);
        assert!(!refused.permits(&Step::RemovePeer { key: key(1) }, &open));
        assert!(refused.permits(&Step::RemovePeer { key: key(2) }, &open));
    }

    #[test]
    fn what_concerns_no_failed_prefix_of_a_change_is_applied() {
        let [uncut, free] = ["10.64.0.2/32", "10.64.0.3/32"];
        let observed = observed(&[], &[(free, 1)]);
        let cut = Step::CutFlows { prefixes: [prefix(uncut)].into() };
        let interlock = after(&[&cut], &observed);
        let policy = firewall(Phase::Policy, &[(uncut, 1), (free, 2)]);
        assert!(!interlock.permits(&policy, &observed));
        let part = interlock.part_of(&policy, &observed);
        assert_eq!(part, Some(firewall(Phase::Policy, &[(free, 2)])));
        assert_eq!(interlock.part_of(&firewall(Phase::Policy, &[(uncut, 1)]), &observed), None);
        assert_eq!(interlock.part_of(&firewall(Phase::Open, &[(free, 2)]), &observed), None);
        let around = firewall(Phase::Policy, &[("10.64.0.0/24", 2)]);
        let shut = firewall(Phase::Policy, &[("10.64.0.0/24", 2), (uncut, 0)]);
        assert_eq!(interlock.part_of(&around, &observed), Some(shut), "it would reach as much");
        let refused = after(&[&cut, &firewall(Phase::Revoke, &[])], &observed);
        assert_eq!(refused.part_of(&policy, &observed), None, "the table is not as planned");
    }

    #[test]
    fn address_that_its_peer_kept_is_not_given_to_another() {
        let observed = observed(&[(1, &["10.64.0.2/32"])], &[]);
        let kept = after(&[&Step::RemovePeer { key: key(1) }], &observed);
        let policy = |text| firewall(Phase::Policy, &[(text, 1)]);
        assert!(!kept.permits(&policy("10.64.0.2/32"), &observed));
        assert!(kept.permits(&policy("10.64.0.3/32"), &observed));
    }

    #[test]
    fn closed_prefix_is_not_opened_to_a_profile_that_was_not_loaded() {
        let observed = observed(&[], &[("192.168.1.2/32", 0)]);
        let mut interlock = Interlock::default();
        let unloadable = vec![(ProfileId(7), std::sync::Arc::default(), "too large")];
        interlock.parted(Phase::Policy, &Parted { unloadable, ..Parted::default() }, &observed);
        let open = |id| firewall(Phase::Open, &[("192.168.1.2/32", id)]);
        assert!(!interlock.permits(&open(7), &observed), "it may lead to what was there before");
        assert!(interlock.permits(&open(8), &observed));
        assert!(interlock.permits(&Step::AddPeer { key: key(1), peer: peer(&[]) }, &observed));
    }

    #[test]
    fn without_a_link_only_the_firewall_and_flows_are_touched() {
        let observed = observed(&[], &[]);
        let create = Step::CreateLink {
            name: "gatepost0".parse().unwrap(),
            gateway_id: crate::model::GatewayId(uuid::Uuid::from_u128(1)),
        };
        let none = after(&[&create], &observed);
        assert!(none.permits(&firewall(Phase::Revoke, &[]), &observed));
        assert!(none.permits(&Step::CutFlows { prefixes: BTreeSet::new() }, &observed));
        assert!(!none.permits(&Step::RemovePeer { key: key(1) }, &observed));
        assert!(!none.permits(&Step::SetUp, &observed));
        assert!(!none.permits(&firewall(Phase::Policy, &[]), &observed));
    }
}
