//! Somebody changes peers with `wg`. WireGuard tells nobody: the next reading shows it.

use std::time::Duration;

use crate::lab::{Fault, LAN_SERVER, Lab, eventually, policy_rows, run};

const SPACING_MS: u32 = 20;
/// The tests' heartbeat is 1 s, and readings may take a 200th of the time.
const NEXT_READING: Duration = Duration::from_secs(4);

#[test]
fn peers_changed_by_hand_are_put_right_at_the_next_reading() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    let _agent = lab.start();
    for client in [&alice, &bob] {
        client.connect();
        eventually("the LAN answers", || client.reaches(LAN_SERVER));
    }
    let seen = "2 = (select count(*) from devices where last_seen_at is not null)";
    eventually(seen, || lab.database.holds(seen));
    let preshared = lab.folder.path().join("by-hand.psk");
    std::fs::write(&preshared, run("wg", &["genpsk"])).unwrap();
    let preshared = format!("preshared-key {}", preshared.display());
    let repairs = || lab.status()["sync"]["drift_repaired"].as_u64().unwrap();
    let faults = [
        ("AllowedIPs of a peer edited by hand", "allowed-ips 10.99.77.1/32", NEXT_READING),
        (
            "AllowedIPs of a peer widened by hand",
            "allowed-ips 10.99.0.11/32,0.0.0.0/0",
            Duration::ZERO,
        ),
        ("keepalive of a peer edited by hand", "persistent-keepalive 7", Duration::ZERO),
        ("preshared key of a peer edited by hand", &preshared, Duration::ZERO),
        ("peer removed by hand", "remove", NEXT_READING),
    ];
    for (what, change, bound) in faults {
        let before = repairs();
        let ping = alice.ping(LAN_SERVER, SPACING_MS);
        let fault = Fault::new(&lab, what, "put right at the next reading, in place")
            .may_cost(bound, ping)
            .spares(bob.ping(LAN_SERVER, SPACING_MS));
        let change: Vec<_> = change.split(' ').collect();
        let link = lab.link();
        let arguments = [&["set", &link, "peer", &alice.key][..], &change].concat();
        fault.cause(|| drop(lab.gateway.run("wg", &arguments)), || repairs() > before);
        assert_eq!(repairs(), before + 1, "{what}");
        assert_eq!(lab.gatepost(&["plan"]).0, 0, "{what}");
    }
}
