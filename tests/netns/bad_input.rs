//! Bad input causes one clear message. Everything else goes on, and the kernel loses nothing.

use std::fs;
use std::net::UdpSocket;

use nix::sys::signal::Signal;

use crate::lab::{
    BINARY, Fault, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, LISTEN_PORT, Lab, eventually, new_keys,
    peer_rows, policy_rows,
};

#[test]
fn bad_rows_are_quarantined_and_the_others_served() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    let _agent = lab.start();
    lab.database.exec(&alice.rows());
    alice.connect();
    let pings = alice.ping(GATEWAY_TUNNEL, 50);

    let key = || new_keys().1;
    let zero = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let cases = [
        ("short", "AAAA".to_owned(), "10.99.1.1", "AAAA"),
        ("text", "not base64 at all".to_owned(), "10.99.1.2", "not base64 at all"),
        ("zero", zero.to_owned(), "10.99.1.3", "public_key"),
        ("own", lab.gateway_key.clone(), "10.99.1.4", "gateway's own"),
        ("twin", key(), alice.address.as_str(), alice.address.as_str()),
        ("outside", key(), "10.98.0.5", "outside"),
        ("gateway", key(), GATEWAY_TUNNEL, GATEWAY_TUNNEL),
        ("network", key(), "10.99.0.0", "network address"),
        ("broadcast", key(), "10.99.255.255", "broadcast address"),
    ];
    for (name, key, address, _) in &cases {
        lab.database.exec(&peer_rows(name, key, address));
    }
    let quarantined = || lab.status()["peers"]["quarantined"].as_u64();
    eventually("every bad row is quarantined", || quarantined() == Some(cases.len() as u64));
    let status = lab.status();
    for (name, _, _, part) in &cases {
        let list = status["quarantined"].as_array().unwrap();
        let entry = list
            .iter()
            .find(|entry| entry["user"] == *name)
            .unwrap_or_else(|| panic!("{name}: {status}"));
        let reason = entry["reason"].as_str().unwrap();
        assert!(reason.contains(part), "{name}: {reason}");
        let audited = format!(
            "exists (select from audit_logs where event_type = 'peer.quarantined' and message like '%{name}%')"
        );
        eventually(&audited, || lab.database.holds(&audited));
    }
    assert_eq!(lab.kernel_peers(), [alice.key.as_str()]);
    pings.await_answers(5);
    assert_eq!(pings.end().lost, 0);

    let moved = |from: &str, to: &str| {
        format!("update wireguard_peers set assigned_ip = '{to}' where assigned_ip = '{from}'")
    };
    lab.database.exec(&moved("10.98.0.5", "10.99.1.5"));
    eventually("a corrected row is served", || lab.kernel_peers().len() == 2);
    let told = |times: u8| {
        format!(
            "(select count(*) filter (where event_type = 'peer.quarantined') = {times}
                 and count(*) filter (where event_type = 'peer.released') = 1
             from audit_logs where message like 'outside%')"
        )
    };
    eventually("which is told", || lab.database.holds(&told(1)));
    lab.database.exec(&moved("10.99.1.5", "10.98.0.5"));
    eventually("and that it is out again, with the same words", || lab.database.holds(&told(2)));
}

/// Names with control characters that would forge log lines or colour a terminal.
#[test]
fn names_with_control_characters_stay_on_one_line() {
    const FORGED: &str = "allow 10.20.0.10";
    let lab = Lab::open();
    let alice = lab.client("alice");
    let _agent = lab.start();
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    lab.database.exec(&format!(
        "update devices set name = E'laptop\\n{FORGED}\\x1b[31m';
         update policies set name = E'office\\n{FORGED}' || repeat('x', 1000), effect = 'deny';
         update wireguard_peers set assigned_ip = '10.98.0.5'"
    ));
    eventually("it is left out", || lab.status()["peers"]["quarantined"] == 1);
    let (code, explained, _) = lab.gatepost(&["explain", "alice", "10.20.0.10"]);
    assert_eq!(code, 2, "{explained}");
    let [planned, status, peers] = ["plan", "status", "peers"].map(|command| {
        let (code, out, err) = lab.gatepost(&[command]);
        assert_eq!(code, 0, "{command}: {out}{err}");
        out
    });
    let log = lab.log();
    assert!(log.contains("laptop\\n") && explained.contains("laptop\\n"), "{explained}{log}");
    for text in [explained, planned, status, peers, log] {
        assert!(!text.lines().any(|line| line.trim_start().starts_with(FORGED)), "{text}");
        assert!(!text.contains("\x1b[31m") && !text.contains(&"x".repeat(100)), "{text}");
    }
}

#[test]
fn bad_policy_affects_only_itself_and_is_reported_once() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    let agent = lab.start();
    lab.database.exec(&alice.rows());
    alice.connect();
    lab.database.exec(&policy_rows("good", "alice", &format!("{LAN_OTHER}/32")));
    lab.database.exec(&policy_rows("overruled", "alice", &format!("{LAN_SERVER}/32")));
    eventually("both pass", || alice.reaches(LAN_OTHER) && alice.reaches(LAN_SERVER));

    for name in ["void", "long", "dangling", "aimless", "odd"] {
        lab.database.exec(&policy_rows(name, "alice", &format!("{LAN_SERVER}/32")));
    }
    // Valid, but without effect: Alice has no address of this family.
    lab.database.exec(&policy_rows("other family", "alice", "fd20::/64"));
    let of = |name: &str| format!("policy_id = (select id from policies where name = '{name}')");
    lab.database.exec(&format!(
        "delete from policy_destinations where {void} or {long};
         update policy_targets set target_id = gen_random_uuid() where {dangling};
         update policy_targets set target_type = 'team' where {aimless};
         update policies set effect = 'permit', priority = 50 where name = 'odd';
         update policies set name = E'long\\n' || repeat('x', 1000) where name = 'long'",
        void = of("void"),
        long = of("long"),
        dangling = of("dangling"),
        aimless = of("aimless"),
    ));
    let told = ["\"void\"", "\"long\\nxxx", "\"dangling\"", "\"aimless\"", "\"odd\""];
    let all_told = || {
        let status = lab.status();
        let warnings = status["warnings"].as_array().unwrap();
        let names = |warning: &serde_json::Value, name: &str| {
            let text = warning.as_str().unwrap();
            assert!(text.len() < 300 && text.lines().count() == 1, "{text}");
            text.contains(name)
        };
        assert!(warnings.len() <= told.len(), "{status}");
        told.iter().all(|name| warnings.iter().any(|warning| names(warning, name)))
    };
    eventually("each is warned of", all_told);
    eventually("an unknown effect denies", || !alice.reaches(LAN_SERVER));
    eventually("the good one passes", || alice.reaches(LAN_OTHER));

    let rows = || {
        lab.database.column(
            "select count(*) from audit_logs where event_type = 'policy.ignored' group by entity_id",
        )
    };
    eventually("each has its row", || rows() == ["1"; 5]);
    agent.end(Signal::SIGKILL);
    let _agent = lab.start();
    eventually("each is warned of again", all_told);
    // Audit rows are written in the order of the events.
    lab.database.exec(&alice.revocation());
    let later = "exists (select from audit_logs where event_type = 'peer.revoked')";
    eventually(later, || lab.database.holds(later));
    assert_eq!(rows(), ["1"; 5], "told again");
}

#[test]
fn policy_of_100_000_destinations_is_applied_and_logged_briefly() {
    const LONGEST_LINE_CHARS: usize = 1_000;
    let lab = Lab::open();
    let alice = lab.client("alice");
    let mut agent = lab.start();
    lab.database.exec(&alice.rows());
    alice.connect();
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_SERVER}/32")));
    lab.database.exec(
        "insert into policy_destinations (policy_id, destination)
             select id, (inet '10.20.0.0' + 2 * n)::cidr
             from policies, generate_series(6, 100004) as n",
    );
    eventually("the policy is applied", || alice.reaches(LAN_OTHER) && alice.reaches(LAN_SERVER));
    let (code, explained, _) = lab.gatepost(&["explain", "alice", "10.20.0.201"]);
    assert_eq!(code, 2, "{explained}");
    let (code, explained, _) = lab.gatepost(&["explain", "alice", LAN_OTHER]);
    assert_eq!(code, 0, "{explained}");

    lab.database.exec("update policies set effect = 'deny'");
    eventually("the policy denies", || !alice.reaches(LAN_OTHER));
    agent.signal(Signal::SIGSTOP);
    lab.database.exec("update policies set effect = 'allow'");
    let (code, planned, _) = lab.gatepost(&["plan"]);
    assert_eq!(code, 2, "{planned}");
    assert!(planned.contains("99994 more ranges by policy \"office\""), "{planned}");
    agent.signal(Signal::SIGCONT);
    assert!(agent.is_running());

    let (_, status, _) = lab.gatepost(&["status"]);
    let (_, peers, _) = lab.gatepost(&["peers"]);
    for text in [explained, planned, status, peers, lab.log()] {
        let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(longest.chars().count() < LONGEST_LINE_CHARS, "{longest}");
        assert!(text.lines().count() < 100, "{text}");
    }
    let short = format!(
        "not exists (select from audit_logs
            where length(message) + length(metadata::text) >= {LONGEST_LINE_CHARS})"
    );
    assert!(lab.database.holds(&short), "an audit row goes on and on");
}

#[test]
fn deny_beyond_its_limit_denies_everything_until_it_is_within_it() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    let _agent = lab.start();
    lab.database.exec(&alice.rows());
    alice.connect();
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_SERVER}/32")));
    lab.database.exec(&policy_rows("listed", "alice", &format!("{LAN_OTHER}/32")));
    eventually("both pass", || alice.reaches(LAN_OTHER) && alice.reaches(LAN_SERVER));

    let change = |effect: &str, destinations: &str| {
        lab.database.exec(&format!(
            "update policies set effect = '{effect}', priority = 50 where name = 'listed'; {destinations}"
        ));
    };
    let one_more = "insert into policy_destinations (policy_id, destination)
        select id, '10.30.0.0/32' from policies where name = 'listed'";
    let one_less = "delete from policy_destinations where destination = '10.30.0.0/32'";
    let told = |therefore: &str| lab.status()["warnings"].to_string().contains(therefore);
    // With what it has, as many as may be.
    change(
        "deny",
        "insert into policy_destinations (policy_id, destination)
             select id, (inet '10.30.0.0' + 2 * n)::cidr
             from policies, generate_series(1, 199999) as n where name = 'listed'",
    );
    eventually("it denies", || !alice.reaches(LAN_OTHER));
    alice.must_reach(LAN_SERVER, "it denies no other address");
    change("deny", one_more);
    eventually("it denies every address", || {
        !alice.reaches(LAN_SERVER) && told("so it denies every address")
    });
    change("deny", one_less);
    eventually("it is read again", || alice.reaches(LAN_SERVER) && !told("the limit is"));
    assert!(!alice.reaches(LAN_OTHER));

    change("allow", "");
    eventually("it allows", || alice.reaches(LAN_OTHER));
    change("allow", one_more);
    eventually("it allows nothing", || !alice.reaches(LAN_OTHER) && told("so it allows nothing"));
    alice.must_reach(LAN_SERVER, "it takes nothing away");
}

#[test]
fn an_unknown_key_in_the_configuration_is_named() {
    let lab = Lab::open();
    lab.write_config("[guard]\nmax_removed_peer = \"50%\"\n");
    for command in ["run", "check"] {
        let (code, out, err) = lab.gatepost(&[command]);
        let told = out + &err;
        assert_eq!(code, 78, "{command}: {told}");
        assert!(
            told.contains("max_removed_peer") && told.contains("max_removed_peers"),
            "{command}: {told}"
        );
    }
}

#[test]
fn a_wrong_private_key_leaves_the_kernel_alone() {
    let lab = Lab::open();
    let (other, its_public_key) = new_keys();
    fs::write(lab.folder.path().join("private.key"), &other).unwrap();
    let (code, out, err) = lab.gatepost(&["check"]);
    assert_eq!(code, 78, "{out}{err}");
    let told = format!("{out}{err}");
    assert!(told.contains(&lab.gateway_key) && told.contains(&its_public_key), "{told}");

    let mut agent = lab.launch(BINARY.as_ref());
    eventually("the agent says why it is not ready", || {
        let (code, out, _) = lab.gatepost(&["status"]);
        code == 3 && out.contains(&lab.gateway_key)
    });
    assert!(
        !lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success(),
        "it made a link"
    );
    assert!(agent.is_running());
    Fault::told(
        &lab,
        "private key of another gateway",
        "the kernel is left alone; not ready, with both keys",
        None,
    );
}

#[test]
fn each_trouble_with_the_database_names_its_way_out() {
    let lab = Lab::open();
    let unready = |config: &str, parts: &[&str]| {
        fs::write(lab.config(), config).unwrap();
        let agent = lab.launch(BINARY.as_ref());
        eventually(&format!("the agent tells of {parts:?}"), || {
            let (code, out, _) = lab.gatepost(&["status"]);
            code == 3 && parts.iter().all(|part| out.contains(part) || lab.log().contains(part))
        });
        drop(agent);
    };
    let config = fs::read_to_string(lab.config()).unwrap();
    let database = lab.database.name();
    let empty = lab.database.empty();
    unready(
        &config.replace(&format!("/{database}\""), &format!("/{empty}\"")),
        &["gatepost migrate"],
    );
    unready(&config.replace("%2Fpostgres/", "%2Fnowhere/"), &["nowhere"]);
    lab.database.exec(&format!(
        "create role {}_unbound login password 'a-gateways-password'",
        lab.database.role()
    ));
    unready(
        &config.replace("_gateway@", "_gateway_unbound@"),
        &["gatepost grant", "_gateway_unbound"],
    );
    assert!(!lab.gateway.output("ip", &["link", "show", &lab.link()]).status.success());
}

#[test]
fn a_listen_port_in_use_is_named_and_taken_when_it_is_free() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    let holder = lab.gateway.within(|| UdpSocket::bind(("0.0.0.0", LISTEN_PORT)).unwrap());
    let _agent = lab.launch(BINARY.as_ref());
    let port = LISTEN_PORT.to_string();
    eventually("the agent names the port", || {
        lab.gatepost(&["status"]).1.contains(&port) && lab.log().contains(&port)
    });
    assert_ne!(lab.gatepost(&["status"]).0, 0, "ready without a port");
    drop(holder);
    alice.connect();
    lab.await_ready();
    Fault::told_lasting(&lab, "listen port taken at the start", "named; taken when it is free");
}

#[test]
fn a_foreign_interface_of_our_name_is_left_alone() {
    let lab = Lab::open();
    lab.gateway.run("ip", &["link", "add", &lab.link(), "type", "bridge"]);
    let _agent = lab.launch(BINARY.as_ref());
    eventually("the agent names the interface", || {
        let (code, out, _) = lab.gatepost(&["status"]);
        code == 3 && out.contains(&lab.link()) && lab.log().contains(&lab.link())
    });
    let details = lab.gateway.run("ip", &["-d", "link", "show", &lab.link()]);
    assert!(details.contains("bridge") && !details.contains("gatepost:"), "{details}");
    Fault::told_lasting(
        &lab,
        "link of another program has our name at the start",
        "left alone and named; not ready",
    );
}
