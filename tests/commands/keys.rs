use std::fs;

use crate::gatepost::{Gatepost, mode};

const SECRET: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
const PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

#[test]
fn generate_creates_the_configured_key_once() {
    let gatepost = Gatepost::with("[gateway]\nprivate_key_file = \"my.key\"");
    let made = gatepost.run(&["key", "generate"]).must_exit(0);
    assert_eq!(mode(&gatepost.path("my.key")), 0o600);
    let text = fs::read_to_string(gatepost.path("my.key")).unwrap();
    assert!(!made.stdout.contains(text.trim()), "the private key must not be printed");
    assert_eq!(gatepost.run(&["key", "public"]).must_exit(0).stdout, made.stdout);

    let again = gatepost.run(&["key", "generate"]).must_exit(1);
    assert_eq!(
        again.error(&gatepost),
        "gatepost: my.key already exists, and a new key would lock out every client; to replace it, \
         remove it first\n"
    );
    assert_eq!(fs::read_to_string(gatepost.path("my.key")).unwrap(), text);
}

#[test]
fn wg_agrees_on_the_public_key() {
    let gatepost = Gatepost::with("");
    let made = gatepost.run(&["key", "generate", "wg.key"]).must_exit(0);
    let secret = fs::File::open(gatepost.path("wg.key")).unwrap();
    let wg = std::process::Command::new("wg").arg("pubkey").stdin(secret).output().unwrap();
    assert_eq!(made.stdout, String::from_utf8(wg.stdout).unwrap());
}

#[test]
fn public_reads_standard_input() {
    let gatepost = Gatepost::with("");
    let printed = gatepost.run_with_input(&["key", "public", "-"], SECRET).must_exit(0);
    assert_eq!(printed.stdout, format!("{PUBLIC}\n"));
    let wrong = gatepost.run_with_input(&["key", "public", "-"], "c2VjcmV0").must_exit(1);
    assert_eq!(
        wrong.stderr,
        "gatepost: the private key on standard input is 6 bytes of base64, not 32\n"
    );
}

#[test]
fn envelope_opens_only_for_its_peer() {
    let gatepost = Gatepost::with("[gateway]\npsk_keys_file = \"psk.keys\"");
    gatepost.write("psk.keys", "k1 gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=\n");
    let ids = ["--gateway", "11111111-2222-4333-8444-555555555555", "--peer", PUBLIC];
    let seal = [&["psk", "seal"], ids.as_slice()].concat();
    let envelope = gatepost.run_with_input(&seal, SECRET).must_exit(0).stdout;
    assert!(envelope.starts_with("gp1.k1."), "{envelope}");
    let open = [&["psk", "open"], ids.as_slice()].concat();
    let opened = gatepost.run_with_input(&open, &envelope).must_exit(0);
    assert_eq!(opened.stdout, format!("{SECRET}\n"));

    let other = ["psk", "open", "--gateway", ids[1], "--peer", SECRET];
    let refused = gatepost.run_with_input(&other, &envelope).must_exit(1);
    assert_eq!(refused.stdout, "");
    assert!(refused.stderr.contains("k1"), "{}", refused.stderr);

    let wrong = gatepost.run_with_input(&open, "no envelope").must_exit(1);
    let error = "gatepost: the text on standard input is not an envelope of the form gp1.<key-id>.<base64url>\n";
    assert_eq!(wrong.stderr, error);

    let none = Gatepost::with("").run_with_input(&seal, SECRET).must_exit(1);
    assert!(none.stderr.contains("gateway.psk_keys_file"), "{}", none.stderr);
}
