//! The flows that the gateway itself may open toward peers.

use gatepost::dataplane::nft::labels_flows;
use gatepost::model::Openings;

use crate::config::Config;

/// The ports of sockets that ask for none, where the kernel does not say.
const DEFAULT_PORTS: (u16, u16) = (32_768, 60_999);

/// As the configuration says, with the ports that the kernel gives to sockets that ask for none.
/// `None`: this kernel cannot tell the gateway's flows from others.
pub fn openings(config: &Config) -> Option<Openings> {
    // Where the kernel does not say, loading the rules will.
    if labels_flows().is_ok_and(|labels| !labels) {
        tracing::warn!(
            "this kernel has no connection labels (CONFIG_NF_CONNTRACK_LABELS): the gateway itself \
             can open no connection to peers"
        );
        return None;
    }
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let range = range.and_then(|text| parse(&text)).unwrap_or(DEFAULT_PORTS);
    let listed = config.firewall.gateway_udp_ports.as_slice().iter().copied();
    Some(Openings {
        udp_ports: listed.chain([range]).collect(),
        protocols: config.firewall.gateway_protocols.clone(),
    })
}

fn parse(text: &str) -> Option<(u16, u16)> {
    let mut ports = text.split_whitespace().map(|port| port.parse().ok());
    ports.next()?.zip(ports.next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_range_of_ports_is_read() {
        assert_eq!(parse("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(parse(""), None);
    }
}
