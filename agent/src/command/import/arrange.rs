//! Arranges the parts of a found gateway as rows. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gatepost::model::{PresharedKey, PublicKey, check_network};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::file::Remark;
use super::found::{Found, FoundPeer};
use super::names::PeerName;

/// The rows of a gateway and its peers, and what belongs into the agent's configuration.
pub struct Arrangement {
    pub pool: IpNet,
    /// The gateway's own address within the pool.
    pub own: IpAddr,
    /// The networks that peers bring besides their own addresses.
    pub site_prefixes: BTreeSet<IpNet>,
    pub peers: Vec<ArrangedPeer>,
    pub notes: Vec<Remark>,
}

/// A peer with the user, the device and the address that its rows get.
pub struct ArrangedPeer {
    pub user: String,
    pub device: String,
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub assigned_ip: IpAddr,
    pub allowed_ips: Vec<IpNet>,
}

/// Arranges what was found. `device`: what a device is called whose comment names the user alone.
///
/// # Errors
/// Everything that no row can say.
pub fn arrange(found: &Found, device: &str) -> Result<Arrangement, Vec<Remark>> {
    let (pool, own) = pool(found).map_err(|text| vec![Remark { line: None, text }])?;
    let mut taken: BTreeSet<IpAddr> =
        found.peers.iter().flat_map(|peer| hosts(peer, pool)).collect();
    taken.insert(own);
    let mut arranging = Arranging {
        found,
        pool,
        own,
        taken,
        names: Names::new(device),
        wrong: Vec::new(),
        notes: Vec::new(),
    };
    arranging.refuse_claimed_twice();
    let mut site_prefixes = BTreeSet::new();
    let mut peers = Vec::new();
    for peer in &found.peers {
        let assigned_ip = arranging.address(peer);
        let allowed_ips: Vec<IpNet> =
            peer.allowed_ips.iter().copied().filter(|it| *it != IpNet::from(assigned_ip)).collect();
        site_prefixes.extend(allowed_ips.iter().filter_map(|it| arranging.site(peer, *it)));
        let PeerName { user, device } = arranging.names.of(peer, assigned_ip);
        peers.push(ArrangedPeer {
            user,
            device: device.unwrap_or_default(),
            public_key: peer.public_key,
            preshared_key: peer.preshared_key.clone(),
            assigned_ip,
            allowed_ips,
        });
    }
    match arranging.wrong.is_empty() {
        true => Ok(Arrangement { pool, own, site_prefixes, peers, notes: arranging.notes }),
        false => Err(arranging.wrong),
    }
}

/// The network that most peers have their addresses in, and the gateway's address in it.
fn pool(found: &Found) -> Result<(IpNet, IpAddr), String> {
    let networks = found.addresses.iter().filter(|it| it.prefix_len() < it.max_prefix_len());
    let peers_in = |network: &IpNet| {
        found.peers.iter().filter(|peer| hosts(peer, *network).next().is_some()).count()
    };
    // Of several the first: `max_by_key` would take the last.
    let best = networks.rev().max_by_key(|address| peers_in(&address.trunc()));
    if let Some(address) = best.filter(|it| peers_in(&it.trunc()) > 0 || found.peers.is_empty()) {
        return check_network(address.trunc())
            .map(|()| (address.trunc(), address.addr()))
            .map_err(|why| format!("the tunnel's network {} {why}", address.trunc()));
    }
    let own = found.addresses.iter().map(IpNet::addr).find(|own| around(found, *own).is_some());
    own.and_then(|own| Some((around(found, own)?, own))).ok_or_else(|| {
        "the interface has no address whose network contains an address of a peer: give it one \
         (Address), such as 10.8.0.1/24"
            .to_owned()
    })
}

/// Where the interface's addresses are single ones: the smallest network around them and the peers'.
fn around(found: &Found, own: IpAddr) -> Option<IpNet> {
    let everything = match own {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    let all: Vec<IpAddr> = found.peers.iter().flat_map(|peer| hosts(peer, everything)).collect();
    let longest = IpNet::from(own).max_prefix_len() - 2;
    let network = |len| IpNet::new(own, len).ok().map(|network| network.trunc());
    let fits = |network: &IpNet| {
        let ends = [network.network(), network.broadcast()];
        all.iter().chain([&own]).all(|it| network.contains(it) && !ends.contains(it))
    };
    (!all.is_empty()).then_some(())?;
    (8..=longest).rev().filter_map(network).find(fits).filter(|it| check_network(*it).is_ok())
}

/// A peer's single addresses within a network.
fn hosts(peer: &FoundPeer, network: IpNet) -> impl Iterator<Item = IpAddr> {
    let single = peer.allowed_ips.iter().filter(|it| it.prefix_len() == it.max_prefix_len());
    single.map(IpNet::addr).filter(move |address| network.contains(address))
}

struct Arranging<'a> {
    found: &'a Found,
    pool: IpNet,
    own: IpAddr,
    /// Addresses that a peer without one does not get.
    taken: BTreeSet<IpAddr>,
    names: Names,
    wrong: Vec<Remark>,
    notes: Vec<Remark>,
}

impl Arranging<'_> {
    fn wrong(&mut self, peer: &FoundPeer, text: String) {
        self.wrong.push(remark(peer, text));
    }

    /// WireGuard gives a key, or a prefix, that two sections have to the later one.
    fn refuse_claimed_twice(&mut self) {
        let mut keys = BTreeMap::new();
        let mut prefixes = BTreeMap::new();
        for peer in &self.found.peers {
            if let Some(first) = keys.insert(peer.public_key, peer) {
                let text = format!("the key of {} again: remove one section", told(first));
                self.wrong(peer, text);
                continue;
            }
            for prefix in peer.allowed_ips.iter().collect::<BTreeSet<_>>() {
                if let Some(first) = prefixes.insert(*prefix, peer) {
                    let text = format!(
                        "{prefix}, which {} has, too: only the later one works; remove the other",
                        told(first)
                    );
                    self.wrong(peer, text);
                }
            }
        }
    }

    /// The address of a peer's row: its first single one in the pool, else one that is free.
    fn address(&mut self, peer: &FoundPeer) -> IpAddr {
        let Some(address) = hosts(peer, self.pool).next() else {
            let Some(free) = self.free() else {
                self.wrong(peer, format!("no address of {} is free for it", self.pool));
                return self.own;
            };
            self.taken.insert(free);
            let text = format!(
                "this peer has no single address in {}: its row gets the free address {free}, which the peer does not have to use",
                self.pool
            );
            self.notes.push(remark(peer, text));
            return free;
        };
        if address == self.own {
            self.wrong(
                peer,
                format!("{address} is the gateway's own address: give the peer another"),
            );
        } else if is_end(address, self.pool) {
            let text =
                format!("{address} is the first or last of {}: give the peer another", self.pool);
            self.wrong(peer, text);
        }
        address
    }

    /// The highest address that is free.
    fn free(&self) -> Option<IpAddr> {
        let is_free = |it: &IpAddr| {
            !self.taken.contains(it)
                && !is_end(*it, self.pool)
                && !self
                    .found
                    .peers
                    .iter()
                    .any(|peer| peer.allowed_ips.iter().any(|p| p.contains(it)))
        };
        let (first, last) = (bits(self.pool.network()), bits(self.pool.broadcast()));
        let downward = (first..=last).rev().take(1 << 16);
        downward.map(|bits| address(bits, self.pool)).find(is_free)
    }

    /// The site prefix that lets a peer have a network besides its address.
    fn site(&mut self, peer: &FoundPeer, prefix: IpNet) -> Option<IpNet> {
        if let Err(why) = check_network(prefix) {
            self.wrong(
                peer,
                format!("{prefix} {why}: list the networks that are behind the peer instead"),
            );
            return None;
        }
        let networks = self.found.addresses.iter().map(IpNet::trunc);
        let mut suited =
            networks.filter(|network| *network != self.pool && check_network(*network).is_ok());
        Some(suited.find(|network| network.contains(&prefix)).unwrap_or(prefix))
    }
}

fn remark(peer: &FoundPeer, text: String) -> Remark {
    match peer.line {
        Some(_) => Remark { line: peer.line, text },
        None => Remark { line: None, text: format!("peer {}: {text}", peer.public_key) },
    }
}

/// How a remark about another peer names this one.
fn told(peer: &FoundPeer) -> String {
    match peer.line {
        Some(line) => format!("the section of line {line}"),
        None => format!("peer {}", peer.public_key),
    }
}

/// The network's own address, or its broadcast address.
fn is_end(address: IpAddr, network: IpNet) -> bool {
    let is_last = address.is_ipv4() && address == network.broadcast();
    network.prefix_len() + 1 < network.max_prefix_len() && (address == network.network() || is_last)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(bits: u128, like: IpNet) -> IpAddr {
    match (like, u32::try_from(bits)) {
        (IpNet::V4(_), Ok(bits)) => IpAddr::V4(bits.into()),
        _ => IpAddr::V6(bits.into()),
    }
}

/// Names that no two peers share.
struct Names {
    device: String,
    /// In lower case, as the database compares names of users.
    taken: BTreeSet<(String, String)>,
}

impl Names {
    fn new(device: &str) -> Self {
        Self { device: device.to_owned(), taken: BTreeSet::new() }
    }

    /// Without a comment, the user is called after the address.
    fn of(&mut self, peer: &FoundPeer, address: IpAddr) -> PeerName {
        let user =
            peer.name.as_ref().map_or_else(|| format!("peer-{address}"), |it| it.user.clone());
        let named = peer.name.as_ref().and_then(|name| name.device.clone());
        let first = named.unwrap_or_else(|| self.device.clone());
        let numbered = (2..).map(|number| format!("{first}-{number}"));
        let mut names = std::iter::once(first.clone()).chain(numbered);
        let device = names.find(|it| self.taken.insert((user.to_lowercase(), it.to_lowercase())));
        PeerName { user, device }
    }
}

#[cfg(test)]
mod tests;
