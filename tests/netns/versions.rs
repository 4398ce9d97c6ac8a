//! From the last version to this one, back and forth, under traffic. `tests/versions` builds that version
//! and runs these tests, which are ignored otherwise.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::lab::{
    Agent, BINARY, Client, Ears, Flood, GATEWAY_TUNNEL, LAN_OTHER, LAN_OTHER6, LAN_SERVER,
    LAN_SERVER6, Lab, Ways, eventually, policy_rows, way,
};

const DESTINATIONS: [&str; 5] = [LAN_SERVER, LAN_OTHER, GATEWAY_TUNNEL, LAN_SERVER6, LAN_OTHER6];
/// How many rounds of datagrams are sent in each state.
const ROUNDS: usize = 10;
const SPACING_MS: u32 = 20;
/// Losses that CHANGELOG.md names for the way back: until the former table is loaded, peers are denied.
const LOST_ON_THE_WAY_BACK: usize = 25;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Last,
    This,
}

impl Version {
    fn binary(self) -> PathBuf {
        match self {
            Self::This => BINARY.into(),
            Self::Last => {
                let path = std::env::var_os("GATEPOST_TEST_LAST_VERSION");
                path.expect("GATEPOST_TEST_LAST_VERSION names the program: see tests/versions")
                    .into()
            }
        }
    }

    /// A chain that only this version's table has.
    fn has_table(self, lab: &Lab) -> bool {
        let output = lab.gateway.output("nft", &["list", "chain", "inet", "gatepost", "output"]);
        output.status.success() == (self == Self::This)
    }
}

/// Everybody sends everything, and what may arrive does not change.
struct World {
    lab: Lab,
    ears: Ears,
    clients: Vec<Client>,
    allowed: Ways,
}

impl World {
    fn open() -> Self {
        let lab = Lab::open();
        let lan = [LAN_SERVER, LAN_OTHER, LAN_SERVER6, LAN_OTHER6].map(|at| (&lab.lan, at));
        let ears = Ears::open(&[&lan[..], &[(&lab.gateway, "0.0.0.0")]].concat());
        let mut allowed = Ways::new();
        let clients = ["alice", "bob", "carol"].map(|name| {
            let client = lab.client(name);
            lab.database.exec(&client.rows());
            lab.database.exec(&client.announcement(&client.address6));
            client
        });
        let mut allow = |client: &Client, source: &str, destination: &str| {
            let name = format!("{}-{destination}", client.name);
            lab.database.exec(&policy_rows(&name, &client.name, destination));
            allowed.extend(way(&client.name, source, destination));
        };
        let [alice, bob, carol] = &clients;
        allow(alice, &alice.address, LAN_SERVER);
        allow(alice, &alice.address6, LAN_SERVER6);
        allow(bob, &bob.address, LAN_OTHER);
        allow(bob, &bob.address, GATEWAY_TUNNEL);
        allow(carol, &carol.address, LAN_SERVER);
        Self { lab, ears, clients: clients.into(), allowed }
    }

    fn flood(&self) -> Flood {
        let sources: Vec<[&str; 2]> =
            self.clients.iter().map(|it| [it.address.as_str(), it.address6.as_str()]).collect();
        let clients: Vec<_> =
            self.clients.iter().zip(&sources).map(|(client, from)| (client, &from[..])).collect();
        self.ears.flood(&clients, &DESTINATIONS, self.allowed.clone())
    }

    fn start(&self, version: Version) -> Agent {
        let agent = self.lab.launch(&version.binary());
        self.await_ready(version);
        agent
    }

    fn await_ready(&self, version: Version) {
        eventually(&format!("the agent of {version:?} is ready"), || {
            let ready = ["ready", "degraded"].map(serde_json::Value::from);
            self.lab.ask_status().is_ok_and(|status| ready.contains(&status["state"]))
                && version.has_table(&self.lab)
        });
    }

    fn gateway_reaches(&self, client: &Client) -> bool {
        let ping = ["-nq", "-c", "1", "-W", "0.5", &client.address];
        self.lab.gateway.output("ping", &ping).status.success()
    }

    /// Ends an agent. What the package does before the last version starts is done here.
    fn end(&self, agent: Agent, next: Version) {
        agent.end(Signal::SIGTERM);
        if next == Version::Last {
            for family in ["-4", "-6"] {
                self.lab.gateway.output("ip", &[family, "rule", "flush", "protocol", "71"]);
            }
        }
    }

    /// Ends one version's agent and starts the other's while everybody sends.
    fn change(&self, agent: Agent, version: Version, database_is_away: bool) -> Agent {
        let live = self.flood();
        live.await_arrivals(&self.allowed, ROUNDS);
        let served = self.clients[0].ping(LAN_SERVER, SPACING_MS);
        served.await_answers(5);
        if database_is_away {
            self.lab.relay.refuse();
        }
        self.end(agent, version);
        live.await_rounds(ROUNDS);
        let agent = self.lab.launch(&version.binary());
        if database_is_away {
            eventually("it answers without its database", || self.lab.ask_status().is_ok());
            served.await_answers(5);
            live.await_rounds(ROUNDS);
            self.lab.relay.accept();
        }
        self.await_ready(version);
        // What it opened under the former table may stall, which CHANGELOG.md says.
        eventually("the gateway opens a flow to a peer", || self.gateway_reaches(&self.clients[0]));
        live.await_arrivals(&self.allowed, ROUNDS);
        let fresh = self.flood();
        fresh.await_arrivals(&self.allowed, ROUNDS);
        served.await_answers(5);
        let what = format!("to {version:?}, without its database: {database_is_away}");
        for flood in [live, fresh] {
            assert_eq!(flood.leaked(), Ways::new(), "{what}");
            assert_eq!(flood.arrived(), self.allowed, "{what}");
        }
        let pinged = served.end();
        println!("{what}: {pinged:?}");
        let most = if version == Version::Last { LOST_ON_THE_WAY_BACK } else { 0 };
        assert!(pinged.lost <= most, "{what}: {pinged:?}");
        agent
    }
}

#[test]
#[ignore = "needs the last version: tests/versions"]
fn versions_change_back_and_forth_under_traffic() {
    let world = World::open();
    let mut agent = world.start(Version::Last);
    world.clients.iter().for_each(Client::connect);
    for (version, database_is_away) in [
        (Version::This, false),
        (Version::Last, false),
        (Version::This, true),
        (Version::Last, true),
        (Version::This, false),
    ] {
        agent = world.change(agent, version, database_is_away);
    }
    assert_eq!(world.ears.leaked(), []);
    drop(agent);
    world.lab.forget();
}

#[test]
#[ignore = "needs the last version: tests/versions"]
fn revocation_between_two_versions_is_carried_out_by_the_next() {
    let world = World::open();
    let lab = &world.lab;
    let mut agent = world.start(Version::Last);
    world.clients.iter().for_each(Client::connect);
    let carol = &world.clients[2];
    for version in [Version::This, Version::Last, Version::This] {
        world.end(agent, version);
        lab.database.exec(&carol.revocation());
        agent = world.start(version);
        eventually("she is revoked", || !lab.kernel_peers().contains(&carol.key));
        assert!(!carol.reaches(LAN_SERVER), "under {version:?}");
        lab.database.exec(&format!(
            "update devices set status = 'active', revoked_at = null where device_fingerprint = '{}'",
            carol.name
        ));
        eventually("she is back", || lab.kernel_peers().contains(&carol.key));
        carol.connect();
        assert!(world.clients[0].reaches(LAN_SERVER));
    }
    drop(agent);
    lab.forget();
}
