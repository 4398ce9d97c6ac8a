//! Other programs change the link under a running agent.

use std::fs;

use nix::sys::signal::Signal;

use crate::lab::{BINARY, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows};

/// A change that another program makes on the gateway, and how to see it.
struct Fault {
    what: &'static str,
    /// Arguments of `ip`, run in order.
    commands: Vec<String>,
    shows: fn(&Lab) -> bool,
}

fn faults(link: &str) -> Vec<Fault> {
    let fault = |what, commands: &str, shows| {
        let commands = commands.split("; ").map(|command| command.replace("LINK", link)).collect();
        Fault { what, commands, shows }
    };
    vec![
        fault("its route is flushed", "route flush dev LINK", |lab| {
            lab.gateway.run("ip", &["route", "show", "dev", &lab.link()]).is_empty()
        }),
        fault("its address is removed", "address del 10.99.0.1/16 dev LINK", |lab| {
            !lab.gateway
                .run("ip", &["address", "show", "dev", &lab.link()])
                .contains(GATEWAY_TUNNEL)
        }),
        fault("it is taken down", "link set LINK down", |lab| {
            lab.gateway.run("ip", &["link", "show", "up", "dev", &lab.link()]).is_empty()
        }),
        // A kernel before 6.2 renames no link that is up.
        fault(
            "it is renamed",
            "link set LINK down; link set LINK name theirs; link set theirs up",
            |lab| lab.gateway.output("ip", &["link", "show", "theirs"]).status.success(),
        ),
        fault("it is deleted", "link delete LINK", |lab| {
            !lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success()
        }),
    ]
}

#[test]
fn drift_of_the_link_is_repaired_and_counted() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    let agent = lab.start();
    alice.connect();
    eventually("the LAN answers", || alice.reaches(LAN_SERVER));
    let repairs = || lab.status()["sync"]["drift_repaired"].as_u64().unwrap();
    for Fault { what, commands, shows } in faults(&lab.link()) {
        let before = repairs();
        agent.signal(Signal::SIGSTOP);
        assert!(!shows(&lab), "before {what}");
        for command in &commands {
            lab.gateway.run("ip", &command.split(' ').collect::<Vec<_>>());
        }
        assert!(shows(&lab), "{what}");
        assert!(!alice.reaches(LAN_SERVER), "{what}, and the LAN still answers");
        agent.signal(Signal::SIGCONT);
        eventually(&format!("{what}: the agent repairs it"), || repairs() > before);
        assert!(!shows(&lab), "{what}, and nothing was repaired");
        lab.await_ready();
        alice.connect();
        eventually(&format!("{what}: the LAN answers again"), || alice.reaches(LAN_SERVER));
    }
}

#[test]
fn link_renamed_in_the_configuration_stays_guarded() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_SERVER}/32")));
    let agent = lab.start();
    alice.connect();
    eventually("the LAN answers", || alice.reaches(LAN_SERVER));
    agent.end(Signal::SIGTERM);
    let (old, new) = (lab.link(), format!("{}n", lab.link()));
    let config = fs::read_to_string(lab.config()).unwrap();
    let name = |link: &str| format!("name = \"{link}\"");
    fs::write(lab.config(), config.replace(&name(&old), &name(&new))).unwrap();

    let table = || lab.gateway.firewall();
    let before = table();
    let agent = lab.launch(BINARY.as_ref());
    eventually("the agent says why it does nothing", || lab.log().contains("may still guard"));
    assert_eq!(lab.gatepost(&["status"]).0, 3);
    assert_eq!(table(), before);
    alice.must_reach(LAN_SERVER, "what was granted is not cut");
    assert!(!alice.reaches(LAN_OTHER), "what was never granted is open");
    assert!(!lab.gateway.output("ip", &["link", "show", &new]).status.success());

    agent.end(Signal::SIGTERM);
    let (code, out, err) = lab.gatepost(&["down", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains(&format!("interface {old},")), "{out}");
    assert!(!lab.gateway.output("ip", &["link", "show", &old]).status.success());
    let _agent = lab.start();
    alice.connect();
    eventually("the LAN answers over the new link", || alice.reaches(LAN_SERVER));
}
