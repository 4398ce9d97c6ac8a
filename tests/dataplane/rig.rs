//! What the tests have in common: a gateway host in a namespace, and an independent reader.

use std::collections::BTreeMap;

use gatepost::dataplane::nft::{Difference, NftError, ProfileCounters};
use gatepost::dataplane::{
    Backend, Dataplane, Firewall, Host, HostSettings, Outcome, SharedObserved, stop_device,
};
use gatepost::model::{
    AllowedIps, FirewallChange, GatewayId, HostRouting, InterfaceName, ObservedFirewall,
    ObservedState, Peer, PrivateKey, ProfileId, PublicKey,
};
use gatepost::plan::{Plan, Step};
use uuid::Uuid;

use crate::netns::{Netns, unique};

pub const PORT: u16 = 51820;

/// A firewall without a table: the real one has its own tests.
pub struct NoFirewall;

impl Firewall for NoFirewall {
    fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError> {
        Ok(None)
    }

    fn difference(&self) -> Option<&Difference> {
        None
    }

    fn is_current(&mut self) -> Result<bool, NftError> {
        Ok(true)
    }

    fn apply(&mut self, _: &FirewallChange, _: Option<&ObservedFirewall>) -> Result<(), NftError> {
        Ok(())
    }

    fn counters_of(&mut self, _: ProfileId) -> Result<Option<ProfileCounters>, NftError> {
        Ok(None)
    }

    fn remove(&mut self) -> Result<bool, NftError> {
        Ok(false)
    }
}

pub fn gateway_id() -> GatewayId {
    GatewayId(Uuid::from_u128(0xB))
}

pub fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_random([number; 32])
}

/// A peer's key by its number; distinct from every [`private_key`]'s.
pub fn key(number: u32) -> PublicKey {
    let mut bytes = [0xB7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes).unwrap()
}

pub fn prefixes(texts: &[&str]) -> AllowedIps {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub fn peer(texts: &[&str]) -> Peer {
    Peer { allowed_ips: prefixes(texts), ..Peer::default() }
}

pub fn add(number: u32, texts: &[&str]) -> Step {
    Step::AddPeer { key: key(number), peer: peer(texts) }
}

/// A gateway host and what it is believed to hold. Use it on one thread of the namespace.
pub struct Gateway {
    pub host: Host<NoFirewall>,
    pub observed: ObservedState,
    pub name: InterfaceName,
}

impl Gateway {
    /// Opens the host without touching it.
    pub fn open(name: InterfaceName, backend: Backend) -> Self {
        let settings = HostSettings {
            interface: name.clone(),
            backend,
            device_exe: std::env::current_exe().unwrap(),
        };
        let host = Host::open(settings, NoFirewall).unwrap();
        Self { host, observed: ObservedState::default(), name }
    }

    /// Creates the interface, ready for peers.
    pub fn up(name: InterfaceName, backend: Backend) -> Self {
        let mut gateway = Self::open(name, backend);
        gateway.apply_all(gateway.steps_up());
        gateway
    }

    pub fn steps_up(&self) -> Vec<Step> {
        vec![
            Step::CreateLink { name: self.name.clone(), gateway_id: gateway_id() },
            Step::SetMtu { bytes: 1380 },
            Step::SetPrivateKey { private_key: private_key(1) },
            Step::SetListenPort { port: PORT },
            Step::AddAddress { address: "10.7.0.1/24".parse().unwrap() },
            Step::AddAddress { address: "fd07::1/64".parse().unwrap() },
            Step::SetUp,
        ]
    }

    /// Applies steps, all of which must be acknowledged, and checks that the host then holds them.
    pub fn apply_all(&mut self, steps: Vec<Step>) {
        let count = steps.len();
        let outcome = self.apply(steps);
        assert_eq!((outcome.applied, outcome.refused.len()), (count, 0), "{outcome:?}");
        self.check();
    }

    pub fn apply(&mut self, steps: Vec<Step>) -> Outcome {
        let observed = SharedObserved::from(std::mem::take(&mut self.observed));
        let outcome = self.host.apply(&Plan::new(steps), &observed);
        self.observed = observed.read().clone();
        outcome
    }

    /// What was acknowledged must be what is read back, and what `wg` reads.
    pub fn check(&mut self) {
        let state = self.host.observe().unwrap().state;
        assert_eq!(ours(state.clone()), ours(self.observed.clone()));
        assert_eq!(wg_peers(&self.name), shown(&state.peers));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // A kernel link goes with its namespace; a userspace device must be stopped.
        let _ = stop_device(&self.name);
    }
}

/// A reading without what is of other programs: the networks of their links, and routing rules.
pub fn ours(state: ObservedState) -> ObservedState {
    ObservedState { networks: BTreeMap::new(), routing: HostRouting::default(), ..state }
}

/// An interface name that no other test uses.
pub fn interface() -> InterfaceName {
    unique("B").parse().unwrap()
}

/// A link's packets.
pub struct Counters {
    pub received: usize,
    pub sent: usize,
    /// Lost before they were sent.
    pub lost: usize,
}

pub fn counters(netns: &Netns, link: &str) -> Counters {
    let table = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{link}:")));
    let fields: Vec<usize> =
        line.unwrap().split_whitespace().map(|field| field.parse().unwrap()).collect();
    Counters { received: fields[1], sent: fields[9], lost: fields[11] }
}

/// Runs a test's body with a gateway in a namespace of its own.
pub fn with_gateway(backend: Backend, test: impl FnOnce(&Netns, &mut Gateway) + Send) {
    let netns = Netns::new("Bg");
    netns.enter(|| test(&netns, &mut Gateway::up(interface(), backend)));
}

/// Per peer its preshared key, prefixes and keepalive, as `wg show <name> dump` prints them.
type Shown = BTreeMap<String, (String, Vec<String>, String)>;

fn shown(peers: &BTreeMap<PublicKey, Peer>) -> Shown {
    let show = |(key, peer): (&PublicKey, &Peer)| {
        let psk = peer.preshared_key.as_ref().map_or("(none)".into(), |psk| psk.expose_text());
        let mut ips: Vec<_> = peer.allowed_ips.iter().map(|ip| ip.to_string()).collect();
        ips.sort();
        let keepalive = match peer.keepalive_secs {
            0 => "off".to_owned(),
            secs => secs.to_string(),
        };
        (key.to_string(), (psk, ips, keepalive))
    };
    peers.iter().map(show).collect()
}

/// The independent reader: `wg`, on the calling thread's namespace.
pub fn wg_peers(name: &InterfaceName) -> Shown {
    let output = std::process::Command::new("wg").args(["show", name.as_str(), "dump"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let peer = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let mut ips: Vec<String> = match fields[3] {
            "(none)" => vec![],
            ips => ips.split(',').map(str::to_owned).collect(),
        };
        ips.sort();
        (fields[0].to_owned(), (fields[1].to_owned(), ips, fields[7].to_owned()))
    };
    text.lines().skip(1).map(peer).collect()
}
