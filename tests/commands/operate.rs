//! docs/operate.md: its commands run, and its runbook knows every entry of the journal.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::documents::{Site, blocks, root};
use crate::gatepost::mode;
use crate::postgres::Cluster;

/// Runs a block as its reader does, but for the names of the example. Nothing runs here that `systemctl`
/// could restart.
fn run(site: &Site, language: &str, block: &str) -> String {
    let owner_url = Cluster::shared().socket_url("postgres", &site.database);
    let block = block
        .replace("gatepost_fra_1", &site.role)
        .replace("--file=vpn.dump vpn", "--file=vpn.dump \"$PGDATABASE\"");
    match language {
        "sh" if block.starts_with("owner=") => String::new(),
        "sh" => {
            let before = format!("owner='--database-url {owner_url}'\nsystemctl() {{ :; }}\n");
            site.run("sh", &format!("{before}{block}"))
        }
        _ => site.run(language, &block),
    }
}

#[test]
fn the_commands_of_the_operators_page_run() {
    let site = Site::new();
    let text = |name: &str| fs::read_to_string(site.gatepost.path(name)).unwrap();
    let key = || site.psql("select public_key from gateways where name = 'fra-1'");
    let verifier =
        || site.psql(&format!("select rolpassword from pg_authid where rolname = '{}'", site.role));
    let public = || site.gatepost.run(&["key", "public"]).must_exit(0).stdout.trim().to_owned();
    site.gatepost.write("psk.keys", "k1 gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=\n");
    site.gatepost.write("db.password", "former\n");
    // As the group of the agent's user reads them.
    for name in ["psk.keys", "db.password"] {
        fs::set_permissions(site.gatepost.path(name), Permissions::from_mode(0o640)).unwrap();
    }
    let (former_key, former_verifier) = (key(), verifier());
    let mut ran = 0;
    for (heading, blocks) in blocks("docs/operate.md") {
        for (number, (language, block)) in (1..).zip(blocks) {
            let printed = run(&site, &language, &block);
            ran += 1;
            match (heading.as_str(), number) {
                ("Upgrade", 1) => assert!(printed.contains("up to date"), "{printed}"),
                ("Back up and restore", 1) => {
                    let sizes = ["vpn.dump", "gatepost-fra-1.tar.gz"]
                        .map(|name| fs::metadata(site.gatepost.path(name)).unwrap().len());
                    assert!(sizes[0] > 10_000 && sizes[1] > 100, "{sizes:?}");
                    // The dump has the hashes of users' passwords.
                    assert_eq!(mode(&site.gatepost.path("vpn.dump")), 0o600);
                }
                ("Back up and restore", 2) => assert!(printed.contains("is bound"), "{printed}"),
                ("Replace a gateway's key", 1) => {
                    assert!(key() != former_key && key() == public(), "{printed}");
                    assert_eq!(mode(&site.gatepost.path("private.key")), 0o600);
                }
                ("Replace the sealing keys", 1) => {
                    let keys = text("psk.keys");
                    let ids = keys.lines().map(|line| line.split(' ').next().unwrap());
                    assert_eq!(ids.collect::<Vec<_>>(), ["k2", "k1"]);
                    assert_eq!(mode(&site.gatepost.path("psk.keys")), 0o640);
                }
                ("Replace the sealing keys", 2) => {
                    assert!(printed.contains("(0 rows)"), "{printed}")
                }
                ("Replace the password of a gateway's role", 1) => {
                    assert_ne!(text("db.password"), "former\n");
                    assert_eq!(mode(&site.gatepost.path("db.password")), 0o640);
                    assert!(verifier() != former_verifier && verifier().starts_with("SCRAM"));
                }
                ("Add a gateway, move a device, take a gateway out", 1) => {
                    assert_eq!(
                        site.psql("select is_active from gateways where name = 'fra-1'"),
                        "f"
                    );
                }
                ("What is wrong?", 1) => assert!(printed.contains("database"), "{printed}"),
                other => panic!("nothing looks at the result of {other:?}"),
            }
        }
    }
    assert_eq!(ran, 9, "blocks of docs/operate.md after its first");
}

#[test]
fn the_runbook_knows_every_entry_of_the_journal() {
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let (catalog, page) = (read("systemd/gatepost.catalog"), read("docs/operate.md"));
    let explained: Vec<_> = catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
    assert!(explained.len() > 10, "{explained:?}");
    for id in &explained {
        assert_eq!(page.matches(id).count(), 1, "entry {id}");
    }
    let is_id = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unknown = page.split('`').filter(is_id).filter(|id| !explained.contains(id));
    assert_eq!(unknown.collect::<Vec<_>>(), [""; 0]);
}
