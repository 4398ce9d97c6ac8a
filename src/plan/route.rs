//! Routes into the tunnel.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Step;
use crate::model::{ObservedState, Tag, network};

/// The steps that make the routes what is desired. The kernel makes the pool's own route, which may
/// be flushed while the address stays.
pub(super) fn steps(desired: &BTreeSet<IpNet>, observed: &ObservedState, steps: &mut Vec<Step>) {
    let missing: Vec<IpNet> =
        desired.iter().filter(|prefix| !observed.routes.contains_key(prefix)).copied().collect();
    if !missing.is_empty() {
        let coming = made_by_the_kernel(observed, steps);
        let ours = missing.into_iter().filter(|prefix| !coming.contains(prefix));
        steps.extend(ours.map(|prefix| Step::AddRoute { prefix }));
    }
    let orphans = observed
        .routes
        .iter()
        .filter(|(prefix, tag)| **tag == Tag::Ours && !desired.contains(*prefix));
    steps.extend(orphans.map(|(prefix, _)| Step::RemoveRoute { prefix: *prefix }));
}

/// The networks of the addresses that these steps add, and of all when the link comes up.
fn made_by_the_kernel(observed: &ObservedState, steps: &[Step]) -> BTreeSet<IpNet> {
    let mut made = BTreeSet::new();
    for step in steps {
        match step {
            Step::AddAddress { address } | Step::ReplaceAddress { to: address, .. } => {
                made.extend(network(address));
            }
            // A link that is freed comes up again, too.
            Step::SetUp | Step::FreeLink { .. } => {
                made.extend(observed.interface.iter().flat_map(|link| link.networks()));
            }
            _ => {}
        }
    }
    made
}
