//! The agent is killed between any two of its messages to the kernel while peers send whatever they can.
//! No packet passes that neither the old nor the new policy allows, and the next agent converges.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;

use crate::lab::{
    Agent, BINARY, Backend, Client, Ears, Fault, Flood, GATEWAY_TUNNEL, LAN_OTHER, LAN_OTHER6,
    LAN_SERVER, LAN_SERVER6, Lab, Trace, Ways, eventually, policy_rows, way,
};

const LAN_THIRD: &str = "10.20.0.30";
const DESTINATIONS: [&str; 6] =
    [LAN_SERVER, LAN_OTHER, LAN_THIRD, GATEWAY_TUNNEL, LAN_SERVER6, LAN_OTHER6];
/// How many rounds of packets are sent after each kill.
const ROUNDS: usize = 4;
/// How many attempts a kill has to hit the intended message: where it must, and where it need not.
const TRIES: usize = 16;
const TRIES_ON_A_COLD_START: usize = 4;

/// Rows, and what they allow.
struct Policy {
    sql: String,
    ways: Ways,
}

struct World {
    lab: Lab,
    ears: Ears,
    /// The clients, each with the addresses that it sends from, its own or not.
    clients: Vec<(Client, Vec<&'static str>)>,
}

impl World {
    fn open(clients: &[(&str, &[&'static str])]) -> Self {
        let lab = Lab::open();
        // Readings of the kernel would add messages to those that are counted.
        lab.write_config_with_heartbeat("60s", "");
        lab.lan.run("ip", &["address", "add", &format!("{LAN_THIRD}/24"), "dev", "eth0"]);
        let clients = clients.iter().map(|(name, sources)| {
            let client = lab.client(name);
            client.hold(sources);
            lab.database.exec(&client.rows());
            (client, sources.to_vec())
        });
        let clients = clients.collect();
        let lan = [LAN_SERVER, LAN_OTHER, LAN_THIRD, LAN_SERVER6, LAN_OTHER6];
        let lan = lan.map(|address| (&lab.lan, address));
        let ears = Ears::open(&[&lan[..], &[(&lab.gateway, "0.0.0.0")]].concat());
        Self { lab, ears, clients }
    }

    /// Every client sends to every destination. Only what is in `allowed` may arrive.
    fn flood(&self, allowed: Ways) -> Flood {
        let clients: Vec<_> = self.clients.iter().map(|(c, from)| (c, from.as_slice())).collect();
        self.ears.flood(&clients, &DESTINATIONS, allowed)
    }

    fn dial(&self) {
        self.clients.iter().for_each(|(client, _)| client.dial());
    }

    /// Waits until everything that `policy` allows arrives; nothing else may but what `before` did.
    fn await_enforced(&self, policy: &Ways, before: &Ways) {
        let flood = self.flood(policy | before);
        let mut tries = 0_usize;
        eventually("what is allowed arrives", || {
            tries += 1;
            let arrived = flood.arrived();
            let waits = |name: &str| policy.difference(&arrived).any(|way| way.starts_with(name));
            // A session that is lost, or was never made, is made anew by whoever misses it.
            let dialing = self.clients.iter().filter(|_| tries.is_multiple_of(25));
            dialing.filter(|(client, _)| waits(&client.name)).for_each(|(client, _)| client.dial());
            arrived.is_superset(policy)
        });
        assert_eq!(flood.leaked(), Ways::new(), "passed");
    }

    /// Waits until the rows are in force: from then on exactly what `policy` allows arrives, unless
    /// `later` allows it.
    fn assert_enforced(&self, policy: &Ways, later: &Ways) {
        self.await_pass();
        self.await_enforced(policy, later);
        let flood = self.flood(policy | later);
        flood.await_arrivals(policy, ROUNDS);
        assert_eq!(flood.arrived(), *policy);
    }

    /// The messages that write in the pass from one policy to the other, when nobody disturbs it.
    fn writes(&self, agent: &Agent, change: impl FnOnce()) -> Vec<(usize, String)> {
        let trace = Trace::watch(&self.lab, agent);
        change();
        self.await_pass();
        trace.writes()
    }

    fn await_pass(&self) {
        eventually("the kernel is what the rows say", || self.lab.gatepost(&["plan"]).0 == 0);
    }
}

/// Whether it died as it was about to send the last of these messages and had sent all others. A
/// reading of the kernel that falls among them makes it another one, which is judged all the same.
fn killed(agent: &mut Agent, trace: Trace, writes: &[(usize, String)]) -> bool {
    let status = agent.wait();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    let sent = trace.await_death();
    println!("killed before {:?}", sent.last());
    sent == writes
}

fn ways(allowed: &[(&str, &str, &[&str])]) -> Ways {
    let to = |(client, source, destinations): &(&str, &str, &[&str])| {
        destinations
            .iter()
            .flat_map(|destination| way(client, source, destination))
            .collect::<Vec<_>>()
    };
    allowed.iter().flat_map(to).collect()
}

/// Alice's policy is narrowed and she moves to another address; Bob's is widened and he moves to
/// the one that was hers; Carol is revoked, and Dave gets the addresses that were hers; nothing
/// changes for Erin.
fn policies() -> [Policy; 2] {
    let sql = |alice: &str, bob: &str, carol: &str, dave: &str| {
        let device = |name, status| {
            format!(
                "update devices set status = '{status}', revoked_at = null where device_fingerprint = '{name}';"
            )
        };
        let address = |name, address| {
            format!(
                "update wireguard_peers set assigned_ip = '{address}' from devices
                     where devices.id = device_id and device_fingerprint = '{name}';"
            )
        };
        [address("alice", alice), address("bob", bob), device("carol", carol), device("dave", dave)]
            .concat()
    };
    let remove = |name: &str, destination: &str| {
        format!(
            "delete from policy_destinations using policies where policies.id = policy_id
                 and name = '{name}' and destination = '{destination}';"
        )
    };
    let old = Policy {
        sql: [
            sql("10.99.0.11", "10.99.0.12", "active", "revoked"),
            add_destination("alice", LAN_OTHER),
            add_destination("alice", LAN_OTHER6),
            remove("bob", LAN_THIRD),
        ]
        .concat(),
        ways: &ways(&[
            ("alice", "10.99.0.11", &[LAN_SERVER, LAN_OTHER]),
            ("alice", "fd99::11", &[LAN_SERVER6, LAN_OTHER6]),
            ("bob", "10.99.0.12", &[LAN_SERVER]),
            ("carol", "10.99.0.13", &[LAN_SERVER]),
            ("carol", "fd99::13", &[LAN_SERVER6]),
        ]) | &unchanged(),
    };
    let new = Policy {
        sql: [
            sql("10.99.0.21", "10.99.0.11", "revoked", "active"),
            remove("alice", LAN_OTHER),
            remove("alice", LAN_OTHER6),
            add_destination("bob", LAN_THIRD),
        ]
        .concat(),
        ways: &ways(&[
            ("alice", "10.99.0.21", &[LAN_SERVER]),
            ("alice", "fd99::11", &[LAN_SERVER6]),
            ("bob", "10.99.0.11", &[LAN_SERVER, LAN_THIRD]),
            ("dave", "10.99.0.13", &[LAN_OTHER]),
            ("dave", "fd99::13", &[LAN_OTHER6]),
        ]) | &unchanged(),
    };
    [old, new]
}

/// What both policies allow and no step between them changes.
fn unchanged() -> Ways {
    ways(&[("erin", "10.99.0.15", &[LAN_SERVER])])
}

fn add_destination(policy: &str, destination: &str) -> String {
    format!(
        "insert into policy_destinations (policy_id, destination)
             select id, '{destination}' from policies where name = '{policy}';"
    )
}

/// The five of [`policies`], before any of the two is in the database.
fn open_world() -> World {
    let world = World::open(&[
        ("alice", &["10.99.0.11", "10.99.0.21", "fd99::11"]),
        ("bob", &["10.99.0.12", "10.99.0.11"]),
        ("carol", &["10.99.0.13", "fd99::13"]),
        ("dave", &["10.99.0.13", "fd99::13"]),
        ("erin", &["10.99.0.15"]),
    ]);
    let database = &world.lab.database;
    database.exec("delete from ip_allocations");
    database.exec(
        "update wireguard_peers set assigned_ip = '10.99.0.13' where assigned_ip = '10.99.0.14'",
    );
    for (at, address) in [(0, "fd99::11"), (2, "fd99::13"), (3, "fd99::13")] {
        database.exec(&world.clients[at].0.announcement(address));
    }
    for (name, destination) in [
        ("alice", LAN_SERVER),
        ("bob", LAN_SERVER),
        ("carol", LAN_SERVER),
        ("dave", LAN_OTHER),
        ("erin", LAN_SERVER),
    ] {
        database.exec(&policy_rows(name, name, destination));
    }
    for (name, destination) in
        [("alice", LAN_SERVER6), ("carol", LAN_SERVER6), ("dave", LAN_OTHER6)]
    {
        database.exec(&add_destination(name, destination));
    }
    // Flows that end are soon forgotten, so that a pass has as many messages each time.
    world.lab.gateway.within(|| {
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{timeout}"), "5").unwrap();
        }
    });
    world
}

#[test]
fn agent_killed_between_any_two_messages_leaks_nothing_and_the_next_converges() {
    let world = open_world();
    let lab = &world.lab;
    let [old, new] = policies();
    lab.database.exec(&old.sql);
    let mut agent = lab.start();
    world.assert_enforced(&old.ways, &new.ways);
    // An agent's first cut tries out how this kernel finds flows, which takes messages of its own.
    lab.database.exec(&new.sql);
    world.assert_enforced(&new.ways, &old.ways);
    lab.database.exec(&old.sql);
    world.assert_enforced(&old.ways, &new.ways);
    let writes = {
        let live = world.flood(&old.ways | &new.ways);
        live.await_arrivals(&old.ways, 1);
        world.writes(&agent, || lab.database.exec(&new.sql))
    };
    assert_each_kind_is_written(&writes, lab.backend);
    world.assert_enforced(&new.ways, &old.ways);
    for sent in 1..=writes.len() {
        let as_meant = (0..TRIES).any(|_| {
            lab.database.exec(&old.sql);
            world.assert_enforced(&old.ways, &new.ways);
            let as_meant = kill_in_change(&world, &mut agent, [&old, &new], &writes[..sent]);
            world.assert_enforced(&new.ways, &old.ways);
            as_meant
        });
        assert!(as_meant, "never killed before {:?}", writes[sent - 1]);
    }
    // Includes packets that arrived late.
    assert_eq!(world.ears.leaked(), []);
    let what = "agent killed between any two messages of a change";
    Fault::told(
        lab,
        what,
        "no packet passes that neither policy allows; the next one converges",
        None,
    );
}

/// The firewall, the flows of an address that changes hands, and the peers.
fn assert_each_kind_is_written(writes: &[(usize, String)], backend: Backend) {
    let wireguard = match backend {
        Backend::Kernel => "wireguard",
        Backend::Userspace => "set=1",
    };
    for kind in ["NFT_MSG_NEWSETELEM", "MSG_CT_DELETE", wireguard] {
        assert!(writes.iter().any(|(_, words)| words.contains(kind)), "no {kind}: {writes:?}");
    }
}

/// From a kernel that is `from`: the agent dies on the way to `to`, about to send the last of these
/// messages. What it leaves is tried by flows that live and by fresh ones, while Erin's come again
/// and again: silence alone proves nothing. The next agent is started. Returns whether it was that
/// message.
fn kill_in_change(
    world: &World,
    agent: &mut Agent,
    [from, to]: [&Policy; 2],
    writes: &[(usize, String)],
) -> bool {
    let lab = &world.lab;
    let (number, before) = writes.last().unwrap();
    let live = world.flood(&from.ways | &to.ways);
    live.await_arrivals(&from.ways, 1);
    assert_eq!(live.arrived(), from.ways);
    let trace = Trace::kill_at(lab, agent, *number);
    lab.database.exec(&to.sql);
    let as_meant = killed(agent, trace, writes);
    let fresh = world.flood(&from.ways | &to.ways);
    world.dial();
    for flood in [live, fresh] {
        flood.await_arrivals(&unchanged(), ROUNDS);
        flood.await_rounds(ROUNDS);
        assert_eq!(flood.leaked(), Ways::new(), "passed, the agent killed before {before}");
    }
    *agent = lab.launch(BINARY.as_ref());
    as_meant
}

#[test]
fn agent_killed_on_a_cold_start_never_leaves_the_link_up_without_the_table() {
    let world = World::open(&[("alice", &["10.99.0.11", "10.99.0.12"]), ("bob", &["10.99.0.12"])]);
    let lab = &world.lab;
    lab.database.exec(&policy_rows("alice", "alice", LAN_SERVER));
    lab.database.exec(&policy_rows("bob", "bob", LAN_OTHER));
    let allowed =
        ways(&[("alice", "10.99.0.11", &[LAN_SERVER]), ("bob", "10.99.0.12", &[LAN_OTHER])]);
    let agent = start_from_nothing(lab);
    let writes = world.writes(&agent, || lab.relay.accept());
    assert!(writes.len() >= 8, "too few to begin with nothing");
    world.assert_enforced(&allowed, &allowed);
    drop(agent);
    for sent in 1..=writes.len() {
        // How often the kernel is read meanwhile differs from run to run: what was hit is told above.
        if !(0..TRIES_ON_A_COLD_START).any(|_| kill_from_nothing(&world, &allowed, &writes[..sent]))
        {
            println!("never killed before {:?}", writes[sent - 1]);
        }
    }
    world.assert_enforced(&allowed, &allowed);
    assert_eq!(world.ears.leaked(), []);
}

/// The agent dies on the way from nothing, about to send the last of these messages; one pass of
/// another completes it. Returns whether it was that message.
fn kill_from_nothing(world: &World, allowed: &Ways, writes: &[(usize, String)]) -> bool {
    let lab = &world.lab;
    let (number, before) = writes.last().unwrap();
    let mut agent = start_from_nothing(lab);
    let trace = Trace::kill_at(lab, &agent, *number);
    let flood = world.flood(allowed.clone());
    lab.relay.accept();
    let as_meant = killed(&mut agent, trace, writes);
    assert!(!is_up(lab) || has_table(lab), "up without a table, killed before {before}");
    world.dial();
    flood.await_rounds(ROUNDS);
    assert_eq!(flood.leaked(), Ways::new(), "passed, killed before {before}");
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 0, "after a kill before {before}: {out}{err}");
    as_meant
}

/// An agent that waits for its database, on a host without our link or table.
fn start_from_nothing(lab: &Lab) -> Agent {
    lab.forget();
    assert!(!is_up(lab) && !has_table(lab));
    let _ = fs::remove_file(lab.folder.path().join("last-good"));
    lab.relay.refuse();
    let failures = || lab.log().matches("the database is unreachable").count();
    let before = failures();
    let agent = lab.launch(BINARY.as_ref());
    // Past its first reading of the kernel, so that the messages to come can be counted.
    eventually("the agent has tried its database", || failures() > before);
    agent
}

fn is_up(lab: &Lab) -> bool {
    let shown = lab.gateway.output("ip", &["-o", "link", "show", "up", "dev", &lab.link()]);
    !shown.stdout.is_empty()
}

fn has_table(lab: &Lab) -> bool {
    lab.gateway.output("nft", &["list", "table", "inet", "gatepost"]).status.success()
}
