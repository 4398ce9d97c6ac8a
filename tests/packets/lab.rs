//! The network, made once for all sets of policies.
//!
//! ```text
//!  six peers ── wan ── gateway                   ── lan
//!  10.0.2.10..         10.0.2.1 in the tunnel,      everything else
//!  fd64::210..         fd64::201
//!                      10.0.1.1 in the LAN,
//!                      fd64::101
//! ```
//!
//! All of it lies where the random policies' destinations are dense. Peers and LAN have no stack of
//! their own: what comes out of a [`Tunnel`] or the [`Tap`] is seen, and answered.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;

use gatepost::dataplane::{Backend, stop_device};
use gatepost::model::{InterfaceName, PrivateKey};
use ipnet::IpNet;

use crate::netns::{Netns, unique};
use crate::tap::Tap;
use crate::tunnel::Tunnel;

pub const PEERS: usize = 6;
pub const PORT: u16 = 51820;
pub const POOL: &str = "10.0.2.0/24";
/// The gateway's addresses in the tunnel, with the networks around them.
pub const TUNNEL: [&str; 2] = ["10.0.2.1/24", "fd64::201/120"];
pub const SITE_PREFIXES: [&str; 3] = ["fd64::200/120", "fd64::300/120", "10.0.3.0/24"];
const LAN: [&str; 2] = ["10.0.1.1", "fd64::101"];
pub const WAN: [&str; 2] = ["192.0.2.128", "192.0.2.129"];
pub const LAN_NEXT_HOPS: [&str; 2] = ["10.0.1.2", "fd64::102"];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Where a packet is sent or seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Peer(usize),
    Lan,
    /// The gateway's own services.
    Gateway,
}

/// The prefixes of a peer: its address first, then what it announces. The last peer's sites lie
/// within the first one's.
pub fn prefixes(peer: usize) -> Vec<IpNet> {
    let host6 = Ipv6Addr::from((0xfd64 << 112) | 0x210 | peer as u128);
    let mut prefixes = vec![
        IpNet::from(IpAddr::from([10, 0, 2, 10 + peer as u8])),
        IpNet::from(IpAddr::from(host6)),
    ];
    let sites: &[&str] = match peer {
        0 => &["10.0.3.0/24", "fd64::300/120"],
        5 => &["10.0.3.128/25", "10.0.3.7/32", "fd64::380/121", "fd64::307/128"],
        _ => &[],
    };
    prefixes.extend(sites.iter().map(|site| site.parse::<IpNet>().unwrap()));
    prefixes
}

/// Addresses that a peer sends from.
pub fn sources(peer: usize) -> Vec<IpAddr> {
    let within = |prefix: IpNet| match prefix.addr() {
        address if prefix.prefix_len() == prefix.max_prefix_len() => address,
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + 9).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + 9).into()),
    };
    prefixes(peer).into_iter().map(within).collect()
}

/// The gateway's own addresses.
pub fn gateway_addresses() -> Vec<IpAddr> {
    tunnel_addresses().into_iter().chain(LAN.map(|address| address.parse().unwrap())).collect()
}

/// Those in the tunnel, whose pings are always answered.
pub fn tunnel_addresses() -> Vec<IpAddr> {
    TUNNEL.map(|address| address.parse::<IpNet>().unwrap().addr()).to_vec()
}

/// Where packets to this address come out, if they are let through. `None`: nowhere, whatever the
/// policies say.
pub fn place_of(address: IpAddr) -> Option<Place> {
    static HELD: LazyLock<Vec<(IpNet, Option<Place>)>> = LazyLock::new(held);
    if let Some((_, place)) = HELD.iter().find(|(prefix, _)| prefix.contains(&address)) {
        return *place;
    }
    let forwarded = match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(address) => {
            let first = address.octets()[0];
            first >> 5 == 1 || first >> 1 == 0xfc >> 1
        }
    };
    forwarded.then_some(Place::Lan)
}

/// Prefixes that are not the LAN's, longest first.
fn held() -> Vec<(IpNet, Option<Place>)> {
    let gateway = gateway_addresses().into_iter();
    let mut held: Vec<_> = gateway.map(|at| (IpNet::from(at), Some(Place::Gateway))).collect();
    for peer in 0..PEERS {
        held.extend(prefixes(peer).into_iter().map(|prefix| (prefix, Some(Place::Peer(peer)))));
    }
    held.extend(TUNNEL.map(|network| (network.parse().unwrap(), None)));
    held.extend(WAN.map(|address| (IpNet::from(address.parse::<IpAddr>().unwrap()), None)));
    held.sort_by_key(|(prefix, _)| Reverse(prefix.prefix_len()));
    held
}

pub fn gateway_key() -> PrivateKey {
    PrivateKey::from_random([1; 32])
}

pub fn peer_key(peer: usize) -> PrivateKey {
    PrivateKey::from_random([2 + peer as u8; 32])
}

pub struct Lab {
    pub backend: Backend,
    pub gateway: Netns,
    /// The name of the gateway's WireGuard interface.
    pub interface: InterfaceName,
    wan: Netns,
    lan: Netns,
}

impl Lab {
    /// The network, without the gateway's WireGuard interface.
    pub fn new(backend: Backend) -> Self {
        let (gateway, wan, lan) = (Netns::new("Pg"), Netns::new("Pw"), Netns::new("Pl"));
        lan.exec("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        for name in ["all", "default"] {
            gateway.exec(&format!(
                "sysctl -qw net.ipv4.conf.{name}.rp_filter=0 net.ipv4.conf.{name}.send_redirects=0"
            ));
        }
        gateway.exec("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        gateway.connect(&format!("{}/31", WAN[0]), &wan, &format!("{}/31", WAN[1]));
        connect_lan(&gateway, &lan);
        let interface = unique("P").parse().unwrap();
        Self { backend, gateway, interface, wan, lan }
    }

    pub fn tunnel(&self, peer: usize) -> Tunnel {
        let endpoint = SocketAddr::new(WAN[0].parse().unwrap(), PORT);
        let (key, gateway) = (peer_key(peer), gateway_key());
        self.wan.enter(|| Tunnel::open(&key, &gateway, endpoint, peer as u32))
    }

    pub fn tap(&self) -> Tap {
        self.lan.enter(|| Tap::open("lan0", LAN_MAC, GATEWAY_MAC))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A kernel link goes with its namespace; a userspace device must be told.
        let _ = self.gateway.enter(|| stop_device(&self.interface));
    }
}

/// A cable whose far end has neither address nor stack, so its neighbour entries are fixed. It is
/// the way to everywhere.
fn connect_lan(gateway: &Netns, lan: &Netns) {
    let text = |mac: [u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
    gateway.plug("lan0", lan);
    gateway.exec(&format!("ip link set lan0 address {}", text(GATEWAY_MAC)));
    lan.exec(&format!("ip link set lan0 address {}", text(LAN_MAC)));
    for (address, next_hop) in LAN.into_iter().zip(LAN_NEXT_HOPS) {
        let family = if address.contains(':') { "-6" } else { "-4" };
        let mac = text(LAN_MAC);
        gateway.exec(&format!("ip {family} address add {address} dev lan0 nodad"));
        gateway.exec(&format!("ip neigh add {next_hop} lladdr {mac} nud permanent dev lan0"));
        gateway.exec(&format!("ip {family} route add default via {next_hop} dev lan0 onlink"));
    }
}
