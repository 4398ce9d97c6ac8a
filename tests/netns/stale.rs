//! The database stays away: a host boots from the last good rows until `[stale]` applies.

use nix::sys::signal::Signal;

use crate::lab::{
    BINARY, Fault, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows,
};

#[test]
fn a_host_boots_from_the_last_good_rows_while_the_database_is_away() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    lab.database.exec(&alice.rows());
    lab.database.exec(&bob.rows());
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_SERVER}/32")));
    let agent = lab.start();
    alice.connect();
    lab.database.exec(&bob.revocation());
    eventually("the revocation is carried out", || !lab.kernel_peers().contains(&bob.key));
    eventually("and remembered", || {
        std::fs::read_to_string(lab.folder.path().join("last-good"))
            .is_ok_and(|rows| rows.lines().count() > 1)
    });

    // As after a reboot: nothing in the kernel or in memory, and no database.
    agent.end(Signal::SIGKILL);
    lab.forget();
    lab.relay.refuse();
    let _agent = lab.launch(BINARY.as_ref());
    alice.connect();
    eventually("what was allowed is", || alice.reaches(LAN_SERVER));
    assert!(!alice.reaches(LAN_OTHER));
    assert_eq!(lab.kernel_peers(), [alice.key.as_str()], "who was revoked stays out");

    lab.database.exec(&alice.revocation());
    eventually("nobody could know", || alice.reaches(LAN_SERVER));
    lab.relay.accept();
    eventually("what happened meanwhile is carried out", || lab.kernel_peers().is_empty());
    Fault::told(
        &lab,
        "database away at boot, with last good rows",
        "serves them; whom they revoke stays out",
        None,
    );
}

#[test]
fn stale_policy_keeps_live_sessions_or_removes_all_peers() {
    for (policy, live_stay) in [("deny_new", true), ("down", false)] {
        let lab = Lab::open();
        lab.write_config(&format!("[stale]\npolicy = \"{policy}\"\nafter = \"2s\"\n"));
        let (alice, bob) = (lab.client("alice"), lab.client("bob"));
        lab.database.exec(&alice.rows());
        lab.database.exec(&bob.rows());
        let _agent = lab.start();
        alice.connect();
        eventually("the session is known", || {
            lab.database.holds("exists (select from devices where last_seen_at is not null)")
        });
        lab.relay.refuse();
        eventually("bob, who has no session, is out", || !lab.kernel_peers().contains(&bob.key));
        if live_stay {
            eventually("a live session goes on", || alice.reaches(GATEWAY_TUNNEL));
            assert_eq!(lab.kernel_peers(), [alice.key.as_str()]);
        } else {
            eventually("so is alice", || lab.kernel_peers().is_empty());
            assert!(!alice.reaches(GATEWAY_TUNNEL));
        }
        assert_ne!(lab.gatepost(&["status"]).0, 0, "stale, and says ready");

        lab.relay.accept();
        bob.connect();
        alice.connect();
    }
}

#[test]
fn agent_without_rows_withdraws_what_an_earlier_one_left() {
    let lab = Lab::open();
    lab.write_config("[stale]\npolicy = \"down\"\nafter = \"2s\"\n");
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let agent = lab.start();
    alice.connect();
    agent.end(Signal::SIGKILL);
    alice.must_reach(GATEWAY_TUNNEL, "a dead agent leaves traffic as it was");

    lab.relay.refuse();
    std::fs::remove_file(lab.folder.path().join("last-good")).unwrap();
    let _agent = lab.launch(BINARY.as_ref());
    eventually("alice is out", || lab.kernel_peers().is_empty());
    assert!(!alice.reaches(GATEWAY_TUNNEL));
    lab.relay.accept();
    alice.connect();
    eventually("she is back", || alice.reaches(GATEWAY_TUNNEL));
}

#[test]
fn host_that_boots_without_any_rows_forwards_nothing() {
    let lab = Lab::open();
    // The routing rules would drop the packets as well.
    lab.write_config("[firewall]\nfail_closed = false\n");
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    lab.database.exec(&alice.rows());
    lab.database.exec(&bob.rows());
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_SERVER}/32")));
    let agent = lab.start();
    alice.connect();
    bob.connect();
    assert!(!alice.reaches(&bob.address));
    agent.end(Signal::SIGKILL);
    lab.relay.refuse();
    let last_good = lab.folder.path().join("last-good");
    let table =
        || lab.gateway.output("nft", &["list", "table", "inet", "gatepost"]).status.success();

    // The link of an earlier run is there, and nothing judges its packets.
    std::fs::remove_file(&last_good).unwrap();
    lab.gateway.run("nft", &["delete", "table", "inet", "gatepost"]);
    alice.must_reach(&bob.address, "nothing denies what no policy allows");
    let agent = lab.launch(BINARY.as_ref());
    eventually("a table denies", table);
    assert!(!alice.reaches(&bob.address) && !alice.reaches(LAN_SERVER));
    assert_eq!(lab.kernel_peers().len(), 2, "no peer is touched");
    let why = || lab.status()["why"].as_str().unwrap_or_default().to_owned();
    eventually("the agent says why", || why().contains("no last good rows"));
    lab.relay.accept();
    eventually("what is allowed is", || alice.reaches(LAN_SERVER));
    assert!(!alice.reaches(&bob.address));

    // As after a reboot: the table is there before any link.
    agent.end(Signal::SIGKILL);
    lab.forget();
    lab.relay.refuse();
    std::fs::remove_file(&last_good).unwrap();
    let _agent = lab.launch(BINARY.as_ref());
    eventually("a table denies, and there is no link yet", table);
    assert!(!lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success());
    assert_eq!(lab.gatepost(&["status"]).0, 3, "not ready");
    lab.relay.accept();
    alice.connect();
    eventually("what is allowed is again", || alice.reaches(LAN_SERVER));
    Fault::told_lasting(
        &lab,
        "database away at boot, without last good rows",
        "a table denies everything; not ready",
    );
}
