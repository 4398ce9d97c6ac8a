//! Rows as the database gave them, decoded but not yet judged.
//!
//! A row may be wrong: a key that is no key, an address outside the pool, an unknown effect.
//! Judging is the work of [`DesiredState`](super::DesiredState), which costs one peer per bad row.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    BeyondLimit, DeviceId, GatewayId, GroupId, KeyError, Mark, PeerId, PolicyId, PublicKey,
    RowLimit, UserId,
};

/// A public key as a row holds it: parsed, or kept with the reason why it cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum KeyText {
    Key(PublicKey),
    Bad { text: Box<str>, why: KeyError },
}

impl KeyText {
    /// Parses the text of a `public_key` column.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(key) => Self::Key(key),
            Err(why) => Self::Bad { text: text.into(), why },
        }
    }
}

impl From<String> for KeyText {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

impl From<KeyText> for String {
    fn from(key: KeyText) -> Self {
        match key {
            KeyText::Key(key) => key.to_string(),
            KeyText::Bad { text, .. } => text.into(),
        }
    }
}

/// The row of `gateways` that this agent acts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayRow {
    pub id: GatewayId,
    pub name: String,
    pub public_key: KeyText,
    pub listen_port: i32,
    pub vpn_cidr: IpNet,
    pub dns_servers: Vec<String>,
    /// `is_active` and not deleted.
    pub active: bool,
    /// The `ip_allocations` row with status `gateway` and no device.
    pub allocated_address: Option<IpAddr>,
}

/// `devices.status` is another than `active`.
pub const DEVICE_NOT_ACTIVE: &str = "device not active";

/// The flaws of device and user that bar a peer, as far as the rows show them without a clock. Empty: eligible,
/// unless approval is required or `revoked_at` has come. A comment in the database calls this type `Bars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BarredBy(u16);

impl BarredBy {
    pub const DEVICE_DELETED: Self = Self(1);
    pub const DEVICE_STATUS: Self = Self(1 << 1);
    pub const USER_INACTIVE: Self = Self(1 << 2);
    pub const USER_DELETED: Self = Self(1 << 3);
    /// `devices.approved_at` is null: bars only where setting `gateway.require_approval` is true.
    pub const NOT_APPROVED: Self = Self(1 << 4);
    /// All that a mistake with a whole table may look like.
    pub const DELETIONS: Self =
        Self::DEVICE_DELETED.union(Self::USER_INACTIVE).union(Self::USER_DELETED);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::DEVICE_DELETED, "device deleted"),
        (Self::DEVICE_STATUS, DEVICE_NOT_ACTIVE),
        (Self::USER_INACTIVE, "user not active"),
        (Self::USER_DELETED, "user deleted"),
        (Self::NOT_APPROVED, "device not approved (setting gateway.require_approval)"),
    ];

    /// The bits as `gatepost.snapshot_peers` returns them.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The reasons in words, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().filter(move |(bar, _)| self.0 & bar.0 != 0).map(|(_, name)| *name)
    }
}

/// The row of `ip_allocations` for a peer's `assigned_ip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Allocation {
    /// A row with status `allocated` names this gateway, address and device.
    Held,
    /// No such row, or one that is released.
    Missing,
    /// The address is allocated to another device.
    Other(DeviceId),
}

/// A live row of `wireguard_peers` with what its device and user add to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    pub id: PeerId,
    pub device_id: DeviceId,
    pub user_id: UserId,
    pub device_name: Box<str>,
    pub username: Box<str>,
    pub public_key: KeyText,
    /// `inet` may carry a prefix length; a peer's must be a host's.
    pub assigned_ip: IpNet,
    pub preshared_key: Option<Box<str>>,
    pub allowed_ips: Box<[IpNet]>,
    pub dns_servers: Box<[Box<str>]>,
    pub bars: BarredBy,
    /// `devices.revoked_at`: bars the peer from that moment on, also when it lies ahead.
    #[serde(with = "micros::optional")]
    pub revoked_at: Option<SystemTime>,
    pub allocation: Allocation,
    #[serde(with = "micros")]
    pub created_at: SystemTime,
    /// The list with too many entries, which were not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond: Option<Box<BeyondLimit>>,
}

impl PeerRow {
    /// The address that it assigns, as a prefix.
    #[must_use]
    pub fn address(&self) -> IpNet {
        IpNet::from(self.assigned_ip.addr())
    }
}

/// `policies.effect`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Effect {
    Allow,
    Deny,
    /// Unknown: denies.
    Unknown(Box<str>),
}

/// `policy_targets.target_type`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TargetType {
    User,
    Device,
    Group,
    /// Unknown: matches no device.
    Unknown(Box<str>),
}

/// A row of `policy_targets`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TargetRow {
    pub target_type: TargetType,
    pub target_id: Uuid,
    /// Nothing with this id exists.
    pub dangling: bool,
}

/// An active, undeleted row of `policies` that concerns a peer of this gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    pub id: PolicyId,
    pub name: String,
    pub priority: i32,
    pub effect: Effect,
    pub full_tunnel: bool,
    pub destinations: Vec<IpNet>,
    pub targets: Vec<TargetRow>,
    /// It had too many destinations, and has others now: see [`Self::closed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond: Option<BeyondLimit>,
}

/// All destinations that a policy may have.
#[must_use]
pub fn every_address() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

impl PolicyRow {
    /// The same without its destinations, of which there are too many to read: it allows nothing, or
    /// denies every address. Fewer of them would deny less.
    #[must_use]
    pub fn closed(self, beyond: BeyondLimit) -> Self {
        let destinations = match self.effect {
            Effect::Allow => Vec::new(),
            Effect::Deny | Effect::Unknown(_) => every_address().to_vec(),
        };
        Self { full_tunnel: false, destinations, beyond: Some(beyond), ..self }
    }
}

/// The undeleted groups of one user who owns a peer of this gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRow {
    pub user_id: UserId,
    pub group_ids: BTreeSet<GroupId>,
}

/// A row of `settings` in category `gateway`, `policy` or `gateway:<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRow {
    pub category: String,
    pub key: String,
    /// The `value` column's JSON text.
    pub value: String,
}

/// Everything one gateway's agent reads, as of one instant of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRows {
    pub gateway: GatewayRow,
    pub settings: Vec<SettingRow>,
    pub peers: Vec<PeerRow>,
    pub memberships: Vec<MembershipRow>,
    pub policies: Vec<PolicyRow>,
    /// The database's clock when the snapshot was taken.
    pub taken_at: SystemTime,
}

impl SnapshotRows {
    /// More peers or policies than a gateway reads.
    #[must_use]
    pub fn beyond(&self) -> Option<BeyondLimit> {
        let peers = RowLimit::Peers.check(self.gateway.id.0, self.peers.len());
        peers.or_else(|| RowLimit::Policies.check(self.gateway.id.0, self.policies.len()))
    }

    /// No more of them than that: without the newest peers, and of the policies without those that allow
    /// before those that deny.
    #[must_use]
    pub fn within_limits(mut self) -> Self {
        if self.beyond().is_some() {
            self.peers.sort_unstable_by_key(|peer| (peer.created_at, peer.id));
            self.peers.truncate(RowLimit::Peers.most());
            self.policies.sort_unstable_by_key(|policy| {
                (policy.effect == Effect::Allow, policy.priority, policy.id)
            });
            self.policies.truncate(RowLimit::Policies.most());
        }
        self
    }
}

/// The present rows of everything that changed between two snapshots. A key with nothing behind it
/// is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedRows {
    pub peers: BTreeMap<DeviceId, Vec<PeerRow>>,
    pub memberships: BTreeMap<UserId, BTreeSet<GroupId>>,
    pub policies: BTreeMap<PolicyId, Option<PolicyRow>>,
    /// The marks that may have withdrawn peers.
    #[serde(skip)]
    pub marks: Vec<Mark>,
    /// The database's clock when the rows were read.
    pub taken_at: SystemTime,
}

impl ChangedRows {
    /// A new policy.
    #[must_use]
    pub fn of_policy(policy: PolicyRow, taken_at: SystemTime) -> Self {
        Self {
            peers: BTreeMap::new(),
            memberships: BTreeMap::new(),
            policies: BTreeMap::from([(policy.id, Some(policy))]),
            marks: Vec::new(),
            taken_at,
        }
    }

    /// Both changes together, each row once. `later` was read after this.
    #[must_use]
    pub fn followed_by(mut self, later: Self) -> Self {
        self.peers.extend(later.peers);
        self.memberships.extend(later.memberships);
        self.policies.extend(later.policies);
        self.marks.extend(later.marks);
        self.taken_at = later.taken_at;
        self
    }
}

/// Times of rows as signed microseconds since 1970, as PostgreSQL counts: people write any year, and
/// serde's own form of a `SystemTime` knows none before 1970.
mod micros {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        of(*at).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        at(i64::deserialize(from)?)
    }

    pub(super) mod optional {
        use super::*;

        pub(in super::super) fn serialize<S: Serializer>(
            at: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            at.map(of).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            Option::<i64>::deserialize(from)?.map(at).transpose()
        }
    }

    fn of(at: SystemTime) -> i64 {
        let whole = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => whole(after),
            Err(before) => -whole(before.duration()),
        }
    }

    fn at<E: serde::de::Error>(micros: i64) -> Result<SystemTime, E> {
        let span = Duration::from_micros(micros.unsigned_abs());
        let time = match micros {
            0.. => SystemTime::UNIX_EPOCH.checked_add(span),
            _ => SystemTime::UNIX_EPOCH.checked_sub(span),
        };
        time.ok_or_else(|| E::custom(format!("{micros} us is no time")))
    }
}
