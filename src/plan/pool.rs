//! The tunnel's network beside those of other links.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::PlanError;
use crate::model::{DesiredState, ObservedState, check_network};

/// Whether a network can be the tunnel's on a host whose other links have these networks. One that
/// lies within another link's would take that link's route.
///
/// # Errors
/// [`PlanError::UnsuitedNetwork`], [`PlanError::NetworkTaken`]
pub fn usable_network(pool: IpNet, others: &BTreeMap<IpNet, Box<str>>) -> Result<(), PlanError> {
    check_network(pool).map_err(|why| PlanError::UnsuitedNetwork { pool, why })?;
    match others.iter().find(|(network, _)| network.contains(&pool)) {
        None => Ok(()),
        Some((network, link)) => {
            Err(PlanError::NetworkTaken { pool, network: *network, link: link.clone() })
        }
    }
}

/// Refuses a tunnel whose network cannot be one on this host.
pub(super) fn refuse_unusable(
    desired: &DesiredState,
    observed: &ObservedState,
) -> Result<(), PlanError> {
    pools(desired).try_for_each(|pool| usable_network(pool, &observed.networks))
}

/// Networks of other links inside the tunnel's, each with its link and the tunnel's.
pub fn networks_within<'a>(
    desired: &'a DesiredState,
    observed: &'a ObservedState,
) -> impl Iterator<Item = (IpNet, &'a str, IpNet)> {
    observed.networks.iter().filter_map(|(network, link)| {
        let around = pools(desired).find(|pool| pool.contains(network))?;
        Some((*network, &**link, around))
    })
}

fn pools(desired: &DesiredState) -> impl Iterator<Item = IpNet> {
    let interface = desired.interface();
    std::iter::once(desired.gateway().vpn_cidr.trunc()).chain(interface.networks())
}
