//! What an operator hears who asks why a packet does not arrive.

use std::fs;

use crate::lab::{LAN_SERVER, Lab, eventually, new_keys, peer_rows, policy_rows};

#[test]
fn explanation_names_groups_statuses_and_what_may_drop_on_the_way() {
    let lab = Lab::open();
    for (number, user) in ["alice", "bob", "carol"].into_iter().enumerate() {
        let key = new_keys().1;
        lab.database.exec(&peer_rows(user, &key, &format!("10.99.1.{number}")));
    }
    lab.database.exec(&policy_rows("racks", "bob", "10.20.0.0/24"));
    lab.database.exec(
        "insert into groups (name) values ('operators');
         insert into group_memberships (group_id, user_id)
             select groups.id, users.id from groups, users where username = 'bob';
         update policy_targets set target_type = 'group', target_id = (select id from groups);
         update devices set status = 'lost' where device_fingerprint = 'carol'",
    );
    let _agent = lab.start();
    let explained = |user: &str| {
        let (code, out, _) = lab.gatepost(&["explain", user, LAN_SERVER]);
        (code, out)
    };
    let tells = |user: &str, wanted: i32, part: &str| {
        let (code, out) = explained(user);
        assert!(code == wanted && out.contains(part), "{code}, {part}: {out}");
    };
    let to_others =
        "policy \"racks\" allows it (destination 10.20.0.0/24), but to group operators: ";
    tells("alice", 2, to_others);
    tells("bob", 0, "decided by policy \"racks\" (priority 100, allow, for group operators)");
    tells("bob", 0, "\nThe verdict is for the final destination.");
    let lost_device = "device not active (its status is lost)";
    tells("carol", 2, &format!("so nothing passes: {lost_device}\n"));
    let peers = lab.gatepost(&["peers", "--json"]).1;
    assert_eq!(peers.matches(lost_device).count(), 1, "{peers}");

    let lost = |part: &str| {
        let told = format!("but packets may be lost on this host: {part}");
        eventually(&told, || explained("bob").1.contains(&told));
        assert!(lab.gatepost(&["status"]).1.contains(part));
        assert!(lab.gatepost(&["check"]).1.contains(part));
    };
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    lab.gateway.run("nft", &["add", "table", "inet", "other"]);
    lab.gateway.run("nft", &["add", "chain", "inet", "other", "forward", chain]);
    lost("chain forward of table inet other drops traffic of peers");
    lab.gateway.within(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
    lab.gatepost(&["resync"]);
    lost("IPv4 forwarding is off");
}

#[test]
fn chain_of_legacy_iptables_that_drops_is_found() {
    let lab = Lab::open();
    let found = || lab.gatepost(&["check"]).1;
    let drops = "chain FORWARD of iptables-legacy table filter drops traffic of peers";
    assert!(!found().contains(drops));
    let _agent = lab.start();
    let noted =
        "iptables-legacy has tables, and their rules may drop packets of peers: `gatepost check`";
    let status = || lab.gatepost(&["status"]).1;
    assert!(!status().contains(noted));
    lab.gateway.run("iptables-legacy", &["-P", "FORWARD", "DROP"]);
    eventually("status notes that there are such rules", || {
        lab.gatepost(&["resync"]);
        status().contains(noted)
    });
    let told = found();
    let remedy = format!("iptables-legacy -t filter -I FORWARD -i {} -j ACCEPT", lab.link());
    assert!(told.contains(drops) && told.contains(&remedy), "{told}");
    for direction in ["-i", "-o"] {
        let link = lab.link();
        let accept = ["-I", "FORWARD", direction, &link, "-j", "ACCEPT"];
        lab.gateway.run("iptables-legacy", &accept);
    }
    assert!(!found().contains(drops));
}

#[test]
fn devices_of_a_user_are_told_their_statuses_however_many_there_are() {
    const DEVICES: usize = 1_200;
    // Of the list of all peers.
    const NAMED: usize = 1_000;
    let lab = Lab::open();
    lab.database.exec(&peer_rows("alice", &new_keys().1, "10.99.1.1"));
    lab.database.exec(&format!(
        "with lost as (
             insert into devices (user_id, name, platform, device_fingerprint, public_key, status)
                 select id, 'phone-' || n, 'linux', 'phone-' || n, 'key', 'lost'
                 from users, generate_series(1, {DEVICES}) as n
                 returning id, name
         )
         insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
             select lost.id, gateways.id, lost.name, '10.99.2.1' from lost, gateways"
    ));
    let _agent = lab.start();
    let told = |arguments: &[&str]| {
        let (code, out, err) = lab.gatepost(arguments);
        assert_eq!(code, 0, "{err}");
        let peers: serde_json::Value = serde_json::from_str(&out).unwrap();
        (peers.as_array().unwrap().len(), out.matches("(its status is lost)").count())
    };
    assert_eq!(told(&["peers", "--json"]), (DEVICES + 1, NAMED));
    assert_eq!(told(&["peers", "--user", "ALICE", "--json"]), (DEVICES + 1, DEVICES));
    let (code, _, err) = lab.gatepost(&["peers", "--user", "bob", "--json"]);
    assert!(code == 1 && err.contains("\"bob\""), "{err}");
}
