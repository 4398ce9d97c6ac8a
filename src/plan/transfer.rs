//! Prefixes that pass from one peer to another, and whose tracked flows must be cut in between.
//!
//! The kernel's connection tracking knows a flow by its address. The next holder of the address
//! would inherit it, together with its translation. So a prefix may leave WireGuard only after its
//! flows are cut, whenever the agent is killed. A prefix that is taken from a peer loses its place
//! in the firewall first, so that no new flow can be opened; then its flows are cut; then it is
//! taken. A prefix that no peer holds, because another program removed the peer, may still have a
//! place in the firewall, which tells that it was held: its flows are cut before the place is
//! removed or given to another peer.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::join::joined;
use super::moved::{given_by, withdrawn_by};
use super::prefix::{may_contain_others, prefixes_around};
use super::wanted::Wanted;
use super::{Held, Scope, Step};
use crate::model::{DesiredState, ObservedState, PublicKey};

/// The prefixes that the steps take from peers and give to peers.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    pub taken: BTreeSet<IpNet>,
    given: BTreeSet<IpNet>,
    /// Those within a prefix that another peer holds before or after, which only sites have. The
    /// longest prefix decides, in the device and in the firewall, and both cannot change at once:
    /// what is taken from its peer falls to the peer around it while the firewall still judges it
    /// as the former one's, and the other way about when it is given.
    pub closed: BTreeSet<IpNet>,
}

impl Transfers {
    pub fn of(
        desired: &DesiredState,
        held: &Held,
        wanted: Wanted<'_>,
        observed: &ObservedState,
        steps: &[Step],
    ) -> Self {
        let (mut transfers, mut moved) = (Self::default(), Vec::new());
        for step in steps {
            let (Step::RemovePeer { key }
            | Step::NarrowPeer { key, .. }
            | Step::AddPeer { key, .. }
            | Step::WidenPeer { key, .. }) = step
            else {
                continue;
            };
            let taken = withdrawn_by(step, observed);
            transfers.taken.extend(taken.iter());
            transfers.given.extend(given_by(step));
            moved.extend(taken.iter().chain(given_by(step)).map(|prefix| (prefix, *key)));
        }
        let lost = places_left_within(wanted, observed, &transfers.taken);
        transfers.taken.extend(lost);
        let keeps = |key: &PublicKey, prefix: &IpNet| {
            let wanted = desired.peers().get(key);
            wanted.is_some_and(|peer| peer.allowed_ips.contains(prefix)) || held.keeps(key, prefix)
        };
        transfers.closed =
            within_anothers(desired, wanted, observed, &transfers.taken, moved, keeps);
        transfers
    }

    /// The prefixes whose flows must be cut.
    ///
    /// A peer that is merely put back keeps its flows: its prefix has its place in the firewall, with the
    /// destinations that it should have. A prefix without a place was cut when it lost the place. Only a full
    /// plan cuts it all the same, because another program may have emptied the table before. A small plan is
    /// spared the walk through the kernel's whole table, some 9 ms.
    pub fn to_cut(
        &self,
        wanted: Wanted<'_>,
        observed: &ObservedState,
        scope: &Scope,
    ) -> BTreeSet<IpNet> {
        let table = observed.firewall.as_ref();
        let has_place =
            |prefix: &IpNet| table.is_some_and(|table| table.assignments().contains_key(prefix));
        let is_put_back = |prefix: &IpNet| {
            let reaches = table.and_then(|table| table.profile_of(prefix));
            reaches.is_some() && reaches == wanted.get(prefix)
        };
        let inherits = |prefix: &&IpNet| {
            let may_be_uncut = table.is_none()
                || *scope == Scope::Everything
                || has_place(prefix)
                || self.closed.contains(*prefix);
            may_be_uncut && !is_put_back(prefix)
        };
        let mut prefixes = self.taken.clone();
        prefixes.extend(self.given.iter().filter(inherits));
        // Prefixes that lose their place.
        match scope {
            Scope::Everything => {
                let places = table.map(|table| joined(table.assignments().iter(), wanted.iter()));
                let lost = places
                    .into_iter()
                    .flatten()
                    .filter(|(_, place, wanted)| place.is_some() && wanted.is_none());
                prefixes.extend(lost.map(|(prefix, ..)| *prefix));
            }
            Scope::Changed { prefixes: changed, .. } => {
                let loses = |prefix: &&IpNet| has_place(prefix) && !wanted.contains(prefix);
                prefixes.extend(changed.iter().filter(loses));
            }
        }
        prefixes
    }
}

/// Places inside the taken prefixes that belong to no desired peer, as a killed run leaves behind. The
/// peer that loses the prefix would be judged by them, and could open new flows.
fn places_left_within(
    wanted: Wanted<'_>,
    observed: &ObservedState,
    taken: &BTreeSet<IpNet>,
) -> Vec<IpNet> {
    let Some(table) = &observed.firewall else { return Vec::new() };
    let within = |prefix: IpNet| table.assignments().range(prefix..=prefix.broadcast().into());
    let wide = taken.iter().copied().filter(may_contain_others);
    let places = wide.flat_map(within).map(|(place, _)| *place);
    places.filter(|place| !wanted.contains(place)).collect()
}

fn within_anothers(
    desired: &DesiredState,
    wanted: Wanted<'_>,
    observed: &ObservedState,
    taken: &BTreeSet<IpNet>,
    moved: Vec<(IpNet, PublicKey)>,
    keeps: impl Fn(&PublicKey, &IpNet) -> bool,
) -> BTreeSet<IpNet> {
    let wide: BTreeSet<IpNet> = taken.iter().copied().filter(may_contain_others).collect();
    let places = observed.firewall.as_ref().map(|table| table.assignments());
    let within_another = |(prefix, key): &(IpNet, PublicKey)| {
        let keeps = |around: &IpNet| {
            let had = observed.peers.get(key).is_some_and(|peer| peer.allowed_ips.contains(around));
            had && keeps(key, around)
        };
        let given = desired.is_of_site(prefix).then_some(wanted);
        // Without its own place it would be judged by the place around it, which is another peer's.
        let places = places.filter(|_| taken.contains(prefix));
        (given.is_some() || places.is_some() || !wide.is_empty())
            && prefixes_around(*prefix).any(|around| {
                let held = given.is_some_and(|given| given.contains(&around))
                    || places.is_some_and(|places| places.contains_key(&around))
                    || wide.contains(&around);
                held && !keeps(&around)
            })
    };
    moved.into_iter().filter(within_another).map(|(prefix, _)| prefix).collect()
}
