//! Random sets of policies: the rows that stand, each set made from the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use gatepost::model::policy::Verdict;
use gatepost::model::policy::reference::{self, Sender};
use gatepost::model::{
    ChangedRows, GatewayRow, GroupId, InterfaceName, KeyText, Local, Masquerade, MembershipRow,
    PeerRow, PolicyId, PolicyRow, SettingRow, SnapshotRows,
};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use uuid::Uuid;

use crate::lab::{self, PEERS, POOL, PORT, Place, SITE_PREFIXES, TUNNEL};
use crate::packet::{Packet, Protocol};
use crate::test_rows;
use crate::world::{USERS, memberships, policy_id, row, rows, senders, user};

pub const DNS_PORT: u16 = 53;
const POLICIES: u128 = 8;
const GATEWAY_DNS: [&str; 3] = ["10.0.1.53", "fd64::153", "corp.example"];
const PEER_DNS: [&str; 4] = ["10.0.0.99", "fd64::99", "10.0.2.1", "fd64::201"];

/// Chance that gives the same for the same seed.
pub struct Chance {
    runner: TestRunner,
    pub numbers: fastrand::Rng,
}

impl Chance {
    pub fn new(seed: u64) -> Self {
        let bytes: Vec<u8> = seed.to_be_bytes().repeat(4);
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let runner = TestRunner::new_with_rng(Config::default(), random);
        Self { runner, numbers: fastrand::Rng::with_seed(seed) }
    }

    fn draw<T>(&mut self, strategy: impl Strategy<Value = T>) -> T {
        strategy.new_tree(&mut self.runner).unwrap().current()
    }

    /// Whether something that happens once in so many times happens now.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.numbers.u32(..times) == 0
    }
}

/// What a gateway takes from its settings and its configuration. When it differs, the gateway
/// reads everything anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rules {
    default_effect: Verdict,
    allow_dns: bool,
    allow_inbound: bool,
    masquerade: Masquerade,
}

/// The rows of one moment, and who decides what by them.
#[derive(Debug, Clone)]
pub struct PolicySet {
    rules: Rules,
    /// The active ones: what is inactive or deleted is for a gateway as if it were not there.
    policies: BTreeMap<PolicyId, PolicyRow>,
    groups: Vec<BTreeSet<GroupId>>,
    peer_dns: Vec<BTreeSet<IpAddr>>,
    /// The prefixes of each peer; a peer without any is not in the rows.
    prefixes: Vec<Vec<IpNet>>,
}

/// How the gateway hears of a set.
pub enum News {
    /// What changed since the set before.
    Changed(ChangedRows),
    Everything(Arc<Local>, SnapshotRows),
}

impl PolicySet {
    pub fn first(chance: &mut Chance) -> Self {
        let policies = chance.draw(rows());
        Self {
            rules: Rules::any(chance),
            policies: policies.into_iter().map(|policy| (policy.id, policy)).collect(),
            groups: chance.draw(memberships()),
            peer_dns: vec![BTreeSet::new(); PEERS],
            prefixes: (0..PEERS).map(lab::prefixes).collect(),
        }
    }

    /// This set, with some peers taken out and others let in again, and the sites of the last peer
    /// with any of those that are there.
    pub fn with_other_peers(mut self, chance: &mut Chance) -> Self {
        let mut sites = lab::prefixes(PEERS - 1).split_off(2);
        for peer in 0..PEERS {
            let is_here = !chance.once_in(4);
            self.prefixes[peer] = lab::prefixes(peer);
            self.prefixes[peer].retain(|prefix| is_here && !sites.contains(prefix));
        }
        let here: Vec<usize> = (0..PEERS).filter(|at| self.has(*at)).collect();
        if let Some(holder) = chance.numbers.choice(here) {
            self.prefixes[holder].append(&mut sites);
        }
        self
    }

    /// Whether this peer is in the rows.
    pub fn has(&self, peer: usize) -> bool {
        !self.prefixes[peer].is_empty()
    }

    /// The prefixes of each peer.
    pub fn prefixes(&self) -> &[Vec<IpNet>] {
        &self.prefixes
    }

    /// Those that have another peer, or none, in another set.
    pub fn prefixes_that_move(&self, other: &Self) -> Vec<IpNet> {
        let lost = |from: &Self, to: &Self| -> Vec<IpNet> {
            let pairs = from.prefixes.iter().zip(&to.prefixes);
            pairs
                .flat_map(|(had, has)| had.iter().filter(|it| !has.contains(it)))
                .copied()
                .collect()
        };
        [lost(self, other), lost(other, self)].concat()
    }

    pub fn allows_inbound(&self) -> bool {
        self.rules.allow_inbound
    }

    /// Another set: most policies replaced, added, switched off or deleted, some users in other
    /// groups, now and then other settings.
    pub fn next(&self, chance: &mut Chance) -> Self {
        let mut next = self.clone();
        if chance.once_in(6) {
            next.rules = Rules::any(chance);
        }
        for id in (0..POLICIES).map(policy_id) {
            match chance.numbers.u8(..10) {
                0..4 => {}
                4..7 => drop(next.policies.remove(&id)),
                _ => drop(next.policies.insert(id, policy(id, chance))),
            }
        }
        if chance.once_in(2) {
            let (at, groups) = (chance.numbers.usize(..next.groups.len()), memberships());
            next.groups[at] = chance.draw(groups)[at].clone();
        }
        if chance.once_in(3) {
            let at = chance.numbers.usize(..PEERS);
            let servers = PEER_DNS.into_iter().filter(|_| chance.once_in(2));
            next.peer_dns[at] = servers.map(|server| server.parse().unwrap()).collect();
        }
        next
    }

    /// What the gateway is told when this set takes the place of `old`.
    pub fn news(&self, old: Option<&Self>, interface: &InterfaceName) -> News {
        match old {
            Some(old) if old.rules == self.rules => News::Changed(self.changed(old)),
            _ => News::Everything(Arc::new(self.local(interface)), self.snapshot()),
        }
    }

    /// Who says what should become of packets.
    pub fn reference(&self) -> Reference {
        let default_effect = self.rules.default_effect;
        let dns_servers = |peer| match self.rules.allow_dns {
            true => self.dns_servers(peer),
            false => BTreeSet::new(),
        };
        Reference {
            rows: self.rows(),
            senders: senders(&self.groups),
            dns_servers: (0..PEERS).map(dns_servers).collect(),
            always_pinged: lab::tunnel_addresses(),
            inbound: if self.rules.allow_inbound { Verdict::Allow } else { Verdict::Deny },
            default_effect,
        }
    }

    pub fn rows(&self) -> Vec<PolicyRow> {
        self.policies.values().cloned().collect()
    }

    fn sender(&self, peer: usize) -> Sender {
        senders(&self.groups)[peer].clone()
    }

    fn dns_servers(&self, peer: usize) -> BTreeSet<IpAddr> {
        let gateway = GATEWAY_DNS.iter().filter_map(|server| server.parse().ok());
        gateway.chain(self.peer_dns[peer].iter().copied()).collect()
    }

    fn changed(&self, old: &Self) -> ChangedRows {
        let ids = (0..POLICIES).map(policy_id);
        let policies = ids.filter(|id| self.policies.get(id) != old.policies.get(id));
        let users = (0..USERS as usize).filter(|at| self.groups[*at] != old.groups[*at]);
        let is_changed = |peer: &usize| {
            self.peer_dns[*peer] != old.peer_dns[*peer]
                || self.prefixes[*peer] != old.prefixes[*peer]
        };
        let peers = (0..PEERS).filter(is_changed);
        ChangedRows {
            marks: Vec::new(),
            peers: peers
                .map(|peer| {
                    (self.sender(peer).device_id, self.peer_row(peer).into_iter().collect())
                })
                .collect(),
            memberships: users.map(|at| (user(at as u128), self.groups[at].clone())).collect(),
            policies: policies.map(|id| (id, self.policies.get(&id).cloned())).collect(),
            taken_at: SystemTime::UNIX_EPOCH,
        }
    }

    pub fn snapshot(&self) -> SnapshotRows {
        let setting = |key: &str, value: String| SettingRow {
            category: "policy".into(),
            key: key.into(),
            value,
        };
        let users = self.groups.iter().enumerate();
        SnapshotRows {
            gateway: gateway_row(),
            settings: vec![
                setting("allow_dns", self.rules.allow_dns.to_string()),
                setting("allow_inbound", self.rules.allow_inbound.to_string()),
                setting("default_effect", format!("\"{}\"", self.rules.default_effect)),
            ],
            peers: (0..PEERS).filter_map(|peer| self.peer_row(peer)).collect(),
            memberships: users
                .map(|(at, groups)| MembershipRow {
                    user_id: user(at as u128),
                    group_ids: groups.clone(),
                })
                .collect(),
            policies: self.rows(),
            taken_at: SystemTime::UNIX_EPOCH,
        }
    }

    pub fn local(&self, interface: &InterfaceName) -> Local {
        Local {
            interface: interface.clone(),
            private_key: lab::gateway_key(),
            addresses: TUNNEL.map(|address| address.parse().unwrap()).into(),
            site_prefixes: SITE_PREFIXES.map(|prefix| prefix.parse().unwrap()).into(),
            masquerade: self.rules.masquerade,
            ..test_rows::local()
        }
    }

    fn peer_row(&self, peer: usize) -> Option<PeerRow> {
        let Sender { user_id, device_id, .. } = self.sender(peer);
        let (assigned_ip, announced) = self.prefixes[peer].split_first()?;
        let profile: [IpNet; 2] = ["0.0.0.0/0", "::/0"].map(|all| all.parse().unwrap());
        Some(PeerRow {
            id: Uuid::from_u128(0x500 + peer as u128).into(),
            device_id,
            user_id,
            device_name: format!("device-{peer}").into(),
            username: user_id.to_string().into(),
            public_key: KeyText::Key(lab::peer_key(peer).public_key()),
            assigned_ip: *assigned_ip,
            allowed_ips: announced.iter().copied().chain(profile).collect(),
            dns_servers: self.peer_dns[peer].iter().map(|at| at.to_string().into()).collect(),
            ..test_rows::peer_row(1)
        })
    }
}

/// The slow evaluator, and what a gateway allows besides its policies.
#[derive(Debug, Clone)]
pub struct Reference {
    rows: Vec<PolicyRow>,
    senders: Vec<Sender>,
    /// Those that a peer may ask.
    dns_servers: Vec<BTreeSet<IpAddr>>,
    always_pinged: Vec<IpAddr>,
    inbound: Verdict,
    default_effect: Verdict,
}

impl Reference {
    /// What should become of a request.
    pub fn verdict(&self, from: Place, request: &Packet) -> Verdict {
        let Place::Peer(peer) = from else { return self.inbound };
        let (to, port) = request.service;
        let is_ping = request.protocol == Protocol::Icmp;
        let is_dns = !is_ping && port == DNS_PORT && self.dns_servers[peer].contains(&to);
        if is_dns || is_ping && self.always_pinged.contains(&to) {
            return Verdict::Allow;
        }
        reference::verdict(&self.rows, &self.senders[peer], to, self.default_effect)
    }

    /// The opposite where no policy decides: wrong on purpose.
    pub fn falsified(mut self) -> Self {
        self.default_effect = match self.default_effect {
            Verdict::Allow => Verdict::Deny,
            Verdict::Deny => Verdict::Allow,
        };
        self
    }
}

impl Rules {
    fn any(chance: &mut Chance) -> Self {
        Self {
            default_effect: if chance.once_in(3) { Verdict::Allow } else { Verdict::Deny },
            allow_dns: chance.once_in(2),
            allow_inbound: chance.once_in(2),
            masquerade: *chance
                .numbers
                .choice(&[Masquerade::All, Masquerade::Internet, Masquerade::None])
                .unwrap(),
        }
    }
}

/// Every address that is a DNS server in some set.
pub fn dns_candidates() -> impl Iterator<Item = IpAddr> {
    GATEWAY_DNS.into_iter().chain(PEER_DNS).filter_map(|server| server.parse().ok())
}

/// A random policy; now and then one that means a peer's neighbourhood, or with more destinations
/// than fit into rules.
fn policy(id: PolicyId, chance: &mut Chance) -> PolicyRow {
    let mut policy = chance.draw(row(id));
    if chance.once_in(2) {
        let peer = chance.numbers.usize(..PEERS);
        let prefixes = lab::prefixes(peer);
        let near = *chance.numbers.choice(&prefixes).unwrap();
        let wider = near.prefix_len() - chance.numbers.u8(..4);
        policy.destinations.push(IpNet::new(near.addr(), wider).unwrap().trunc());
    }
    if chance.once_in(16) {
        for host in 0..36u32 {
            let host4 = std::net::Ipv4Addr::from(0x0a00_0000 + host * 5);
            let host6 = std::net::Ipv6Addr::from((0xfd64 << 112) + u128::from(host) * 3);
            policy.destinations.push(IpNet::from(IpAddr::from(host4)));
            policy.destinations.push(IpNet::from(IpAddr::from(host6)));
        }
    }
    policy
}

fn gateway_row() -> GatewayRow {
    GatewayRow {
        public_key: KeyText::Key(lab::gateway_key().public_key()),
        listen_port: PORT.into(),
        vpn_cidr: POOL.parse().unwrap(),
        dns_servers: GATEWAY_DNS.map(str::to_owned).to_vec(),
        ..test_rows::gateway_row()
    }
}
