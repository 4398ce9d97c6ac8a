//! From the last version to this one, back and forth, under traffic. `tests/versions` builds that version
//! and runs these tests, which are ignored otherwise.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::{
    Agent, BINARY, Backend, Client, Ears, Fault, Flood, GATEWAY_TUNNEL, LAN_OTHER, LAN_OTHER6,
    LAN_SERVER, LAN_SERVER6, Lab, Ways, eventually, policy_rows, way,
};

const DESTINATIONS: [&str; 5] = [LAN_SERVER, LAN_OTHER, GATEWAY_TUNNEL, LAN_SERVER6, LAN_OTHER6];
/// How many rounds of datagrams are sent in each state.
const ROUNDS: usize = 10;
const SPACING_MS: u32 = 20;
/// For an agent to be ready. An emulated processor needs up to half a minute for a login and more than a minute for
/// a table under a flood.
const READY_WITHIN: Duration = Duration::from_secs(600);
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

/// What an agent tells systemd, in whose place the test listens: its status in a line, whenever that changes.
struct News {
    socket: PathBuf,
    latest: Arc<(Mutex<String>, Condvar)>,
}

impl News {
    fn open(socket: PathBuf) -> Self {
        let (heard, latest) = (UnixDatagram::bind(&socket).unwrap(), Arc::default());
        let news = Self { socket, latest: Arc::clone(&latest) };
        thread::spawn(move || hear(&heard, &latest));
        news
    }

    /// Waits until the line is as it should be.
    #[track_caller]
    fn await_line(&self, what: &str, is_right: impl Fn(&str) -> bool) {
        let (line, changed) = &*self.latest;
        let line = line.lock().unwrap();
        let waited = changed.wait_timeout_while(line, READY_WITHIN, |line| !is_right(line));
        let (line, waited) = waited.unwrap();
        let secs = READY_WITHIN.as_secs();
        assert!(!waited.timed_out(), "not within {secs} s: {what}; it says '{line}'");
    }
}

/// Takes note of each line until the listener is dropped, which sends nothing.
fn hear(socket: &UnixDatagram, latest: &(Mutex<String>, Condvar)) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = socket.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        if let Some(line) = text.lines().find_map(|line| line.strip_prefix("STATUS=")) {
            line.clone_into(&mut latest.0.lock().unwrap());
            latest.1.notify_all();
        }
    }
}

impl Drop for News {
    fn drop(&mut self) {
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(&[], &self.socket));
    }
}

/// An agent of some version.
struct Runs {
    agent: Agent,
    news: News,
    launched: Instant,
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
    launches: Cell<usize>,
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
        let (tables, launches) = (RefCell::default(), Cell::default());
        Self { lab, ears, clients: clients.into(), allowed, tables, launches }
    }

    fn flood(&self) -> Flood {
        let sources: Vec<[&str; 2]> =
            self.clients.iter().map(|it| [it.address.as_str(), it.address6.as_str()]).collect();
        let clients: Vec<_> =
            self.clients.iter().zip(&sources).map(|(client, from)| (client, &from[..])).collect();
        self.ears.flood(&clients, &DESTINATIONS, self.allowed.clone())
    }

    fn start(&self, version: Version) -> Runs {
        let runs = self.launch(version);
        self.await_ready(&runs, version);
        runs
    }

    fn launch(&self, version: Version) -> Runs {
        let number = self.launches.replace(self.launches.get() + 1);
        let news = News::open(self.lab.folder.path().join(format!("notify-{number}")));
        let mut program = Command::new(version.binary());
        let agent = self.lab.launch_command(program.env("NOTIFY_SOCKET", &news.socket));
        Runs { agent, news, launched: Instant::now() }
    }

    /// Waits until the agent, which is of this version, has proven that the kernel is as it wants it, and
    /// notes the table. Each version makes the same of it every time. Returns how long that took.
    fn await_ready(&self, runs: &Runs, version: Version) -> Duration {
        let is_ready = |line: &str| ["ready", "degraded"].iter().any(|it| line.starts_with(it));
        runs.news.await_line(&format!("the agent of {version:?} is ready"), is_ready);
        let took = runs.launched.elapsed();
        println!("{version:?} is ready after {took:.1?}");
        let program = fs::canonicalize(format!("/proc/{}/exe", runs.agent.pid())).unwrap();
        assert_eq!(program, fs::canonicalize(version.binary()).unwrap());
        let chains = hooked_chains(&self.lab.gateway.firewall());
        assert!(!chains.is_empty(), "no chain of {version:?} is called by the kernel");
        let first =
            self.tables.borrow_mut().entry(version).or_insert_with(|| chains.clone()).clone();
        assert_eq!(chains, first, "{version:?} has another table than before");
        took
    }

    /// How many pings of a peer may be lost when this version begins to serve: none where it knows the
    /// table that it finds, and each knows its own. An emulated processor loads a table for seconds, so there they
    /// may be lost until the agent is ready.
    fn may_lose(&self, version: Version, ready_in: Duration) -> usize {
        let tables = self.tables.borrow();
        let is_known = tables[&Version::Last] == tables[&Version::This];
        match self.lab.backend {
            _ if version == Version::This || is_known => 0,
            Backend::Userspace => LOST_ON_THE_WAY_BACK,
            Backend::Kernel => LOST_ON_THE_WAY_BACK.max(pings_in(ready_in)),
        }
    }

    fn gateway_reaches(&self, client: &Client) -> bool {
        let ping = ["-nq", "-c", "1", "-W", "0.5", &client.address];
        self.lab.gateway.output("ping", &ping).status.success()
    }

    /// Ends an agent. What the package does before the last version starts is done here.
    fn end(&self, former: Runs, next: Version) {
        former.agent.end(Signal::SIGTERM);
        if next == Version::Last {
            for family in ["-4", "-6"] {
                self.lab.gateway.output("ip", &[family, "rule", "flush", "protocol", "71"]);
            }
        }
    }

    /// Ends one version's agent and starts the other's while everybody sends.
    fn change(&self, former: Runs, version: Version, database_is_away: bool) -> Runs {
        let what = format!("to {version:?}, without its database: {database_is_away}");
        let live = self.flood();
        live.await_arrivals(&self.allowed, ROUNDS);
        let served = self.clients[0].ping(LAN_SERVER, SPACING_MS);
        served.await_answers(5);
        if database_is_away {
            self.lab.relay.refuse();
        }
        self.end(former, version);
        live.await_rounds(ROUNDS);
        let runs = self.launch(version);
        if database_is_away {
            eventually("it answers without its database", || self.lab.ask_status().is_ok());
            served.await_answers(5);
            live.await_rounds(ROUNDS);
            self.lab.relay.accept();
        }
        let ready_in = self.await_ready(&runs, version);
        let rules = ["-4", "-6"]
            .map(|family| self.lab.gateway.run("ip", &[family, "rule", "show", "protocol", "71"]));
        let has_gate = rules.iter().any(|rules| !rules.is_empty());
        assert_eq!(has_gate, version == Version::This, "{what}: {rules:?}");
        // What it opened under another table may stall, which CHANGELOG.md says.
        eventually("the gateway opens a flow to a peer", || self.gateway_reaches(&self.clients[0]));
        live.await_arrivals(&self.allowed, ROUNDS);
        let fresh = self.flood();
        fresh.await_arrivals(&self.allowed, ROUNDS);
        served.await_answers(5);
        for flood in [live, fresh] {
            assert_eq!(flood.leaked(), Ways::new(), "{what}");
            assert_eq!(flood.arrived(), self.allowed, "{what}");
        }
        let pinged = served.end();
        println!("{what}: {pinged:?}");
        let may_lose = self.may_lose(version, ready_in);
        assert!(pinged.lost <= may_lose, "{what}: {pinged:?}, more than {may_lose}");
        let bound = Duration::from_millis(u64::from(SPACING_MS) * u64::try_from(may_lose).unwrap());
        let row = fault(version, database_is_away);
        Fault::told_with_cost(&self.lab, row, bound, pinged, ready_in);
        runs
    }
}

/// What a change is called on the page of faults, and what the next agent makes of it.
const fn fault(version: Version, database_is_away: bool) -> (&'static str, &'static str) {
    match (version, database_is_away) {
        (Version::This, false) => ("upgrade from the last version", "nothing changes"),
        (Version::This, true) => {
            ("upgrade from the last version while the database is away", "nothing changes")
        }
        (Version::Last, false) => (
            "downgrade to the last version",
            "the last version denies until its own table is loaded",
        ),
        (Version::Last, true) => (
            "downgrade to the last version while the database is away",
            "the last version denies until its own table is loaded",
        ),
    }
}

fn pings_in(time: Duration) -> usize {
    usize::try_from(time.as_millis() / u128::from(SPACING_MS)).unwrap()
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
