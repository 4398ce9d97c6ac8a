//! Two agents on one host.

use std::fs;

use nix::sys::signal::Signal;

use crate::lab::{BINARY, Fault, GATEWAY, GATEWAY_TUNNEL, Lab, eventually};

#[test]
fn second_agent_ends_and_names_the_first_one() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let first = lab.start();
    alice.connect();
    let pings = alice.ping(GATEWAY_TUNNEL, 50);
    pings.await_answers(5);
    let passes = || lab.status()["sync"]["passes"].as_u64().unwrap();
    let (before, table) = (passes(), lab.gateway.firewall());

    // With a control socket and last good rows of its own, it meets the first one nowhere else.
    let config = fs::read_to_string(lab.config()).unwrap();
    let apart = lab.folder.path().join("second.toml");
    let own = config.replace("control.sock", "second.sock").replace("last-good", "second-good");
    fs::write(&apart, own).unwrap();
    for arguments in [&["run", "--once"][..], &["run"]] {
        let with_its_own = [&["--config", apart.to_str().unwrap()], arguments].concat();
        let (code, _, told) = lab.gatepost(&with_its_own);
        assert_eq!(code, 75, "{arguments:?}: {told}");
        let name = format!("another agent (pid {}, gateway {GATEWAY},", first.pid());
        assert!(told.contains(&name), "{told}");
    }
    assert_eq!((passes(), lab.gateway.firewall()), (before, table), "the first one had work");
    pings.await_answers(5);
    let pinged = pings.end();
    assert_eq!(pinged.lost, 0);
    Fault::told(&lab, "second agent on one host", "exit 75, and names the first", pinged);

    first.end(Signal::SIGKILL);
    fs::copy(&apart, lab.config()).unwrap();
    let _second = lab.launch(BINARY.as_ref());
    eventually("the second one serves", || lab.gatepost(&["status"]).0 == 0);
    alice.must_reach(GATEWAY_TUNNEL, "another agent serves");
}
