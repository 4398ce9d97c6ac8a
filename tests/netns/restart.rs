//! Packets keep flowing while the agent restarts, crashes or is upgraded.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::lab::{BINARY, Backend, Fault, LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn restart_kill_upgrade_and_resync_lose_no_packet_and_forget_nothing() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    let mut agent = lab.start();
    alice.connect();
    eventually("the LAN answers", || alice.reaches(LAN_SERVER));
    let handshakes = lab.wg_show("latest-handshakes");
    let transferred = received_bytes(&lab);
    let ruleset = lab.gateway.firewall();

    let pings = alice.ping(LAN_SERVER, 50);
    pings.await_answers(5);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        agent.end(signal);
        pings.await_answers(10);
        agent = lab.start();
        pings.await_answers(5);
    }

    let newer = lab.folder.path().join("gatepost-newer");
    fs::copy(BINARY, &newer).unwrap();
    agent.end(Signal::SIGTERM);
    let agent = lab.launch(Path::new(&newer));
    lab.await_ready();
    pings.await_answers(5);

    let passes = || lab.status()["sync"]["passes"].as_u64().unwrap();
    let before = passes();
    let (code, out, err) = lab.gatepost(&["resync"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(passes() > before, "no pass was made on resync");
    let before = passes();
    agent.signal(Signal::SIGHUP);
    eventually("SIGHUP makes a pass", || passes() > before);
    pings.await_answers(5);

    let pinged = pings.end();
    assert_eq!(pinged.lost, 0, "{pinged:?}\n{}", lab.drops());
    Fault::told(&lab, "agent ended, killed, upgraded, resynced", "nothing changes", pinged);
    if lab.backend == Backend::Kernel {
        // A userspace device counts from its own start and says so in its own way.
        assert_eq!(lab.wg_show("latest-handshakes"), handshakes, "a session was made anew");
    }
    let least = transferred + 84 * u64::try_from(pinged.last).unwrap();
    assert!(received_bytes(&lab) >= least, "the peer's counters were reset");
    assert_eq!(lab.gateway.firewall(), ruleset, "the firewall's content changed");
}

/// What the gateway received from its only peer.
fn received_bytes(lab: &Lab) -> u64 {
    let transfer = lab.wg_show("transfer");
    transfer[0].split('\t').nth(1).unwrap().parse().unwrap()
}

#[test]
fn database_outage_disrupts_no_session_and_its_end_is_noticed() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    lab.database.exec(&alice.rows());
    let agent = lab.start();
    alice.connect();
    let pings = alice.ping(crate::lab::GATEWAY_TUNNEL, 50);
    pings.await_answers(5);

    assert!(lab.relay.refuse() > 0, "the agent had no connection to cut");
    eventually("the agent knows", || lab.status()["database"]["connected"] == false);
    lab.database.exec(&bob.rows());
    agent.end(Signal::SIGKILL);
    let _agent = lab.launch(BINARY.as_ref());
    eventually("a new agent answers", || lab.gatepost(&["status"]).0 != 4);
    pings.await_answers(10);
    assert_eq!(lab.kernel_peers(), [alice.key.as_str()], "without the database nothing changes");

    lab.relay.accept();
    bob.connect();
    pings.await_answers(5);
    let pinged = pings.end();
    assert_eq!(pinged.lost, 0);
    let what = "database unreachable, and the agent killed meanwhile";
    Fault::told(&lab, what, "starts from the last good rows; follows when it is back", pinged);
}
