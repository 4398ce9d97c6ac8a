use crate::gatepost::Gatepost;

#[test]
fn wrong_configuration_is_a_finding_with_exit_78() {
    let gatepost = Gatepost::with("[sync]\nmode = \"push\"");
    let done = gatepost.run(&["check"]).must_exit(78);
    assert!(done.stdout.starts_with("wrong   config     "), "{}", done.stdout);
    assert!(
        done.stdout.contains("`sync.mode` is \"push\"; expected one of: auto, listen, hints, poll")
    );
    assert!(done.stdout.ends_with("\n1 wrong, 0 warnings\n"), "{}", done.stdout);
    assert_eq!(done.stderr, "");
}

#[test]
fn json_lists_every_finding() {
    let gatepost = Gatepost::with(
        "[gateway]\nname = \"fra-1\"\n[database]\nurl = \"postgres://gw@127.0.0.1:1/vpn\"\ntls = \"disable\"",
    );
    let done = gatepost.run(&["check", "--json"]).must_exit(78);
    let findings: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).unwrap();
    let level = |subject: &str| {
        let found = findings.iter().find(|finding| finding["subject"] == subject);
        found.unwrap_or_else(|| panic!("no {subject} in {findings:#?}"))["level"].clone()
    };
    assert_eq!(level("config"), "ok");
    assert_eq!(level("key"), "wrong", "there is no key");
    assert_eq!(level("database"), "warning", "it is unreachable, which is no mistake");
    assert!(level("forwarding").is_string() && level("wireguard").is_string());
}

#[test]
fn secret_that_any_user_may_read_is_found() {
    let gatepost = Gatepost::with("[database]\npassword_file = \"db.password\"");
    gatepost.write("db.password", "hunter2");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(gatepost.path("db.password"), open).unwrap();
    let done = gatepost.run(&["check"]).must_exit(78);
    assert!(done.stdout.contains("db.password is open to every user (mode 0644): chmod o= "));
    assert!(!done.stdout.contains("hunter2"));
}
