//! An operator changes peers with `wg`. WireGuard announces nothing: the next reading shows it.

use std::time::Duration;

use super::{SPACING_MS, Scene};
use crate::lab::{Fault, LAN_SERVER, run};

/// Readings take a 200th of the time at most, and come at least once a minute.
const NEXT_READING: Duration = Duration::from_secs(62);

#[test]
fn peers_changed_by_hand_are_put_right_at_the_next_reading() {
    let scene = Scene::open();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    let preshared = lab.folder.path().join("by-hand.psk");
    std::fs::write(&preshared, run("wg", &["genpsk"])).unwrap();
    let preshared = format!("preshared-key {}", preshared.display());
    let repairs = || scene.repairs();
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
        let fault = Fault::new(lab, what, "put right at the next reading, in place")
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
