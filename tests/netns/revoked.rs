//! Revocation: it ends a download for good, whatever else is wrong, and other peers lose no packet.

use crate::lab::{LAN_SERVER, LISTEN_PORT, Lab, eventually, policy_rows, revoke_under_download};

const ROUNDS: usize = 5;

#[test]
fn revocation_stops_every_packet_of_the_peer_and_no_other() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    let _agent = lab.start();
    alice.connect();
    bob.connect();
    // So few that the queues hold them while a busy machine lets a device rest for seconds.
    let others = bob.ping(LAN_SERVER, 10);
    for round in 0..ROUNDS {
        let cut = revoke_under_download(&lab, &alice);
        println!("round {round}, from the commit: {cut:?}");
        others.await_answers(50);
    }
    let pinged = others.end();
    println!("the other peer: {pinged:?}");
    assert_eq!(pinged.lost, 0, "another peer's revocation lost packets");
}

#[test]
fn revocation_acts_although_the_gateways_row_cannot_be_used() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    let _agent = lab.start();
    alice.connect();
    bob.connect();
    let state = |wanted: &str| lab.status()["state"] == wanted;
    lab.database.exec("update gateways set listen_port = 0");
    eventually("the agent is not ready", || state("not_ready"));
    let others = bob.ping(LAN_SERVER, 20);
    lab.database.exec(&alice.revocation());
    eventually("the revoked peer is gone", || lab.kernel_peers() == [bob.key.as_str()]);
    assert!(!alice.reaches(LAN_SERVER));
    others.await_answers(5);
    assert_eq!(others.end().lost, 0, "another peer lost packets");
    assert!(state("not_ready"), "only a person can correct the row");
    lab.database.exec(&format!("update gateways set listen_port = {LISTEN_PORT}"));
    eventually("the corrected row is followed", || state("ready"));
    bob.must_reach(LAN_SERVER, "the row is right again");
}
