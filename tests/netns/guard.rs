//! The guard: what it never holds back, and what held peers lose.

use crate::lab::{LAN_SERVER, Lab, eventually, new_keys, peer_rows, policy_rows};

const OTHERS: usize = 14;

#[test]
fn revoked_devices_lose_access_at_once_and_a_deny_all_narrows_held_peers() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    for number in 0..OTHERS {
        let key = new_keys().1;
        let rows = peer_rows(&format!("other{number}"), &key, &format!("10.99.1.{number}"));
        lab.database.exec(&rows);
    }
    let _agent = lab.start();
    alice.connect();
    bob.connect();
    assert_eq!(lab.kernel_peers().len(), 2 + OTHERS);
    let others = bob.ping(LAN_SERVER, 20);

    // More than ten, and more than half.
    lab.database.exec(
        "update devices set status = 'revoked' where device_fingerprint not in ('bob', 'other0')",
    );
    eventually("the revoked peers are gone", || lab.kernel_peers().len() == 2);
    assert!(!alice.reaches(LAN_SERVER));
    assert!(lab.status()["held_back"].is_null());
    lab.database.exec("update devices set status = 'active'");
    eventually("they are back", || lab.kernel_peers().len() == 2 + OTHERS);
    alice.connect();

    lab.database.exec("update users set is_active = false where username not in ('bob', 'other0')");
    let held = || lab.status()["held_back"]["removals"].as_u64();
    eventually("the removals are held back", || held() == Some(OTHERS as u64));
    alice.must_reach(LAN_SERVER, "a held peer keeps what it has");
    // Figures are those of the last reading, which a comparison brings.
    lab.gatepost(&["resync"]);
    let (code, peers, _) = lab.gatepost(&["peers", "--json"]);
    let peers: serde_json::Value = serde_json::from_str(&peers).unwrap();
    let shown = peers.as_array().unwrap().iter().find(|peer| peer["user"] == "alice").unwrap();
    assert_eq!((code, &shown["state"]), (0, &"held".into()), "{shown}");
    assert!(shown["rx_bytes"].as_u64() > Some(0), "{shown}");
    lab.database.exec(&format!(
        "{}; update policies set effect = 'deny', priority = 0 where name = 'lockdown'",
        policy_rows("lockdown", "alice", "0.0.0.0/0")
    ));
    eventually("the policy narrows it", || !alice.reaches(LAN_SERVER));
    assert_eq!(lab.kernel_peers().len(), 2 + OTHERS);

    let (code, out, err) = lab.gatepost(&["confirm"]);
    assert_eq!(code, 1, "nobody can be asked: {out}{err}");
    assert!(out.contains("alice") && err.contains("--yes"), "{out}{err}");
    assert_eq!(held(), Some(OTHERS as u64));
    let (code, out, err) = lab.gatepost(&["confirm", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    eventually("the held peers are gone", || lab.kernel_peers().len() == 2);
    others.await_answers(5);
    assert_eq!(others.end().lost, 0, "another peer lost packets");
}
