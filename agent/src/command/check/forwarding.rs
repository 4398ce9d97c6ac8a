//! Whether this host forwards what peers send. Pure.

use ipnet::IpNet;

use super::facts::HostFacts;
use super::finding::Finding;
use crate::config::Config;

/// The families in which peers have addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Families {
    /// From the configuration and these networks.
    pub fn of(config: &Config, networks: impl IntoIterator<Item = IpNet>) -> Self {
        let interface = &config.interface;
        let named = interface.addresses.iter().chain(&interface.site_prefixes).copied();
        let prefixes: Vec<IpNet> = named.chain(networks).collect();
        let has = |is_family: fn(&IpNet) -> bool| prefixes.iter().any(is_family);
        Self {
            ipv4: has(|prefix| matches!(prefix, IpNet::V4(_))),
            ipv6: has(|prefix| matches!(prefix, IpNet::V6(_))),
        }
    }
}

/// A finding for each family.
pub fn forwarding(host: &HostFacts, used: Families) -> Vec<Finding> {
    // A host that forwards IPv6 ignores router advertisements unless accept_ra is 2, and loses the
    // address that it got from them.
    let uplink = host.uplink.as_ref().map_or("UPLINK", |(name, _)| name.as_str());
    let forward_ipv6 = format!(
        "sysctl -w net.ipv6.conf.{uplink}.accept_ra=2 net.ipv6.conf.all.forwarding=1, in this \
         order, and save both in /etc/sysctl.d/"
    );
    let forward_ipv4 = "sysctl -w net.ipv4.ip_forward=1, and save it in /etc/sysctl.d/";
    vec![
        of_family("IPv4", used.ipv4, host.forwarding_ipv4, forward_ipv4),
        of_family("IPv6", used.ipv6, host.forwarding_ipv6, &forward_ipv6),
    ]
}

fn of_family(family: &str, is_used: bool, value: Option<u64>, remedy: &str) -> Finding {
    let unless = format!("none, unless peers need {family}");
    match (value, is_used) {
        (Some(0), true) => {
            let text = format!("{family} forwarding is off, so peers reach only this host");
            Finding::warning("forwarding", text, remedy)
        }
        (Some(0), false) => {
            let text = format!("{family} forwarding is off, and no peer has an {family} address");
            Finding::note("forwarding", text, unless)
        }
        (Some(_), _) => Finding::ok("forwarding", format!("{family} forwarding is on")),
        (None, _) => Finding::note("forwarding", format!("this kernel has no {family}"), unless),
    }
}
