//! The agent is killed between any two of its messages to the kernel, while peers try whatever they
//! can: nothing passes that neither the old nor the new policy allows, and the next agent goes on.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;

use crate::lab::{
    Agent, BINARY, Client, Ears, Flood, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, Lab, Trace, Ways,
    eventually, policy_rows, way,
};

const LAN_THIRD: &str = "10.20.0.30";
const DESTINATIONS: [&str; 4] = [LAN_SERVER, LAN_OTHER, LAN_THIRD, GATEWAY_TUNNEL];
/// How often everything is tried in what a kill has left.
const ROUNDS: usize = 4;

/// Rows, and what they allow.
struct Policy {
    sql: String,
    ways: Ways,
}

struct World {
    lab: Lab,
    ears: Ears,
    /// Each with the addresses it sends from, its own or not.
    clients: Vec<(Client, Vec<&'static str>)>,
}

impl World {
    fn open(clients: &[(&str, &[&'static str])]) -> Self {
        let lab = Lab::open();
        // A reading of the kernel would come between the messages that are counted.
        lab.write_config_with_heartbeat("60s");
        lab.lan.run("ip", &["address", "add", &format!("{LAN_THIRD}/24"), "dev", "eth0"]);
        let clients = clients.iter().map(|(name, sources)| {
            let client = lab.client(name);
            client.hold(sources);
            lab.database.exec(&client.rows());
            (client, sources.to_vec())
        });
        let clients = clients.collect();
        let ears = Ears::open(&[&lab.lan, &lab.gateway]);
        Self { lab, ears, clients }
    }

    fn flood(&self) -> Flood {
        let clients: Vec<_> = self.clients.iter().map(|(c, from)| (c, from.as_slice())).collect();
        self.ears.flood(&clients, &DESTINATIONS)
    }

    fn dial(&self) {
        self.clients.iter().for_each(|(client, _)| client.dial());
    }

    /// Waits until everything that `policy` allows arrives; nothing else may but what `before` did.
    fn await_enforced(&self, policy: &Ways, before: &Ways) {
        let flood = self.flood();
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
        let arrived = flood.arrived();
        let leaked: Vec<_> = arrived
            .iter()
            .filter(|way| !(policy.contains(*way) || before.contains(*way)))
            .collect();
        assert!(leaked.is_empty(), "{leaked:?} passed");
    }

    /// Exactly what `policy` allows arrives.
    fn assert_enforced(&self, policy: &Ways) {
        self.await_enforced(policy, policy);
    }

    /// The numbers of the messages that write, in a pass that nobody disturbs.
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

fn assert_killed(agent: &mut Agent, before: &str) {
    let status = agent.wait();
    println!("killed before {before}");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}, before {before}");
}

fn ways(allowed: &[(&str, &str, &[&str])]) -> Ways {
    let to = |(client, source, destinations): &(&str, &str, &[&str])| {
        destinations.iter().map(|destination| way(client, source, destination)).collect::<Vec<_>>()
    };
    allowed.iter().flat_map(to).collect()
}

/// Alice's policy is narrowed and she moves to another address; Bob's is widened and he moves to
/// the one that was hers; Carol is revoked, and Dave gets the address that was hers.
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
    let destination = |name: &str, sign: bool, destination: &str| {
        if sign {
            format!(
                "insert into policy_destinations (policy_id, destination)
                     select id, '{destination}/32' from policies where name = '{name}';"
            )
        } else {
            format!("delete from policy_destinations where destination = '{destination}/32';")
        }
    };
    let old = Policy {
        sql: [
            sql("10.99.0.11", "10.99.0.12", "active", "revoked"),
            destination("alice", true, LAN_OTHER),
            destination("bob", false, LAN_THIRD),
        ]
        .concat(),
        ways: ways(&[
            ("alice", "10.99.0.11", &[LAN_SERVER, LAN_OTHER]),
            ("bob", "10.99.0.12", &[LAN_SERVER]),
            ("carol", "10.99.0.13", &[LAN_SERVER]),
        ]),
    };
    let new = Policy {
        sql: [
            sql("10.99.0.21", "10.99.0.11", "revoked", "active"),
            destination("alice", false, LAN_OTHER),
            destination("bob", true, LAN_THIRD),
        ]
        .concat(),
        ways: ways(&[
            ("alice", "10.99.0.21", &[LAN_SERVER]),
            ("bob", "10.99.0.11", &[LAN_SERVER, LAN_THIRD]),
            ("dave", "10.99.0.13", &[LAN_OTHER]),
        ]),
    };
    [old, new]
}

#[test]
fn killed_between_any_two_messages_nothing_leaks_and_a_new_agent_converges() {
    let world = World::open(&[
        ("alice", &["10.99.0.11", "10.99.0.21"]),
        ("bob", &["10.99.0.12", "10.99.0.11"]),
        ("carol", &["10.99.0.13"]),
        ("dave", &["10.99.0.13"]),
    ]);
    let lab = &world.lab;
    lab.database.exec("delete from ip_allocations");
    lab.database.exec(
        "update wireguard_peers set assigned_ip = '10.99.0.13' where assigned_ip = '10.99.0.14'",
    );
    for (name, destination) in [
        ("alice", LAN_SERVER),
        ("bob", LAN_SERVER),
        ("carol", LAN_SERVER),
        ("dave", "10.20.0.200/31"),
    ] {
        lab.database.exec(&policy_rows(name, name, destination));
    }
    let [old, new] = policies();
    lab.database.exec(&old.sql);
    let mut agent = lab.start();
    // Flows that end are soon forgotten, so that a pass has as many messages each time.
    lab.gateway.within(|| {
        fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "1").unwrap();
    });
    world.assert_enforced(&old.ways);
    let writes = {
        let _flood = world.flood();
        world.writes(&agent, || lab.database.exec(&new.sql))
    };
    assert!(writes.len() >= 4, "too few to be a pass that changes much");
    world.await_enforced(&new.ways, &old.ways);
    for (number, before) in &writes {
        lab.database.exec(&old.sql);
        world.await_enforced(&old.ways, &new.ways);
        agent = kill_in_change(&world, agent, [&old, &new], *number, before);
    }
    world.await_pass();
    world.assert_enforced(&new.ways);
}

/// From a kernel that is `from`: the agent dies on the way to `to`; the next one gets there.
fn kill_in_change(
    world: &World,
    mut agent: Agent,
    [from, to]: [&Policy; 2],
    number: usize,
    before: &str,
) -> Agent {
    let lab = &world.lab;
    let allowed = from.ways.union(&to.ways).cloned().collect();
    let live = world.flood();
    eventually("what is allowed arrives", || live.arrived() == from.ways);
    let trace = Trace::kill_at(lab, &agent, number);
    lab.database.exec(&to.sql);
    assert_killed(&mut agent, before);
    drop(trace);
    let fresh = world.flood();
    world.dial();
    live.await_rounds(ROUNDS);
    fresh.await_rounds(ROUNDS);
    for flood in [live, fresh] {
        let arrived = flood.arrived();
        let leaked: Vec<_> = arrived.difference(&allowed).collect();
        assert!(leaked.is_empty(), "{leaked:?} passed, the agent killed before {before}");
    }
    let agent = lab.launch(BINARY.as_ref());
    world.await_enforced(&to.ways, &allowed);
    agent
}

#[test]
fn from_nothing_and_killed_between_any_two_messages_the_link_is_never_up_without_the_table() {
    let world = World::open(&[("alice", &["10.99.0.11", "10.99.0.12"]), ("bob", &["10.99.0.12"])]);
    let lab = &world.lab;
    lab.database.exec(&policy_rows("alice", "alice", LAN_SERVER));
    lab.database.exec(&policy_rows("bob", "bob", LAN_OTHER));
    let allowed =
        ways(&[("alice", "10.99.0.11", &[LAN_SERVER]), ("bob", "10.99.0.12", &[LAN_OTHER])]);
    let agent = start_from_nothing(lab);
    let writes = world.writes(&agent, || lab.relay.accept());
    assert!(writes.len() >= 8, "too few to begin with nothing");
    world.assert_enforced(&allowed);
    drop(agent);
    for (number, before) in &writes {
        let mut agent = start_from_nothing(lab);
        let trace = Trace::kill_at(lab, &agent, *number);
        let flood = world.flood();
        lab.relay.accept();
        assert_killed(&mut agent, before);
        drop(trace);
        assert!(!is_up(lab) || has_table(lab), "up without a table, killed before {before}");
        world.dial();
        flood.await_rounds(ROUNDS);
        let arrived = flood.arrived();
        assert!(arrived.is_subset(&allowed), "{arrived:?} passed, killed before {before}");
        let (code, out, err) = lab.gatepost(&["run", "--once"]);
        assert_eq!(code, 0, "after a kill before {before}: {out}{err}");
    }
    world.assert_enforced(&allowed);
}

/// An agent that waits for its database, on a host with nothing of ours.
fn start_from_nothing(lab: &Lab) -> Agent {
    lab.forget();
    assert!(!is_up(lab) && !has_table(lab));
    let _ = fs::remove_file(lab.folder.path().join("last-good"));
    lab.relay.refuse();
    let tries = || lab.log().matches("out of reach").count();
    let before = tries();
    let agent = lab.launch(BINARY.as_ref());
    // Past its first reading of the kernel, so that the messages to come can be counted.
    eventually("the agent has tried its database twice", || tries() > before + 1);
    agent
}

fn is_up(lab: &Lab) -> bool {
    let shown = lab.gateway.output("ip", &["-o", "link", "show", "up", "dev", &lab.link()]);
    !shown.stdout.is_empty()
}

fn has_table(lab: &Lab) -> bool {
    lab.gateway.output("nft", &["list", "table", "inet", "gatepost"]).status.success()
}
