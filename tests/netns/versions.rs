//! From the last version to this one, back and forth, under traffic. `tests/versions` builds that version
//! and runs these tests, which are ignored otherwise.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
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
/// Pings that may be lost on the way back to another table, which CHANGELOG.md names: the last version
/// does not know this one's, and denies until it has loaded its own.
const LOST_ON_THE_WAY_BACK: usize = 25;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
}

/// The chains of our table that the kernel calls, each with its rules: what one version must know of
/// another's table to leave it in force until its own is loaded.
type HookedChains = BTreeMap<String, String>;

fn hooked_chains(table: &str) -> HookedChains {
    let chains = table.split("\n\tchain ").skip(1);
    let hooked = chains.filter(|chain| chain.contains(" hook "));
    let named = hooked.filter_map(|chain| chain.split_once(" {\n"));
    named.map(|(name, rules)| (name.to_owned(), rules.to_owned())).collect()
}

/// Everybody sends everything, and what may arrive does not change.
struct World {
    lab: Lab,
    ears: Ears,
    clients: Vec<Client>,
    allowed: Ways,
    /// What each version made of the table when it was ready.
    tables: RefCell<BTreeMap<Version, HookedChains>>,
}

impl World {
    fn open() -> Self {
        let program = |version: Version| fs::read(version.binary()).unwrap();
        let differ = program(Version::Last) != program(Version::This);
        assert!(differ, "tests/last-version names this version: nothing changes");
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
        Self { lab, ears, clients: clients.into(), allowed, tables: RefCell::default() }
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
        self.await_ready(&agent, version);
        agent
    }

    /// Waits until the agent, which is of this version, has proven that the kernel is as it wants it, and
    /// notes the table. Each version makes the same of it every time.
    fn await_ready(&self, agent: &Agent, version: Version) {
        eventually(&format!("the agent of {version:?} is ready"), || {
            let ready = ["ready", "degraded"].map(serde_json::Value::from);
            self.lab.ask_status().is_ok_and(|status| ready.contains(&status["state"]))
        });
        let program = fs::canonicalize(format!("/proc/{}/exe", agent.pid())).unwrap();
        assert_eq!(program, fs::canonicalize(version.binary()).unwrap());
        let chains = hooked_chains(&self.lab.gateway.firewall());
        assert!(!chains.is_empty(), "no chain of {version:?} is called by the kernel");
        let first =
            self.tables.borrow_mut().entry(version).or_insert_with(|| chains.clone()).clone();
        assert_eq!(chains, first, "{version:?} has another table than before");
    }

    /// How many pings of a peer may be lost when this version begins to serve: none where it knows the
    /// table that it finds, and each knows its own.
    fn may_lose(&self, version: Version) -> usize {
        let tables = self.tables.borrow();
        let is_known = tables[&Version::Last] == tables[&Version::This];
        if version == Version::This || is_known { 0 } else { LOST_ON_THE_WAY_BACK }
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
        self.await_ready(&agent, version);
        // What it opened under another table may stall, which CHANGELOG.md says.
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
        assert!(pinged.lost <= self.may_lose(version), "{what}: {pinged:?}");
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
        world.clients[0].must_reach(LAN_SERVER, "a policy allows it");
    }
    drop(agent);
    lab.forget();
}
