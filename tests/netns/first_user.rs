//! The way of `docs/first-user.md`, with packets: from the scripts to the first ping, and beyond.

use std::fs;
use std::process::{Command, Output};

use crate::lab::{GATEWAY_TUNNEL, LAN_SERVER, Lab, eventually};

/// The packaged scripts.
const SCRIPTS: [(&str, &str); 5] = [
    ("checks.sql", include_str!("../../docs/sql/checks.sql")),
    ("free-address.sql", include_str!("../../docs/sql/free-address.sql")),
    ("add-device.sql", include_str!("../../docs/sql/add-device.sql")),
    ("client-config.sql", include_str!("../../docs/sql/client-config.sql")),
    ("rotate-key.sql", include_str!("../../docs/sql/rotate-key.sql")),
];

const PAGE: &str = include_str!("../../docs/first-user.md");

#[test]
fn device_added_by_the_scripts_connects_and_reaches_what_policies_allow() {
    let lab = Lab::open();
    for (name, script) in SCRIPTS {
        fs::write(lab.folder.path().join(name), script).unwrap();
    }
    let alice = lab.client("alice");
    let _agent = lab.start();
    let key = format!("key={}", alice.key);
    for (wrong, why) in [
        (["gateway=fra1", &key], "no gateway \"fra1\"; there are: fra-1"),
        (["gateway=fra-1", "key=laptop.pub"], "\"laptop.pub\" is no WireGuard public key"),
    ] {
        assert_refused(&lab, &wrong.map(|it| ["-v", it]).concat(), "add-device.sql", why);
    }
    let add = ["-v", "gateway=fra-1", "-v", &key];
    psql(&lab, &add, "add-device.sql");
    assert_refused(&lab, &add, "add-device.sql", "device \"alice/laptop\" is there already");
    let typo = ["-At", "-v", "user=alise"];
    assert_refused(&lab, &typo, "client-config.sql", "no device \"alise/laptop\"");
    let profile = psql(&lab, &["-At"], "client-config.sql");
    assert!(profile.contains("\nAllowedIPs = 10.99.0.0/16\n"), "{profile}");
    alice.use_profile(&profile);
    eventually("the first ping is answered", || alice.reaches(GATEWAY_TUNNEL));

    lab.database.exec(block("Allow a network"));
    let profile = psql(&lab, &["-At"], "client-config.sql");
    alice.use_profile(&profile);
    eventually("the network that a policy allows is reached", || alice.reaches(LAN_SERVER));

    psql(&lab, &["-v", &format!("key={}", lab.client("other").key)], "rotate-key.sql");
    eventually("the old key is refused", || !alice.reaches(GATEWAY_TUNNEL));
    eventually("the journal tells of a key", || lab.log().contains("key replaced: alice/laptop"));
    assert!(!lab.log().contains("revoked: "), "{}", lab.log());
}

/// Runs a script for alice's laptop as the database's owner, and returns what it prints.
fn psql(lab: &Lab, arguments: &[&str], script: &str) -> String {
    let output = run(lab, arguments, script);
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn assert_refused(lab: &Lab, arguments: &[&str], script: &str, why: &str) {
    let Output { status, stdout, stderr } = run(lab, arguments, script);
    let said = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && stdout.is_empty() && said.contains(why), "{script}: {said}");
}

fn run(lab: &Lab, arguments: &[&str], script: &str) -> Output {
    Command::new("psql")
        .args(["-X", "-v", "user=alice", "-v", "device=laptop"])
        .args(arguments)
        .arg("-f")
        .arg(lab.folder.path().join(script))
        .env("PGHOST", lab.database.address().ip().to_string())
        .env("PGPORT", lab.database.address().port().to_string())
        .env("PGUSER", "postgres")
        .env("PGPASSWORD", lab.database.admin_password())
        .env("PGDATABASE", lab.database.name())
        .output()
        .unwrap()
}

/// The SQL of a section.
fn block(section: &str) -> &'static str {
    let (_, body) = PAGE.split_once(&format!("\n## {section}\n")).unwrap();
    let (_, block) = body.split_once("```sql\n").unwrap();
    block.split("```").next().unwrap()
}
