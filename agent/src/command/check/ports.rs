//! Ports that the agent needs, and that another program may have taken.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use gatepost::dataplane::link_facts;

use super::finding::Finding;
use crate::config::Config;

/// A port that cannot be opened, because another program has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenPort {
    WireGuard(u16),
    Metrics(SocketAddr),
}

/// Tries the ports that nothing of ours has yet: WireGuard's while there is no link, and that of metrics while
/// no agent runs.
pub fn taken(config: &Config, listen_port: Option<u16>, agent_runs: bool) -> Vec<TakenPort> {
    let has_link = !matches!(link_facts(&config.interface.name), Ok(None));
    let port = listen_port.filter(|port| !has_link && is_taken(*port));
    let listen = config.metrics.listen;
    let metrics = (!agent_runs).then(|| TcpListener::bind(listen)).and_then(Result::err);
    let metrics = metrics.filter(|error| error.kind() == ErrorKind::AddrInUse);
    let metrics = metrics.map(|_| TakenPort::Metrics(listen));
    port.map(TakenPort::WireGuard).into_iter().chain(metrics).collect()
}

/// WireGuard opens its port for both families.
fn is_taken(port: u16) -> bool {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    any.iter().any(|any| {
        let opened = UdpSocket::bind((*any, port));
        opened.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    })
}

pub fn finding(taken: &TakenPort) -> Finding {
    match taken {
        TakenPort::WireGuard(port) => Finding::warning(
            "port",
            format!("another program has UDP port {port}, so WireGuard cannot listen there"),
            format!("`ss -ulnp sport = :{port}` names it: end it, or change gateways.listen_port"),
        ),
        TakenPort::Metrics(listen) => Finding::warning(
            "metrics",
            format!("another program listens on {listen}, so there would be no metrics"),
            format!(
                "`ss -tlnp sport = :{}` names it: end it, or change metrics.listen",
                listen.port()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_others_have_are_found() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (udp, tcp) = (UdpSocket::bind(any).unwrap(), TcpListener::bind(any).unwrap());
        let port = udp.local_addr().unwrap().port();
        let mut config = Config::default();
        config.interface.name = "gp-nolink0".parse().unwrap();
        config.metrics.listen = tcp.local_addr().unwrap();
        let both = [TakenPort::WireGuard(port), TakenPort::Metrics(config.metrics.listen)];
        assert_eq!(taken(&config, Some(port), false), both);
        assert_eq!(taken(&config, Some(port), true), both[..1], "the agent itself has it");
        drop((udp, tcp));
        assert_eq!(taken(&config, Some(port), false), []);
        config.interface.name = "lo".parse().unwrap();
        let _udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(taken(&config, Some(port), false), [], "the link has it");
    }

    #[test]
    fn taken_port_is_named_with_the_way_to_its_owner() {
        let said = finding(&TakenPort::WireGuard(51820));
        assert!(said.text.contains("UDP port 51820"), "{said:?}");
        assert!(said.remedy.unwrap().starts_with("`ss -ulnp sport = :51820` names it"));
    }
}
