//! The control plane's tables, small enough that everything collides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::model::{
    BarredBy, ChangedRows, DeviceId, Effect, GatewayRow, GroupId, KeyText, Local, MembershipRow,
    PeerId, PeerRow, PolicyId, PolicyRow, SettingRow, SnapshotRows, TargetRow, TargetType, UserId,
};
use ipnet::IpNet;

use super::bytes::Bytes;
use super::rows;

/// Devices, each with one peer and a user of its own, are numbered from 1.
pub const DEVICES: u8 = 6;
const POLICIES: u8 = 4;
const GROUP: u8 = 200;

/// What one gateway's agent reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    pub gateway: GatewayRow,
    pub settings: Vec<SettingRow>,
    pub peers: BTreeMap<PeerId, PeerRow>,
    pub memberships: BTreeMap<UserId, BTreeSet<GroupId>>,
    pub policies: BTreeMap<PolicyId, PolicyRow>,
}

/// What a transaction changes.
#[derive(Debug, Clone)]
pub enum Change {
    Peer(u8, Option<Box<PeerRow>>),
    Bars(u8, BarredBy),
    RevokedAt(u8, SystemTime),
    Policy(u8, Option<PolicyRow>),
    Group(u8, bool),
    /// Every row of a peer is gone.
    Emptied,
    GatewayActive(bool),
    ListenPort(i32),
    Inbound(bool),
}

pub fn local() -> Arc<Local> {
    let site_prefixes = BTreeSet::from(["192.168.0.0/16", "fd20::/32"].map(prefix));
    Arc::new(Local { site_prefixes, ..rows::local() })
}

fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn peer_id(number: u8) -> PeerId {
    PeerId(rows::id(number))
}

pub fn device_id(number: u8) -> DeviceId {
    DeviceId(rows::id(number))
}

impl Tables {
    /// The first rows: some devices, and a policy for all.
    pub fn first(bytes: &mut Bytes<'_>) -> Self {
        let mut tables = Self {
            gateway: GatewayRow { dns_servers: vec!["10.0.0.53".into()], ..rows::gateway_row() },
            settings: Vec::new(),
            peers: BTreeMap::new(),
            memberships: BTreeMap::new(),
            policies: BTreeMap::new(),
        };
        for number in 1..=2 + bytes.below(5) as u8 {
            let row = draw_peer(number.min(DEVICES), bytes);
            tables.peers.insert(row.id, row);
        }
        let policy = draw_policy(1, bytes);
        tables.policies.insert(policy.id, policy);
        tables
    }

    /// Says whether a state can be built from the gateway's row.
    pub const fn is_buildable(&self) -> bool {
        self.gateway.listen_port > 0
    }

    /// These tables with a gateway's row that can be used.
    pub fn buildable(&self) -> Self {
        let mut tables = self.clone();
        if !self.is_buildable() {
            tables.gateway.listen_port = rows::gateway_row().listen_port;
        }
        tables
    }

    pub fn snapshot(&self, taken_at: SystemTime) -> SnapshotRows {
        let memberships = self.memberships.iter().map(|(user_id, group_ids)| MembershipRow {
            user_id: *user_id,
            group_ids: group_ids.clone(),
        });
        SnapshotRows {
            gateway: self.gateway.clone(),
            settings: self.settings.clone(),
            peers: self.peers.values().cloned().collect(),
            memberships: memberships.collect(),
            policies: self.policies.values().cloned().collect(),
            taken_at,
        }
    }

    pub fn make(&mut self, change: &Change) {
        match change.clone() {
            Change::Peer(number, row) => {
                self.peers.remove(&peer_id(number));
                self.peers.extend(row.map(|row| (row.id, *row)));
            }
            Change::Bars(number, bars) => {
                if let Some(row) = self.peers.get_mut(&peer_id(number)) {
                    (row.bars, row.revoked_at) = (bars, None);
                }
            }
            Change::RevokedAt(number, at) => {
                if let Some(row) = self.peers.get_mut(&peer_id(number)) {
                    row.revoked_at = Some(at);
                }
            }
            Change::Policy(number, row) => {
                self.policies.remove(&PolicyId(rows::id(number)));
                self.policies.extend(row.map(|row| (row.id, row)));
            }
            Change::Group(number, member) => {
                let groups = member.then(|| GroupId(rows::id(GROUP)));
                let user = UserId(rows::id(number));
                self.memberships.insert(user, groups.into_iter().collect());
            }
            Change::Emptied => self.peers.clear(),
            Change::GatewayActive(active) => self.gateway.active = active,
            Change::ListenPort(port) => self.gateway.listen_port = port,
            Change::Inbound(allow) => {
                let (category, key) = ("policy".into(), "allow_inbound".into());
                self.settings = vec![SettingRow { category, key, value: allow.to_string() }];
            }
        }
    }

    /// Takes in what a reader of changes got.
    pub fn apply(&mut self, changed: &ChangedRows) {
        self.peers.retain(|_, row| !changed.peers.contains_key(&row.device_id));
        self.peers.extend(changed.peers.values().flatten().map(|row| (row.id, row.clone())));
        self.memberships.extend(changed.memberships.clone());
        for (id, row) in &changed.policies {
            self.policies.remove(id);
            self.policies.extend(row.clone().map(|row| (*id, row)));
        }
    }

    /// What a reader of changes gets that had read `old`; `None`: it must read everything.
    pub fn changed_since(&self, old: &Self, taken_at: SystemTime) -> Option<ChangedRows> {
        if old.gateway != self.gateway || old.settings != self.settings {
            return None;
        }
        let mut changed = rows::no_changes(taken_at);
        for id in old.peers.keys().chain(self.peers.keys()) {
            let (had, has) = (old.peers.get(id), self.peers.get(id));
            if had != has {
                // Each device has one row.
                let device = had.or(has)?.device_id;
                changed.peers.insert(device, has.cloned().into_iter().collect());
            }
        }
        let users =
            self.memberships.iter().filter(|(id, has)| old.memberships.get(id) != Some(has));
        changed.memberships = users.map(|(id, has)| (*id, has.clone())).collect();
        for id in old.policies.keys().chain(self.policies.keys()) {
            if old.policies.get(id) != self.policies.get(id) {
                changed.policies.insert(*id, self.policies.get(id).cloned());
            }
        }
        Some(changed)
    }
}

impl Change {
    /// Draws a change that an application or an operator makes.
    pub fn draw(bytes: &mut Bytes<'_>, database_now: SystemTime) -> Self {
        let number = 1 + bytes.below(usize::from(DEVICES)) as u8;
        match bytes.below(24) {
            0..4 => Self::Bars(number, BarredBy::DEVICE_STATUS),
            4..8 => Self::Bars(number, BarredBy::default()),
            8..12 => Self::Peer(number, Some(Box::new(draw_peer(number, bytes)))),
            12 => Self::Peer(number, None),
            13 => Self::Bars(number, BarredBy::USER_INACTIVE),
            14 => {
                let ahead = Duration::from_millis(u64::from(bytes.next()) * 100);
                Self::RevokedAt(number, database_now + ahead)
            }
            15..19 => {
                let number = 1 + bytes.below(usize::from(POLICIES)) as u8;
                let gone = bytes.one_in(4);
                Self::Policy(number, (!gone).then(|| draw_policy(number, bytes)))
            }
            19 => Self::Group(number, bytes.one_in(2)),
            20 => Self::Inbound(bytes.one_in(2)),
            21 => Self::GatewayActive(!bytes.one_in(2)),
            22 => Self::ListenPort(bytes.pick(&[51820, 51821, 0])),
            _ => Self::Emptied,
        }
    }

    /// The devices that a mark of this change names; `None`: it concerns every peer.
    pub fn devices(&self) -> Option<Vec<uuid::Uuid>> {
        match self {
            Self::Peer(number, _) | Self::Bars(number, _) | Self::RevokedAt(number, _) => {
                Some(vec![device_id(*number).0])
            }
            Self::Emptied => Some((1..=DEVICES).map(|number| device_id(number).0).collect()),
            Self::Policy(..) | Self::Group(..) => Some(Vec::new()),
            Self::GatewayActive(_) | Self::ListenPort(_) | Self::Inbound(_) => None,
        }
    }
}

/// What goes with a network in IPv6: the same bytes choose both.
fn in_ipv6(network: &str) -> Option<IpNet> {
    let twin = match network {
        "192.168.0.0/24" => "fd20:0:0:1::/64",
        "192.168.0.0/23" => "fd20::/48",
        "172.16.0.0/16" => "fd30::/32",
        "172.16.1.0/24" => "fd30:0:1::/48",
        _ => return None,
    };
    Some(prefix(twin))
}

fn with_ipv6(network: &str) -> impl Iterator<Item = IpNet> {
    std::iter::once(prefix(network)).chain(in_ipv6(network))
}

fn draw_peer(number: u8, bytes: &mut Bytes<'_>) -> PeerRow {
    let other = 1 + bytes.below(usize::from(DEVICES)) as u8;
    let strange = bytes.below(8);
    let key = if strange == 7 { other } else { number };
    let address = if strange == 6 { other } else { number };
    let sites = ["", "", "", "192.168.0.0/24", "192.168.1.0/24", "192.168.0.0/23"];
    let site = bytes.pick(&sites);
    PeerRow {
        public_key: KeyText::Key(rows::public_key(key)),
        assigned_ip: prefix(&format!("10.64.0.{}/32", address + 1)),
        allowed_ips: Some(site)
            .filter(|it| !it.is_empty())
            .into_iter()
            .flat_map(with_ipv6)
            .collect(),
        created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(bytes.below(3) as u64),
        ..rows::peer_row(number)
    }
}

fn draw_policy(number: u8, bytes: &mut Bytes<'_>) -> PolicyRow {
    let nets = ["172.16.0.0/16", "172.16.0.0/24", "172.16.1.0/24", "10.64.0.0/24", "0.0.0.0/0"];
    let members = !bytes.next();
    let user = |user: u8| rows::target(TargetType::User, rows::id(user));
    let chosen = (1..=DEVICES).filter(|user| members >> user & 1 == 1);
    let mut targets: Vec<TargetRow> = chosen.map(user).collect();
    if bytes.one_in(3) {
        targets = vec![rows::target(TargetType::Group, rows::id(GROUP))];
    }
    PolicyRow {
        priority: bytes.below(3) as i32,
        effect: if bytes.one_in(4) { Effect::Deny } else { Effect::Allow },
        destinations: with_ipv6(bytes.pick(&nets)).collect(),
        targets,
        ..rows::policy_row(number)
    }
}
