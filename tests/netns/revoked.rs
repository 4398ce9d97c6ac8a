//! Revocation during a download: the download ends for good, and other peers lose no packet.

use crate::lab::{Download, Lab, policy_rows, revoke_to_last_packet};

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
    let others = Download::start(&bob, &lab.lan);
    for round in 0..ROUNDS {
        let took = revoke_to_last_packet(&lab, &alice);
        println!("round {round}: {took:?} from the commit to the last packet");
        others.await_more(100);
    }
    let came = others.came();
    println!("the other peer: {came:?}");
    assert_eq!(came.lost, 0, "another peer's revocation lost packets");
}
