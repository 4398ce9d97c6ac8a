//! From a commit to packets, and back to the rows.

use std::fs;

use crate::lab::{GATEWAY_TUNNEL, Lab, eventually, new_keys, peer_rows, public_key_of};

#[test]
fn a_committed_peer_is_served_and_a_revoked_one_is_not() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    let _agent = lab.start();
    assert!(!alice.reaches(GATEWAY_TUNNEL), "a peer that is in no row was answered");

    lab.database.exec(&alice.rows());
    lab.database.exec(&bob.rows());
    alice.connect();
    bob.connect();

    let pings = bob.ping(GATEWAY_TUNNEL, 50);
    pings.await_answers(5);
    lab.database.exec(&alice.revocation());
    eventually("the revoked peer leaves the device", || !lab.kernel_peers().contains(&alice.key));
    assert!(!alice.reaches(GATEWAY_TUNNEL), "a revoked peer was answered");
    pings.await_answers(5);
    assert_eq!(pings.end().lost, 0, "another peer's revocation lost packets");

    lab.database.exec("update devices set status = 'active', revoked_at = null");
    alice.connect();
    lab.database.exec("update users set is_active = false where username = 'alice'");
    eventually("an inactive user's peer leaves", || !lab.kernel_peers().contains(&alice.key));
    lab.database.exec("update gateways set is_active = false");
    eventually("an inactive gateway has no peers", || lab.kernel_peers().is_empty());
}

#[test]
fn handshakes_and_proofs_are_written_to_the_database() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    let _agent = lab.start();
    lab.database.exec(&alice.rows());
    alice.connect();
    let reported = |condition: &str| {
        eventually(condition, || lab.database.holds(condition));
    };
    reported("exists (select from gateways where last_sync_at > now() - interval '10 s')");
    reported(
        "exists (select from devices where last_seen_at > now() - interval '3 min' and last_connected_at is not null)",
    );
    for event in ["gateway.started", "gateway.synced", "peer.connected"] {
        reported(&format!(
            "exists (select from audit_logs where event_type = '{event}' and entity_id is not null)"
        ));
    }
    // The flow of her pings at least: one that was idle for 30 s is forgotten.
    alice.must_reach(GATEWAY_TUNNEL, "she is connected");
    lab.database.exec(&alice.revocation());
    reported(
        "exists (select from audit_logs where event_type = 'peer.revoked'
            and (metadata ->> 'flows_cut')::int > 0 and (metadata ->> 'milliseconds')::int >= 0)",
    );
    let status = lab.status();
    assert_eq!(status["state"], "ready", "{status}");
    assert_eq!(status["peers"]["in_kernel"], 0, "{status}");
    assert_eq!(status["interface"]["backend"], lab.backend.word(), "{status}");
}

#[test]
fn a_plan_says_what_a_pass_would_do_and_does_nothing() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let (code, before, err) = lab.gatepost(&["plan"]);
    assert_eq!(code, 2, "{before}{err}");
    assert!(before.contains(&alice.key) && before.contains("alice"), "{before}");
    assert!(
        !lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success(),
        "plan made the link"
    );

    let agent = lab.start();
    let (code, after, err) = lab.gatepost(&["plan"]);
    assert_eq!((code, err.as_str()), (0, ""), "{after}");
    drop(agent);
    assert_eq!(lab.gatepost(&["status"]).0, 4, "no agent is left");
}

#[test]
fn a_plan_shows_what_a_pass_would_hold_back() {
    let lab = Lab::open();
    for number in 10..30 {
        let key = new_keys().1;
        lab.database.exec(&peer_rows(&format!("u{number}"), &key, &format!("10.99.1.{number}")));
    }
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 0, "{out}{err}");
    lab.database.exec("update users set is_active = false");
    let (code, told, err) = lab.gatepost(&["plan"]);
    assert_eq!(code, 2, "{told}{err}");
    for number in 10..30 {
        let named = told.lines().find(|line| line.trim().starts_with(&format!("u{number}/")));
        let why = ": the removal waits for `gatepost confirm`: ";
        assert!(named.is_some_and(|line| line.contains(why)), "u{number}: {told}");
    }
    lab.database.exec("delete from wireguard_peers");
    let (code, told, err) = lab.gatepost(&["plan"]);
    assert_eq!(code, 2, "{told}{err}");
    assert!(told.contains("the rows of 20 of 20 peers are gone"), "{told}");
    assert!(told.ends_with("20 removals held back\n") && !told.contains("peer remove"), "{told}");
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 1, "{out}{err}");
    assert_eq!(lab.kernel_peers().len(), 20, "as the plan said");
}

#[test]
fn one_pass_without_a_database_tells_what_it_knows_and_no_figures_of_rows() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 0, "{out}{err}");
    lab.relay.refuse();
    let _ = fs::remove_file(lab.folder.path().join("last-good"));
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 1, "{out}{err}");
    let known = "peers      1 in the kernel, 0 connected, no rows were read yet\n";
    assert!(out.contains(known) && out.contains("drift      not compared yet\n"), "{out}");
}

#[test]
fn peers_tells_of_a_handshake_between_two_heartbeats() {
    let lab = Lab::open();
    // No other reading comes meanwhile.
    lab.write_config_with_heartbeat("10m", "");
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let _agent = lab.start();
    let peer = || {
        let (code, out, err) = lab.gatepost(&["peers", "--json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()[0].clone()
    };
    alice.connect();
    eventually("the peer has its handshake", || peer()["last_handshake_at"].is_string());
    assert!(peer()["endpoint"].is_string());
    assert!(lab.gatepost(&["peers", "--connected"]).1.contains("alice/"));
}

#[test]
fn one_pass_converges_and_down_removes_only_our_objects() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.gateway.run("nft", &["add", "table", "inet", "foreign"]);
    let (code, out, err) = lab.gatepost(&["run", "--once"]);
    assert_eq!(code, 0, "{out}{err}");
    let told = "1 in the kernel, 0 connected, 1 desired; 0 ineligible, 0 quarantined\n";
    assert!(out.contains(told) && out.contains("poll: one pass only\n"), "{out}");
    assert_eq!(lab.kernel_peers(), [alice.key.as_str()]);
    alice.connect();

    let (code, out, err) = lab.gatepost(&["down", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    eventually("the link is gone", || {
        !lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success()
    });
    assert_eq!(lab.gateway.run("nft", &["list", "tables"]), "table inet foreign");
}

#[test]
fn a_gateway_enrolls_itself() {
    let lab = Lab::open();
    let key_file = lab.folder.path().join("second.key");
    let output = lab
        .admin_command(&[
            "enroll",
            "--endpoint",
            "vpn.example.org:51821",
            "--listen-port",
            "51821",
            "--vpn-cidr",
            "10.98.0.0/24",
        ])
        .env("GATEPOST_GATEWAY_NAME", "fra-2")
        .env("GATEPOST_GATEWAY_PRIVATE_KEY_FILE", &key_file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let public_key = public_key_of(fs::read_to_string(&key_file).unwrap().trim());
    let row = "select concat_ws(' ', public_key, listen_port, vpn_cidr) from gateways where name = 'fra-2'";
    assert_eq!(lab.database.value(row), format!("{public_key} 51821 10.98.0.0/24"));
}
