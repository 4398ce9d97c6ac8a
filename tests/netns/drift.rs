//! Other programs edit the firewall. The agent repairs it and logs which program it was.

use std::net::TcpListener;
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::lab::{
    Client, Fault, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows,
};

#[test]
fn edits_of_our_table_are_repaired_and_their_author_is_named() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
    }
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_OTHER}/32")));
    // No heartbeat finds an edit before the kernel's message about it comes.
    lab.write_config_with_heartbeat("10m", "[firewall]\nown_table = false");
    let _agent = lab.start();
    alice.connect();
    bob.connect();
    eventually("the policy is applied", || alice.reaches(LAN_OTHER));
    let repaired = || lab.status()["sync"]["drift_repaired"].as_u64().unwrap();
    let edits = [
        grant(&lab, &alice, &bob),
        "flush ruleset".to_owned(),
        "delete table inet gatepost".to_owned(),
        "flush table inet gatepost".to_owned(),
        "flush map inet gatepost peer4".to_owned(),
    ];
    for (edit, before) in edits.iter().zip(repaired()..) {
        let began = Instant::now();
        let pid = nft(&lab, edit);
        eventually(&format!("{edit}: put back"), || repaired() > before);
        // The address and the profile differ from run to run.
        let what = edit.split(" { ").next().unwrap_or(edit);
        Fault::new(&lab, &format!("nft {what}"), "put back; its author is named")
            .converged(began.elapsed());
        assert_eq!(repaired(), before + 1, "{edit}");
        let (code, planned, _) = lab.gatepost(&["plan"]);
        assert_eq!(code, 0, "{edit}: {planned}");
        let cause = format!("nft, pid {pid}, changed our firewall");
        eventually(&cause, || lab.log().contains(&cause));
        eventually("what was allowed is", || alice.reaches(LAN_OTHER));
        assert!(!alice.reaches(LAN_SERVER) && !bob.reaches(LAN_OTHER), "{edit}: came back open");
    }
    let audited = format!(
        "{} = (select count(*) from audit_logs where event_type = 'gateway.drift_repaired')",
        edits.len()
    );
    eventually(&audited, || lab.database.holds(&audited));
}

/// Kernels from 6.9 let no other program change the table, whether the agent answers or not. Without an
/// agent the gate stays.
#[test]
fn owned_table_outlives_flushes_and_the_agent() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_OTHER}/32")));
    let mut agent = lab.start();
    alice.connect();
    eventually("the policy is applied", || alice.reaches(LAN_OTHER));
    let service = lab.gateway.within(|| TcpListener::bind((GATEWAY_TUNNEL, 0)).unwrap());
    let port = service.local_addr().unwrap().port();
    let is_served = |state: &str| {
        alice.must_reach(LAN_OTHER, state);
        assert!(!alice.reaches(LAN_SERVER), "{state}");
        assert!(alice.tcp(GATEWAY_TUNNEL, port).is_err(), "{state}: a service of the gateway");
    };
    let flushes = |state: &str| {
        nft(&lab, "flush ruleset");
        let deletes = lab.gateway.output("nft", &["delete", "table", "inet", "gatepost"]);
        assert!(!deletes.status.success(), "{state}: another program deleted the table");
        is_served(state);
    };
    flushes("the agent runs");
    let (code, planned, _) = lab.gatepost(&["plan"]);
    assert_eq!(code, 0, "{planned}");
    let (code, _, refused) = lab.gatepost(&["down", "--yes"]);
    assert_ne!(code, 0, "the agent runs: {refused}");
    assert_eq!(lab.status()["sync"]["drift_repaired"], 0);
    agent.signal(Signal::SIGSTOP);
    flushes("the agent is stopped");
    for (signal, state) in [(Signal::SIGKILL, "killed"), (Signal::SIGTERM, "ended")] {
        agent.end(signal);
        is_served(state);
        agent = lab.start();
        flushes(&format!("the next agent runs, after one was {state}"));
    }
    agent.end(Signal::SIGKILL);
    nft(&lab, "flush ruleset");
    assert!(!alice.reaches(LAN_OTHER) && !alice.reaches(LAN_SERVER), "without agent and table");
    agent = lab.start();
    eventually("what was allowed is", || alice.reaches(LAN_OTHER));
    assert!(!alice.reaches(LAN_SERVER));
    assert_eq!(lab.status()["firewall"]["gate"], true, "{}", lab.status()["firewall"]);
    agent.end(Signal::SIGTERM);
    let (code, removed, _) = lab.gatepost(&["down", "--yes"]);
    assert!(code == 0 && removed.contains("nftables table"), "{removed}");
    let tables = lab.gateway.run("nft", &["list", "tables"]);
    assert!(!tables.contains("gatepost"), "{tables}");
    let rules = lab.gateway.run("ip", &["rule"]) + &lab.gateway.run("ip", &["-6", "rule"]);
    assert!(!rules.contains("blackhole") && !rules.contains("goto"), "{rules}");
}

/// An `nft` edit that assigns one peer's profile to another peer.
fn grant(lab: &Lab, from: &Client, to: &Client) -> String {
    let map = "inet gatepost peer4";
    let found = lab.gateway.run("nft", &[&format!("get element {map} {{ {} }}", from.address)]);
    let (_, profile) = found.split_once(" : ").unwrap();
    let profile = profile.split_whitespace().next().unwrap();
    let address = &to.address;
    format!("delete element {map} {{ {address} }}; add element {map} {{ {address} : {profile} }}")
}

/// Runs `nft`: its process id.
fn nft(lab: &Lab, edit: &str) -> u32 {
    let mut child = lab.gateway.spawn(Command::new("nft").arg(edit));
    assert!(child.wait().unwrap().success(), "{edit}");
    child.id()
}
