//! Prefixes of one peer within a prefix of another, which only sites have.
//!
//! The longest prefix decides, in the device and in the firewall. Both cannot change at once: a
//! prefix that is taken from its peer falls to the peer around it, while the firewall still judges
//! it as the former one's, and the other way about when it is given.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Step;
use crate::model::{AllowedIps, DesiredState, ObservedState, PublicKey};

/// Those that the steps take from a peer or give to one, within a prefix that another holds before
/// or after.
pub(super) fn changing_hands(
    desired: &DesiredState,
    observed: &ObservedState,
    steps: &[Step],
) -> BTreeSet<IpNet> {
    let changing = Changing::of(observed, steps);
    let within_another = |(prefix, key): &(IpNet, PublicKey)| {
        let keeps = |around: &IpNet| {
            let has = |allowed_ips: &AllowedIps| allowed_ips.contains(around);
            observed.peers.get(key).is_some_and(|peer| has(&peer.allowed_ips))
                && desired.peers().get(key).is_some_and(|peer| has(&peer.allowed_ips))
        };
        let given = desired.is_of_site(prefix).then_some(&desired.firewall().assignments);
        let taken = (!changing.taken.is_empty()).then_some(&changing.taken);
        (given.is_some() || taken.is_some())
            && prefixes_around(*prefix).any(|around| {
                let held = given.is_some_and(|given| given.contains_key(&around))
                    || taken.is_some_and(|taken| taken.contains(&around));
                held && !keeps(&around)
            })
    };
    changing.all.iter().filter(|found| within_another(found)).map(|(prefix, _)| *prefix).collect()
}

/// What changes hands.
#[derive(Default)]
struct Changing {
    all: Vec<(IpNet, PublicKey)>,
    /// Those that are taken away and may hold others.
    taken: BTreeSet<IpNet>,
}

impl Changing {
    fn of(observed: &ObservedState, steps: &[Step]) -> Self {
        let mut changing = Self::default();
        for step in steps {
            let had = |key| observed.peers.get(key).map(|peer| &peer.allowed_ips);
            match step {
                Step::RemovePeer { key } => {
                    changing.take(*key, had(key).into_iter().flat_map(AllowedIps::iter));
                }
                Step::NarrowPeer { key, allowed_ips } => {
                    let lost = had(key).map(|had| had.difference(allowed_ips));
                    changing.take(*key, lost.iter().flat_map(AllowedIps::iter));
                }
                Step::AddPeer { key, peer } => changing.give(*key, &peer.allowed_ips),
                Step::WidenPeer { key, allowed_ips } => changing.give(*key, allowed_ips),
                _ => {}
            }
        }
        changing
    }

    fn take(&mut self, key: PublicKey, prefixes: impl Iterator<Item = IpNet>) {
        for prefix in prefixes {
            self.all.push((prefix, key));
            if prefix.prefix_len() < prefix.max_prefix_len() {
                self.taken.insert(prefix);
            }
        }
    }

    fn give(&mut self, key: PublicKey, prefixes: &AllowedIps) {
        self.all.extend(prefixes.iter().map(|prefix| (prefix, key)));
    }
}

fn prefixes_around(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    (0..prefix.prefix_len())
        .filter_map(move |len| IpNet::new(prefix.addr(), len).ok())
        .map(|around| around.trunc())
}
