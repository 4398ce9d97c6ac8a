//! Prefixes within prefixes.

use ipnet::IpNet;

/// Whether another prefix may lie within this one: it is more than one address.
pub(super) fn may_contain_others(prefix: &IpNet) -> bool {
    prefix.prefix_len() < prefix.max_prefix_len()
}

/// Every shorter prefix that contains this one, from the shortest.
pub(super) fn prefixes_around(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    (0..prefix.prefix_len())
        .filter_map(move |len| IpNet::new(prefix.addr(), len).ok())
        .map(|around| around.trunc())
}
