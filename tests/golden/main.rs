//! Golden plans: each folder here holds what the rows say, what the kernel holds, and the plan.
//!
//! `GATEPOST_BLESS=1 cargo test --test golden` writes the plans anew; read the difference before
//! you commit it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

#[path = "../support/rows.rs"]
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gatepost::model::{
    Allocation, DesiredState, DeviceId, Effect, Gate, GatewayId, GatewayRow, HostRouting, KeyText,
    LinkOwner, Local, MarkBit, ObservedInterface, ObservedState, Peer, PeerId, PeerRow, PolicyId,
    PolicyRow, PublicKey, SettingRow, SnapshotRows, Stray, Tag, TargetRow, TargetType, UserId,
};
use gatepost::plan::{Held, ModelKernel, Scope, gate, plan, plan_around};
use ipnet::IpNet;
use serde::Deserialize;
use uuid::Uuid;

use rows::{gateway_row, local, peer_row, policy_row, private_key, snapshot};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Desired {
    vpn_cidr: IpNet,
    #[serde(default = "yes")]
    active: bool,
    #[serde(default)]
    site_prefixes: BTreeSet<IpNet>,
    /// `firewall.fail_closed` is auto.
    #[serde(default)]
    fail_closed: bool,
    #[serde(default)]
    setting: BTreeMap<String, String>,
    #[serde(default)]
    peer: Vec<DesiredPeer>,
    #[serde(default)]
    policy: Vec<Policy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DesiredPeer {
    user: u8,
    key: KeyNumber,
    ip: IpNet,
    #[serde(default)]
    allowed_ips: Vec<IpNet>,
    #[serde(default)]
    created: u64,
    #[serde(default = "yes")]
    allocated: bool,
    #[serde(default)]
    revoked: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    effect: String,
    priority: i32,
    users: Vec<u8>,
    destinations: Vec<IpNet>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Observed {
    interface: Option<Interface>,
    #[serde(default)]
    peer: Vec<ObservedPeer>,
    #[serde(default)]
    routes: BTreeSet<IpNet>,
    /// The routes that the kernel made for the addresses are gone.
    #[serde(default)]
    flushed: bool,
    /// Our table holds what the rows of `before.toml` ask for.
    #[serde(default)]
    firewall: bool,
    /// The interface that our table guards.
    #[serde(default = "interface")]
    guards: String,
    /// Other links with our mark: whether they are up.
    #[serde(default)]
    strays: BTreeMap<Box<str>, bool>,
    /// The networks of other links, each with its link.
    #[serde(default)]
    networks: BTreeMap<IpNet, Box<str>>,
    /// The rules of the gate are there.
    #[serde(default)]
    gate: bool,
    /// Links check sources without regard to marks.
    #[serde(default)]
    checks_sources: bool,
    /// The removals wait for an operator's word.
    #[serde(default)]
    hold_removals: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    #[serde(default = "interface")]
    name: String,
    owner: String,
    key: Option<KeyNumber>,
    #[serde(default = "yes")]
    up: bool,
    #[serde(default)]
    has_master: bool,
    #[serde(default)]
    sessions_ended: bool,
    #[serde(default = "port")]
    listen_port: u16,
    #[serde(default)]
    addresses: Vec<IpNet>,
    #[serde(default)]
    foreign_addresses: Vec<IpNet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ObservedPeer {
    key: KeyNumber,
    allowed_ips: Vec<IpNet>,
}

/// A key: the gateway's own, one known by a number, or a text that is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum KeyNumber {
    Number(u8),
    Text(String),
}

impl KeyNumber {
    fn row(&self) -> KeyText {
        match self {
            Self::Number(0) => KeyText::Key(private_key().public_key()),
            Self::Number(number) => KeyText::Key(PublicKey::from_bytes([*number; 32]).unwrap()),
            Self::Text(text) => KeyText::parse(text),
        }
    }

    fn key(&self) -> PublicKey {
        match self.row() {
            KeyText::Key(key) => key,
            KeyText::Bad { text, .. } => panic!("{text} cannot be in a kernel"),
        }
    }
}

const GATE: Gate = Gate { mark: MarkBit::new(0x1000).unwrap(), always: false };

const fn yes() -> bool {
    true
}

fn interface() -> String {
    "gatepost0".to_owned()
}

const fn port() -> u16 {
    51820
}

fn id(kind: u8, number: usize) -> Uuid {
    Uuid::from_u128((u128::from(kind) << 64) | number as u128)
}

impl Desired {
    fn build(self) -> DesiredState {
        self.build_on(&interface())
    }

    fn build_on(self, interface: &str) -> DesiredState {
        let interface = interface.parse().unwrap();
        let gate = self.fail_closed.then_some(GATE);
        let local = Local { interface, site_prefixes: self.site_prefixes, gate, ..local() };
        let (vpn_cidr, active) = (self.vpn_cidr, self.active);
        let rows = SnapshotRows {
            gateway: GatewayRow { id: GatewayId(id(1, 1)), vpn_cidr, active, ..gateway_row() },
            settings: self.setting.into_iter().map(setting).collect(),
            peers: self.peer.into_iter().enumerate().map(peer).collect(),
            policies: self.policy.into_iter().enumerate().map(policy).collect(),
            taken_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            ..snapshot(Vec::new())
        };
        DesiredState::build(Arc::new(local), rows).unwrap()
    }
}

fn setting((name, value): (String, String)) -> SettingRow {
    let (category, key) = name.split_once('.').unwrap();
    SettingRow { category: category.into(), key: key.into(), value }
}

fn peer((number, peer): (usize, DesiredPeer)) -> PeerRow {
    let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
    PeerRow {
        id: PeerId(id(2, number)),
        device_id: DeviceId(id(3, number)),
        user_id: UserId(id(4, usize::from(peer.user))),
        device_name: format!("device-{number}").into(),
        username: format!("user-{}", peer.user).into(),
        public_key: peer.key.row(),
        assigned_ip: peer.ip,
        allowed_ips: peer.allowed_ips.into(),
        revoked_at: peer.revoked.then(|| at(999)),
        allocation: if peer.allocated { Allocation::Held } else { Allocation::Missing },
        created_at: at(peer.created),
        ..peer_row(1)
    }
}

fn policy((number, policy): (usize, Policy)) -> PolicyRow {
    let target = |user: &u8| TargetRow {
        target_type: TargetType::User,
        target_id: id(4, usize::from(*user)),
        dangling: false,
    };
    PolicyRow {
        id: PolicyId(id(6, number)),
        name: format!("policy-{number}"),
        priority: policy.priority,
        effect: match policy.effect.as_str() {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            other => Effect::Unknown(other.into()),
        },
        destinations: policy.destinations,
        targets: policy.users.iter().map(target).collect(),
        ..policy_row(1)
    }
}

impl Observed {
    fn state(self, before: Option<Desired>) -> ObservedState {
        let mut kernel = ModelKernel::default();
        if let (true, Some(before)) = (self.firewall, before) {
            let first =
                plan(&before.build_on(&self.guards), &kernel.state, &Scope::Everything).unwrap();
            kernel.apply_first(&first, usize::MAX).unwrap();
        }
        let pool = "10.64.0.0/24".parse().unwrap();
        let rules =
            self.gate.then(|| gate::rules(&interface().parse().unwrap(), [pool], GATE.mark));
        let rules = rules.unwrap_or_default();
        let tagged = |addresses: Vec<IpNet>, tag| addresses.into_iter().map(move |a| (a, tag));
        let interface = self.interface.map(|interface| ObservedInterface {
            name: interface.name.into(),
            owner: match interface.owner.as_str() {
                "ours" => LinkOwner::Ours(GatewayId(id(1, 1))),
                "another gateway's" => LinkOwner::Ours(GatewayId(id(1, 2))),
                "unmarked" => LinkOwner::Unmarked,
                kind => LinkOwner::Foreign(kind.into()),
            },
            up: interface.up,
            has_master: interface.has_master,
            sessions_ended: interface.sessions_ended,
            public_key: interface.key.as_ref().map(KeyNumber::key),
            listen_port: interface.listen_port,
            fwmark: 0,
            mtu_bytes: 1420,
            addresses: tagged(interface.addresses, Tag::Ours)
                .chain(tagged(interface.foreign_addresses, Tag::Foreign))
                .collect(),
        });
        let made = interface.iter().filter(|link| link.up && !self.flushed);
        let made =
            made.flat_map(ObservedInterface::networks).map(|network| (network, Tag::Foreign));
        let ours = self.routes.into_iter().map(|prefix| (prefix, Tag::Ours));
        let routes = made.chain(ours).collect();
        ObservedState {
            interface,
            routes,
            strays: self
                .strays
                .into_iter()
                .map(|(name, up)| (name, Stray { owner: GatewayId(id(1, 1)), up }))
                .collect(),
            peers: self
                .peer
                .into_iter()
                .map(|peer| {
                    let allowed_ips = peer.allowed_ips.into_iter().collect();
                    (peer.key.key(), Peer { allowed_ips, ..Peer::default() })
                })
                .collect(),
            networks: self.networks,
            routing: HostRouting {
                rules,
                checks_sources: self.checks_sources,
                ..Default::default()
            },
            firewall: kernel.state.firewall,
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

fn printed(folder: &Path) -> String {
    let desired = read::<Desired>(&folder.join("desired.toml")).expect("desired.toml").build();
    let observed: Observed = read(&folder.join("observed.toml")).unwrap_or_default();
    let hold_removals = observed.hold_removals;
    let observed = observed.state(read(&folder.join("before.toml")));
    let mut text = String::new();
    let held = if hold_removals {
        let unwanted = |key: &&PublicKey| !desired.peers().contains_key(key);
        let unwanted = observed.peers.keys().filter(unwanted).copied();
        Held::of(unwanted, &desired, &observed, &Held::default())
    } else {
        Held::default()
    };
    match plan_around(&desired, &observed, &Scope::Everything, &held) {
        Err(error) => writeln!(text, "refused: {error}").unwrap(),
        Ok(plan) => {
            for step in plan.steps() {
                let phase = format!("{:?}", step.phase()).to_lowercase();
                writeln!(text, "{phase:8}{step}").unwrap();
            }
        }
    }
    for (row, reason) in desired.quarantined() {
        writeln!(text, "left out: {}: {reason}", row.device_name).unwrap();
    }
    text
}

#[test]
fn every_folder_gives_its_plan() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut folders: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 8, "golden folders are missing");
    let mut wrong = Vec::new();
    for folder in folders {
        let (printed, file) = (printed(&folder), folder.join("plan.txt"));
        if std::env::var_os("GATEPOST_BLESS").is_some() {
            std::fs::write(&file, &printed).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        if golden != printed {
            wrong.push(format!(
                "{}:\n--- golden\n{golden}--- now\n{printed}",
                folder.file_name().unwrap().display()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
