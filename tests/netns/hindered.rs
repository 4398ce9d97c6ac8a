//! Withdrawals act although the whole cannot be planned.

use crate::lab::{Fault, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows};

#[test]
fn revoked_and_narrowed_peers_lose_their_packets_whatever_stands_in_the_way() {
    let lab = Lab::open();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
    }
    let _agent = lab.start();
    let link = lab.link();
    let alias = |alias: &str| drop(lab.gateway.run("ip", &["link", "set", &link, "alias", alias]));
    let shown = lab.gateway.run("ip", &["link", "show", &link]);
    let ours = shown.split_once("alias ").unwrap().1.trim().to_owned();
    let sql = |sql: &str| lab.database.exec(sql);
    sql("create table right_row as select * from gateways");
    let spoil = |change: &str| sql(&format!("update gateways set {change}"));
    let right = "listen_port = r.listen_port, public_key = r.public_key, vpn_cidr = r.vpn_cidr from right_row r";
    let obstacles: [(&str, &dyn Fn()); 4] = [
        ("a wrong port", &|| spoil("listen_port = 0")),
        ("a wrong key", &|| spoil("public_key = 'no key'")),
        ("a network without room", &|| spoil("vpn_cidr = '10.99.0.0/32'")),
        ("another gateway's alias", &|| alias("gatepost:6f1c2b0e-0000-4000-8000-000000000001")),
    ];
    for (what, hinder) in obstacles {
        alice.connect();
        bob.connect();
        eventually(what, || alice.reaches(LAN_SERVER) && bob.reaches(LAN_OTHER));
        hinder();
        eventually(what, || lab.status()["state"] == "not_ready");
        let others = bob.ping(LAN_SERVER, 20);
        sql(&alice.revocation());
        sql("update policy_destinations set destination = '10.20.0.10/32'
             where policy_id = (select id from policies where name = 'bob')");
        eventually(what, || lab.kernel_peers() == [bob.key.as_str()]);
        assert!(!alice.reaches(LAN_SERVER), "{what}");
        eventually(what, || !bob.reaches(LAN_OTHER));
        others.await_answers(5);
        let pinged = others.end();
        assert_eq!(pinged.lost, 0, "{what}: another peer lost packets");
        let fault = format!("{what}, while a revocation and a narrowed policy are committed");
        Fault::told(&lab, &fault, "withdrawals act; nothing is granted", pinged);
        sql("update devices set status = 'active', revoked_at = null");
        sql("update policy_destinations set destination = '10.20.0.0/24'");
        assert!(!bob.reaches(LAN_OTHER), "{what}: nothing is granted");
        spoil(right);
        alias(&ours);
        lab.await_ready();
    }
}
