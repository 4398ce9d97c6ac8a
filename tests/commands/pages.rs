//! The blocks of pages that have few, and that no page has a block that no test runs.

use std::fs;

use crate::documents::{Site, blocks, documents, root};
use crate::gatepost::mode;
use crate::postgres::Cluster;

/// How many blocks of commands a page has, all of which some test runs.
const RUN: [(&str, usize); 7] = [
    // One is `make`: `demo` runs it.
    ("README.md", 3),
    ("docs/first-user.md", 14),
    ("docs/import.md", 5),
    // The first only names the owner.
    ("docs/operate.md", 10),
    ("docs/psk-envelope.md", 1),
    ("docs/scale.md", 2),
    ("docs/security.md", 2),
];

#[test]
fn no_document_has_commands_that_no_test_runs() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let is_command = |line: &&str| ["```sh", "```sql"].contains(line);
        let found = text.lines().filter(is_command).count();
        let name = document.strip_prefix(root()).unwrap().to_str().unwrap();
        let run = RUN.iter().find(|(run, _)| *run == name).map_or(0, |(_, number)| *number);
        assert_eq!(found, run, "blocks of commands in {name}: run each of them in a test");
    }
}

#[test]
fn the_first_statement_of_the_readme_revokes() {
    let site = Site::new();
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let block = text.split("```").nth(1).unwrap().strip_prefix("sql\n").unwrap();
    site.psql(
        "insert into roles (id, name) values (gen_random_uuid(), 'vpn-user');
         insert into users (id, role_id, username, display_name, password_hash)
         select gen_random_uuid(), id, 'alice', 'alice', '!' from roles;
         insert into devices (id, user_id, name, platform, device_fingerprint, public_key)
         select gen_random_uuid(), id, 'lost-laptop', 'unknown', 'f', 'k' from users",
    );
    site.run("sql", block);
    assert_eq!(site.psql("select status, revoked_at <= now() from devices"), "revoked|t");
}

/// All but the editor, systemd, and the broker that a bell needs.
#[test]
fn the_commands_of_the_scale_page_run() {
    let site = Site::new();
    let owner = Cluster::shared().socket_url("postgres", &site.database);
    let (bell, pool) = (format!("bell_{}", site.database), format!("pool_{}", site.database));
    let before = format!(
        "owner='--database-url {owner}'\nsystemctl() {{ :; }}\neditor() {{ :; }}\ncd() {{ :; }}\n"
    );
    let examples = root().join("systemd").display().to_string();
    let mut ran = 0;
    for (language, block) in blocks("docs/scale.md").into_iter().flat_map(|(_, blocks)| blocks) {
        if language != "sh" {
            continue;
        }
        let block = block
            .replace(" -g gatepost-bell", "")
            .replace(" -g gatepost", "")
            .replace("/usr/share/doc/gatepost/examples", &examples)
            .replace("gatepost_bell_a", &bell)
            .replace("gatepost_pool", &pool)
            .replace("gatepost bell --check", ":");
        site.run("sh", &format!("{before}{block}"));
        ran += 1;
    }
    assert_eq!(ran, 2);
    for name in ["bell.password", "hints.login", "bell.toml", "pool.password", "db.token"] {
        // Their users are of the group.
        assert_eq!(mode(&site.gatepost.path(name)), 0o640, "{name}");
    }
    let roles = format!("select count(*) from pg_roles where rolname in ('{bell}', '{pool}')");
    assert_eq!(site.psql(&roles), "2");
    let token = fs::read_to_string(site.gatepost.path("db.token")).unwrap();
    let hello = format!("select gateway_name from gatepost.hello('{}')", token.trim());
    assert_eq!(site.psql(&hello), "fra-1");
}

#[test]
fn the_command_of_the_envelopes_page_makes_a_sealing_key() {
    let site = Site::new();
    let (_, block) = blocks("docs/psk-envelope.md")
        .into_iter()
        .flat_map(|(_, blocks)| blocks)
        .find(|(language, _)| language == "sh")
        .unwrap();
    let block = block.replace(" -g gatepost", "").replace("/etc/gatepost/", "");
    site.run("sh", &format!("systemctl() {{ :; }}\n{block}"));
    assert_eq!(mode(&site.gatepost.path("psk.keys")), 0o640);
    let gateway = site.psql("select id from gateways where name = 'fra-1'");
    let peer = site.gatepost.run(&["key", "public"]).must_exit(0).stdout;
    let seal = ["psk", "seal", "--gateway", gateway.trim(), "--peer", peer.trim()];
    let sealed =
        site.gatepost.run_with_input(&seal, "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n");
    assert!(sealed.must_exit(0).stdout.starts_with("gp1.k1."));
}
