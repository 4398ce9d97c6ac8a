//! A network that another link has cannot be the tunnel's.

use crate::lab::{LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn pool_that_another_link_has_is_refused_and_revocations_go_on() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    let ip = |words: &str| lab.gateway.run("ip", &words.split(' ').collect::<Vec<_>>());
    let route = || ip("-4 route show dev uplink0");
    let why = || lab.status()["why"].as_str().unwrap_or_default().to_owned();
    let agent = lab.start();
    alice.connect();
    bob.connect();

    // An uplink comes to have the pool's network while the agent runs.
    ip("link add uplink0 type bridge");
    ip("link set uplink0 up");
    ip("address add 10.99.0.5/16 dev uplink0");
    let uplink_route = route();
    lab.gatepost(&["resync"]);
    eventually("the agent is not ready", || lab.status()["state"] == "not_ready");
    assert!(why().contains("10.99.0.0/16 of link uplink0"), "{}", why());
    let others = bob.ping(LAN_SERVER, 20);
    lab.database.exec(&alice.revocation());
    eventually("the revoked peer is gone", || lab.kernel_peers() == [bob.key.as_str()]);
    others.await_answers(5);
    assert_eq!(others.end().lost, 0, "another peer lost packets");
    let (code, text, _) = lab.gatepost(&["check"]);
    assert!(code == 78 && text.contains("10.99.0.0/16 of link uplink0"), "{code} {text}");

    // A gateway that starts beside such an uplink makes no link, and takes no route.
    drop(agent);
    lab.gatepost(&["down", "--yes"]);
    let agent = lab.launch(crate::lab::BINARY.as_ref());
    let refusals = || lab.log().matches("lies within 10.99.0.0/16 of link uplink0").count();
    eventually("the new agent refuses the network, too", || refusals() == 2);
    assert!(!lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success());
    assert_eq!(route(), uplink_route);

    // A narrower network of another link is only a warning.
    ip("address del 10.99.0.5/16 dev uplink0");
    ip("address add 10.99.200.5/24 dev uplink0");
    lab.await_ready();
    let warnings = lab.status()["warnings"].to_string();
    assert!(warnings.contains("10.99.200.0/24 on link uplink0 overlaps"), "{warnings}");
    drop(agent);
}
