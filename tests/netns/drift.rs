//! Other programs edit the firewall. The agent repairs it and logs which program it was.

use std::process::Command;

use crate::lab::{Client, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn edits_of_our_table_are_repaired_and_their_author_is_named() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
    }
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_OTHER}/32")));
    let _agent = lab.start();
    alice.connect();
    bob.connect();
    eventually("the policy is applied", || alice.reaches(LAN_OTHER));
    let repaired = || lab.status()["sync"]["drift_repaired"].as_u64().unwrap();
    let edits = [
        grant(&lab, &alice, &bob),
        "flush ruleset".to_owned(),
        "delete table inet gatepost".to_owned(),
        "flush table inet gatepost".to_owned(),
        "flush map inet gatepost peer4".to_owned(),
    ];
    for (edit, before) in edits.iter().zip(repaired()..) {
        let pid = nft(&lab, edit);
        eventually(&format!("{edit}: put back"), || repaired() > before);
        assert_eq!(repaired(), before + 1, "{edit}");
        let (code, planned, _) = lab.gatepost(&["plan"]);
        assert_eq!(code, 0, "{edit}: {planned}");
        let cause = format!("nft, pid {pid}, changed our firewall");
        eventually(&cause, || lab.log().contains(&cause));
        eventually("what was allowed is", || alice.reaches(LAN_OTHER));
        assert!(!alice.reaches(LAN_SERVER) && !bob.reaches(LAN_OTHER), "{edit}: came back open");
    }
    let audited = format!(
        "{} = (select count(*) from audit_logs where event_type = 'gateway.drift_repaired')",
        edits.len()
    );
    eventually(&audited, || lab.database.holds(&audited));
}

/// An `nft` edit that assigns one peer's profile to another peer.
fn grant(lab: &Lab, from: &Client, to: &Client) -> String {
    let map = "inet gatepost peer4";
    let found = lab.gateway.run("nft", &[&format!("get element {map} {{ {} }}", from.address)]);
    let (_, profile) = found.split_once(" : ").unwrap();
    let profile = profile.split_whitespace().next().unwrap();
    let address = &to.address;
    format!("delete element {map} {{ {address} }}; add element {map} {{ {address} : {profile} }}")
}

/// Runs `nft`: its process id.
fn nft(lab: &Lab, edit: &str) -> u32 {
    let mut child = lab.gateway.spawn(Command::new("nft").arg(edit));
    assert!(child.wait().unwrap().success(), "{edit}");
    child.id()
}
