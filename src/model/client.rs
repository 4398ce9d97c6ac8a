//! The destinations that a client sends through the tunnel.

use std::net::IpAddr;

use ipnet::IpNet;

use super::policy::internet;
use super::{Address, DesiredState, PeerRow, Profile, Profiles, Ranges};

/// The prefixes that a peer's client should send through the tunnel, of the family of its address:
/// `allowed_ips` as the database holds it, less the prefixes behind the client itself; if none are left, the
/// destinations that its policies allow, its DNS servers and the gateway's tunnel address.
///
/// The row of an evaluated state has lost the entries of `allowed_ips` that are for the client.
///
/// A client that may reach the whole internet gets everything, because `wg-quick` keeps the encrypted packets
/// out of the tunnel only then. Else `endpoint`, the gateway's address outside, is left out.
#[must_use]
pub fn client_routes(
    desired: &DesiredState,
    row: &PeerRow,
    allowed_ips: &[IpNet],
    endpoint: Option<IpAddr>,
) -> Vec<IpNet> {
    let is_v4 = row.assigned_ip.addr().is_ipv4();
    let of_family = |prefix: &&IpNet| prefix.addr().is_ipv4() == is_v4;
    // Its own address is the gateway's side of the same column.
    let is_own = |prefix: &&IpNet| prefix.contains(&row.assigned_ip.addr()) && is_host(prefix);
    let written = allowed_ips.iter().filter(of_family).filter(|it| !is_own(it));
    let written = written.filter(|it| !desired.is_of_site(it));
    let written: Vec<IpNet> = written.map(IpNet::trunc).collect();
    if !written.is_empty() {
        return written;
    }
    let profile = desired.reach_of(row, &mut Profiles::default());
    let tunnel = desired.interface().addresses.iter().map(|address| IpNet::from(address.addr()));
    let dns = profile.dns_servers.iter().copied().map(IpNet::from);
    let hosts: Vec<IpNet> = tunnel.chain(dns).filter(|host| of_family(&host)).collect();
    let Profile { allow4, allow6, .. } = &*profile;
    if is_v4 { routes(allow4, &hosts, endpoint) } else { routes(allow6, &hosts, endpoint) }
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn routes<T: Address>(
    allowed: &Ranges<T>,
    hosts: &[IpNet],
    endpoint: Option<IpAddr>,
) -> Vec<IpNet> {
    let everything: Ranges<T> = [(T::MIN, T::MAX)].into_iter().collect();
    if internet::<T>().difference(allowed).is_empty() {
        return everything.prefixes().collect();
    }
    let hosts = hosts.iter().filter_map(T::span);
    let all: Ranges<T> = allowed.as_slice().iter().copied().chain(hosts).collect();
    let outside = endpoint.map(IpNet::from).and_then(|endpoint| T::span(&endpoint));
    all.difference(&outside.into_iter().collect()).prefixes().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(prefixes: &[&str]) -> Ranges<u32> {
        prefixes.iter().map(|it| u32::span(&it.parse().unwrap()).unwrap()).collect()
    }

    fn texts(routes: &[IpNet]) -> Vec<String> {
        routes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_may_be_reached_is_routed_without_the_gateways_own_address() {
        let hosts = ["10.99.0.1/32".parse().unwrap()];
        let found = routes(&ranges(&["10.20.0.0/16", "192.0.2.0/30"]), &hosts, None);
        assert_eq!(texts(&found), ["10.20.0.0/16", "10.99.0.1/32", "192.0.2.0/30"]);
        let endpoint = Some("192.0.2.1".parse().unwrap());
        let found = routes(&ranges(&["192.0.2.0/30"]), &[], endpoint);
        assert_eq!(texts(&found), ["192.0.2.0/32", "192.0.2.2/31"]);
        assert!(routes(&ranges(&[]), &[], endpoint).is_empty());
    }

    #[test]
    fn a_client_that_may_reach_the_internet_sends_everything() {
        let endpoint = Some("192.0.2.1".parse().unwrap());
        let internet: Ranges<u32> = internet();
        assert_eq!(texts(&routes(&internet, &[], endpoint)), ["0.0.0.0/0"]);
        let most = internet.difference(&ranges(&["1.1.1.1/32"]));
        assert!(routes(&most, &[], endpoint).len() > 1);
    }
}
