//! A client comes up from what `gatepost profile` prints.

use std::fs;

use crate::lab::{GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn client_comes_up_from_the_printed_profile_and_routes_what_it_may_reach() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("server", "alice", &format!("{LAN_SERVER}/32")));
    let _agent = lab.start();
    let who = "alice/alice-laptop";
    let profile = |arguments: &[&str]| {
        let arguments = [&["profile", who], arguments].concat();
        let output = lab.admin_command(&arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let revision = || {
        lab.database.value("select profile_revision from wireguard_peers").parse::<i32>().unwrap()
    };
    let issued = "last_profile_issued_at is not null from wireguard_peers";
    assert!(!lab.database.holds(issued));

    // The device keeps its key, which no command knows.
    let text = profile(&[]);
    assert!(text.starts_with(&format!("# {who} on fra-1, revision 1\n")), "{text}");
    assert!(!text.contains("PrivateKey"), "{text}");
    assert!(
        text.contains(&format!("\nAllowedIPs = {LAN_SERVER}/32, {GATEWAY_TUNNEL}/32\n")),
        "{text}"
    );
    assert!(lab.database.holds(issued));
    assert_eq!(revision(), 1);
    assert_eq!(lab.database.value("select count(*) from gatepost.gateway_role"), "1");
    alice.use_profile(&text);
    eventually("the gateway answers", || alice.reaches(GATEWAY_TUNNEL));
    eventually("so does what the policy allows", || alice.reaches(LAN_SERVER));
    assert!(!alice.reaches(LAN_OTHER));

    // Its own key may be printed with the rest, and no other.
    let key_file = lab.folder.path().join("alice/private.key");
    let key_file = key_file.to_str().unwrap();
    let own = profile(&["--private-key-file", key_file]);
    let key = fs::read_to_string(key_file).unwrap();
    assert!(own.contains(&format!("\nPrivateKey = {}\n", key.trim())), "{own}");
    let gateways = lab.folder.path().join("private.key");
    let other = ["profile", who, "--private-key-file", gateways.to_str().unwrap()];
    let other = lab.admin_command(&other).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("the private key is that of"));
    assert_eq!(revision(), 2, "what is not printed is not issued");

    // A new key is in force at once, and the former refused.
    let renewed = profile(&["--new-key"]);
    eventually("the former key is refused", || !alice.reaches(GATEWAY_TUNNEL));
    alice.come_up(&renewed);
    eventually("the new one is not", || alice.reaches(GATEWAY_TUNNEL));
    let same = "d.public_key = p.public_key from devices d, wireguard_peers p";
    assert!(lab.database.holds(same));

    let json: serde_json::Value = serde_json::from_str(&profile(&["--json"])).unwrap();
    assert_eq!((&json["profile_revision"], &json["private_key"]), (&4.into(), &().into()));
    assert_eq!(json["assigned_ip"], alice.address);
    assert_eq!(json["allowed_ips"][0], format!("{LAN_SERVER}/32"));

    // The gateway's own role may not issue profiles.
    let (code, _, error) = lab.gatepost(&["profile", who]);
    assert_eq!(code, 1);
    assert!(error.contains("name an owner of the database with --database-url"), "{error}");
}
