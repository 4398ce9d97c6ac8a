//! `gatepost bundle`: everything that support asks for, and no secret.

use std::fs;

use gatepost::model::PrivateKey;

use crate::documents::Site;
use crate::gatepost::mode;

const SEALING: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

#[test]
fn bundle_has_every_section_and_no_secret() {
    let site = Site::new();
    let config = fs::read_to_string(site.gatepost.path("gatepost.toml")).unwrap();
    let with_password =
        config.replacen(&format!("{}@", site.role), &format!("{}:in-the-url@", site.role), 1);
    assert_ne!(with_password, config);
    site.gatepost.write("gatepost.toml", &with_password);
    site.gatepost.write("psk.keys", &format!("k1 {SEALING}\n"));
    site.gatepost.write("db.password", "in-the-file\n");
    // In the place of systemd's, with a line that should not be there.
    let private = fs::read_to_string(site.gatepost.path("private.key")).unwrap();
    site.gatepost
        .write("journalctl", &format!("#!/bin/sh\necho 'agent: {} in-the-file'\n", private.trim()));
    let script = "chmod 755 journalctl; PATH=.:$PATH gatepost bundle support.txt";
    let run = || -> crate::gatepost::Done { site.gatepost.shell(script).output().unwrap().into() };
    let done = run().must_exit(0);
    assert!(done.stdout.starts_with("wrote support.txt: it has no keys"), "{}", done.stdout);
    assert_eq!(mode(&site.gatepost.path("support.txt")), 0o600);

    let text = fs::read_to_string(site.gatepost.path("support.txt")).unwrap();
    let key: PrivateKey = private.trim().parse().unwrap();
    let hex: String = key.expose_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in [private.trim(), &hex, SEALING, "in-the-file", "in-the-url"] {
        assert!(!text.contains(secret), "{secret}:\n{text}");
    }
    for part in [
        "==> versions\ngatepost ",
        "==> configuration\n",
        ":[secret]@",
        "name = \"fra-1\"",
        "==> status\n(not available: no agent",
        "==> check\n",
        &format!("key        {}", key.public_key()),
        "==> plan\n",
        "==> journal\nagent: [secret] [secret]\n",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let again = run().must_exit(1).stderr;
    assert!(again.contains("support.txt already exists: name a new file"), "{again}");
}

#[test]
fn bundle_of_a_configuration_that_cannot_be_loaded_has_no_secret() {
    let site = Site::new();
    site.gatepost.write(
        "gatepost.toml",
        "[gateway]\nname = \"fra-1\"\n[database]\nurl = \"postgres://gw:in/the-url@db/vpn\"\n\
         password = 'in-the-line'\n",
    );
    site.gatepost.write("psk.keys", &format!("k1 {SEALING}\n"));
    site.gatepost.write("hints.login", "fra-1:in-the-login\n");
    let private = fs::read_to_string(site.gatepost.path("private.key")).unwrap();
    let said = format!("{} {SEALING} in-the-login", private.trim());
    site.gatepost.write("journalctl", &format!("#!/bin/sh\necho 'agent: {said}'\n"));
    let script = "chmod 755 journalctl; PATH=.:$PATH gatepost bundle support.txt";
    let run = site.gatepost.shell(script).output().unwrap();
    let done = crate::gatepost::Done::from(run).must_exit(0);
    assert!(!done.stdout.contains("no passwords"), "{}", done.stdout);
    assert!(done.stdout.contains("could not be loaded"), "{}", done.stdout);

    let text = fs::read_to_string(site.gatepost.path("support.txt")).unwrap();
    for secret in [private.trim(), SEALING, "the-url", "in-the-line", "in-the-login"] {
        assert!(!text.contains(secret), "{secret}:\n{text}");
    }
    for part in [
        "url = \"postgres://gw:[secret]@db/vpn\"\npassword = [secret]\n",
        "==> journal\nagent: [secret] [secret] [secret]\n",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}
