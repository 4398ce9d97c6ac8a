//! A peer that the host blocks, while the database is unreachable.

use nix::sys::signal::Signal;

use crate::lab::{BINARY, LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn blocked_peer_sends_no_packet_through_restarts_until_it_is_unblocked() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    let agent = lab.start();
    alice.connect();
    bob.connect();
    lab.relay.refuse();
    let others = bob.ping(LAN_SERVER, 20);
    let (code, out, err) = lab.gatepost(&["block", "alice"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("alice"), "{out}");
    let packets = alice.received_packets();
    assert_eq!(lab.kernel_peers(), [bob.key.as_str()], "answered when the kernel follows");
    assert!(!alice.reaches(LAN_SERVER));
    assert_eq!(alice.received_packets(), packets, "a packet came after the block");
    others.await_answers(5);
    assert_eq!(others.end().lost, 0, "another peer lost packets");
    let status = lab.status();
    assert_eq!(status["blocked"][0]["name"], "alice", "{status}");
    assert!(lab.gatepost(&["peers"]).1.contains("blocked on this host"));

    // Put back by hand, and after a reboot without a database.
    lab.gateway.run(
        "wg",
        &["set", &lab.link(), "peer", &alice.key, "allowed-ips", &format!("{}/32", alice.address)],
    );
    assert_eq!(lab.gatepost(&["explain", "alice", LAN_SERVER]).0, 2);
    agent.end(Signal::SIGKILL);
    lab.forget();
    let agent = lab.launch(BINARY.as_ref());
    bob.connect();
    assert!(!alice.reaches(LAN_SERVER));
    assert_eq!(lab.kernel_peers(), [bob.key.as_str()]);

    let (code, out, err) = lab.gatepost(&["unblock", "alice"]);
    assert_eq!(code, 0, "{out}{err}");
    alice.connect();
    eventually("what was allowed is", || alice.reaches(LAN_SERVER));
    agent.end(Signal::SIGKILL);
    let _agent = lab.launch(BINARY.as_ref());
    lab.await_ready();
    alice.must_reach(LAN_SERVER, "the unblocking outlives the agent, too");
    lab.gatepost(&["block", "bob"]);
    lab.relay.accept();
    let audited = "exists (select from audit_logs where event_type = 'peer.blocked')";
    eventually("a block made without the database is audited", || lab.database.holds(audited));
}

#[test]
fn unreadable_block_list_keeps_sessions_and_grants_nothing_until_it_is_read() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    let agent = lab.start();
    alice.connect();
    agent.end(Signal::SIGKILL);
    let file = lab.folder.path().join("blocked");
    std::fs::write(&file, "[{\"kind\":").unwrap();
    lab.database.exec(&bob.rows());
    let _agent = lab.launch(BINARY.as_ref());
    eventually("the agent names the file", || {
        lab.gatepost(&["status"]).1.contains(file.to_str().unwrap())
    });
    alice.must_reach(LAN_SERVER, "her session stays");
    assert_eq!(lab.kernel_peers(), [alice.key.as_str()]);
    eventually("a block acts although it cannot be saved", || {
        // Before the rows are read, alice is unknown.
        let (code, out, err) = lab.gatepost(&["block", "alice"]);
        assert_eq!(code, 1, "{out}{err}");
        lab.kernel_peers().is_empty()
    });
    std::fs::write(&file, "[]").unwrap();
    lab.gatepost(&["unblock", "alice"]);
    lab.gatepost(&["resync"]);
    lab.await_ready();
    alice.connect();
    bob.connect();
}
