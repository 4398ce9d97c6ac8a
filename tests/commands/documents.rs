//! The documents: what they name exists, and what they tell a reader to run works.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use gatepost::model::{AuditEvent, DesiredState, Local, PrivateKey};
use gatepost::store::{ConnectOptions, Store};

use crate::gatepost::Gatepost;
use crate::postgres::{Cluster, Setup};
use crate::rows;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

pub fn documents() -> Vec<PathBuf> {
    let names = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"]
        .map(|name| root().join(name));
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    names.into_iter().chain(docs).collect()
}

#[test]
fn links_of_the_documents_lead_to_files() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let path = link.split('#').next().unwrap();
            let target = document.parent().unwrap().join(path);
            assert!(link.starts_with("https://") || target.exists(), "{document:?}: {link}");
        }
    }
}

/// Every Rust source of product and tests.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn tests_that_guard_a_rule_exist() {
    let mut text = String::new();
    for folder in ["src", "agent/src", "tests"] {
        sources(&root().join(folder), &mut text);
    }
    let mut missing = Vec::new();
    let mut found = 0;
    for name in documents().iter().flat_map(|document| guards(document)) {
        let golden = root().join("tests/golden").join(&name).is_dir();
        let is_there = golden
            || text.contains(&format!("fn {name}("))
            || text.contains(&format!("\"{name}\","));
        if is_there { found += 1 } else { missing.push(name) }
    }
    assert_eq!(missing, [""; 0], "these documents name tests that do not exist");
    assert!(found > 100, "{found} guards");
}

/// The tests in the last column of each table whose last heading is "guarded by".
fn guards(document: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut guarded = false;
    for line in fs::read_to_string(document).unwrap().lines() {
        let cell = line.strip_prefix('|').and_then(|row| row.trim_matches('|').split(" | ").last());
        let Some(cell) = cell.map(str::trim) else {
            guarded = false;
            continue;
        };
        guarded |= cell == "guarded by";
        let words = cell.split('`').skip(1).step_by(2).filter(|_| guarded);
        let words = words.map(|word| word.rsplit(": ").next().unwrap());
        names.extend(words.filter(|word| word.contains(['_', '-'])).map(str::to_owned));
    }
    names
}

/// A database with two gateways, and a shell with the binary, `psql` and the packaged files.
pub struct Site {
    pub gatepost: Gatepost,
    store: Store,
    pub database: String,
    pub role: String,
    private_key: PrivateKey,
}

impl Site {
    pub fn new() -> Self {
        let cluster = Cluster::shared();
        let database = cluster.database(None);
        let role = format!("fra_of_{database}");
        let url = cluster.socket_url(&role, &database);
        let config = format!("[gateway]\nname = \"fra-1\"\n[database]\nurl = {url:?}");
        let gatepost = Gatepost::with(&config);
        let owner = ["--database-url", &cluster.socket_url("postgres", &database)];
        gatepost.run(&[&["migrate"], &owner[..]].concat()).must_exit(0);
        gatepost.run(&[&["grant", "fra-1", &role, "--create"], &owner[..]].concat()).must_exit(0);
        let enroll = ["enroll", "--endpoint", "vpn.example.org:51820", "--listen-port", "51820"];
        let enroll = [&enroll[..], &["--vpn-cidr", "10.99.0.0/16", "--dns", "10.99.0.1"]].concat();
        gatepost.run(&enroll).must_exit(0);
        let key = fs::read_to_string(gatepost.path("private.key")).unwrap();
        let private_key = key.trim().parse().unwrap();
        cluster.psql(
            &database,
            "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
             values ('ber-1', 'ber.example.org:51820', 'later', 51820, '10.98.0.0/16')",
        );
        let store = Store::connect(&ConnectOptions::new(&url)).unwrap();
        Self { gatepost, store, database, role, private_key }
    }

    pub fn psql(&self, sql: &str) -> String {
        Cluster::shared().psql(&self.database, sql)
    }

    /// Runs a block of a document, and returns what it prints.
    pub fn run(&self, language: &str, block: &str) -> String {
        let output = self.try_run(language, block);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn client_config(&self) -> String {
        let script = "/usr/share/doc/gatepost/docs/sql/client-config.sql";
        self.run("sh", &format!("psql -At -v user=alice -v device=laptop -f {script}"))
    }

    fn try_run(&self, language: &str, block: &str) -> Output {
        let docs = root().join("docs");
        let block = block.replace("/usr/share/doc/gatepost/docs", docs.to_str().unwrap());
        let block = match language {
            "sh" => block,
            "sql" => format!("psql -v ON_ERROR_STOP=1 <<'END'\n{block}END\n"),
            other => panic!("nothing runs a block of {other:?}"),
        };
        let cluster = Cluster::shared();
        self.gatepost
            .shell(&block)
            .env("PGHOST", &cluster.dir)
            .env("PGPORT", cluster.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", &self.database)
            .output()
            .unwrap()
    }

    /// What gateway `fra-1` makes of the rows.
    pub fn desired(&self) -> DesiredState {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (rows, _) = runtime.block_on(self.store.snapshot()).unwrap();
        let local = Local { private_key: self.private_key.clone(), ..rows::local() };
        DesiredState::build(Arc::new(local), rows).unwrap()
    }

    /// Which of these addresses the peer at `source` may reach; `None` if there is no such peer.
    fn reach(&self, source: &str, destinations: &[&str]) -> Option<Vec<String>> {
        let desired = self.desired();
        let profile =
            desired.firewall().assignments.get(&format!("{source}/32").parse().unwrap())?;
        let allows = |to: &&&str| profile.allows(to.parse::<IpAddr>().unwrap());
        Some(destinations.iter().filter(allows).map(|to| (*to).to_owned()).collect())
    }
}

/// The blocks of a document by section: language and text.
pub fn blocks(document: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let section = |section: &str| {
        let (heading, body) = section.split_once('\n').unwrap();
        let blocks = body.split("```").skip(1).step_by(2).map(|block| {
            let (language, block) = block.split_once('\n').unwrap();
            (language.to_owned(), block.to_owned())
        });
        (heading.to_owned(), blocks.collect())
    };
    text.split("\n## ").skip(1).map(section).collect()
}

const OFFICE: &str = "10.20.0.10";
const PAYROLL: &str = "10.20.7.1";
const BUILD: &str = "10.30.0.10";
const INTERNET: &str = "198.41.0.4";

#[test]
fn the_first_user_page_does_what_it_says() {
    let site = Site::new();
    let reach = || site.reach("10.99.0.2", &[OFFICE, PAYROLL, BUILD, INTERNET]);
    let may = |destinations: &[&str]| Some(destinations.iter().map(ToString::to_string).collect());
    let all_but_payroll = || may(&[OFFICE, BUILD, INTERNET]);
    let gateway_key = site.private_key.public_key();
    for (heading, blocks) in blocks("docs/first-user.md") {
        for (number, (language, block)) in (1..).zip(blocks) {
            // No agent runs here that would answer.
            let block = block.replace("await_sync()", "await_sync(timeout => '100 ms')");
            let printed = site.run(&language, &block);
            match (heading.as_str(), number) {
                ("Add a user and a device", 1) => {}
                ("Add a user and a device", 2) => {
                    assert!(printed.contains("10.99.0.2"), "{printed}");
                    assert_eq!(reach(), may(&[]), "connected, and no policy");
                }
                ("Connect", 1) => assert_eq!(
                    printed,
                    format!(
                        "[Interface]\nAddress = 10.99.0.2\nDNS = 10.99.0.1\n\
                         PostUp = wg set %i private-key /etc/wireguard/%i.key\n\n\
                         [Peer]\nPublicKey = {gateway_key}\nEndpoint = vpn.example.org:51820\n\
                         AllowedIPs = 10.99.0.0/16\nPersistentKeepalive = 25\n"
                    )
                ),
                ("Allow a network", 1) => assert_eq!(reach(), may(&[OFFICE, PAYROLL])),
                ("Allow a group", 1) => assert_eq!(reach(), may(&[OFFICE, PAYROLL, BUILD])),
                ("Deny an exception", 1) => assert_eq!(reach(), may(&[OFFICE, BUILD])),
                ("Send all traffic through the tunnel", 1) => {
                    assert_eq!(reach(), all_but_payroll());
                    assert!(
                        site.client_config().contains("\nAllowedIPs = 0.0.0.0/0, 10.20.0.0/16,")
                    );
                }
                ("Revoke a device, and let it in again", 1) => assert_eq!(reach(), None),
                ("Revoke a device, and let it in again", 2) => {
                    assert!(printed.contains("fra-1") && printed.contains("| f\n"), "{printed}");
                }
                ("Revoke a device, and let it in again", 3) => {
                    assert_eq!(reach(), all_but_payroll());
                }
                ("Replace a key", 1) => {
                    let key = fs::read_to_string(site.gatepost.path("laptop.pub")).unwrap();
                    let desired = site.desired();
                    let keys: Vec<_> = desired.peers().keys().map(ToString::to_string).collect();
                    assert_eq!(keys, [key.trim()]);
                    site.psql("update devices set public_key = 'another' where name = 'laptop'");
                    assert_eq!(site.desired().peers(), desired.peers(), "this column is not read");
                }
                ("Move a device to another gateway", 1) => {
                    assert_eq!(reach(), None);
                    let held =
                        "select host(address) from ip_allocations where status = 'allocated'";
                    assert_eq!(site.psql(held), "10.98.0.2");
                    assert!(site.client_config().contains("\nAddress = 10.98.0.2\n"));
                    site.run("sh", &block.replace("ber-1", "fra-1"));
                    assert_eq!(reach(), all_but_payroll(), "back at the address that was free");
                }
                ("Remove a user", 1) => {
                    assert_eq!(reach(), None);
                    site.psql("update users set is_active = true, deleted_at = null");
                    assert_eq!(reach(), all_but_payroll());
                }
                ("Take a gateway out of service", 1) => {
                    assert!(site.desired().peers().is_empty());
                }
                (heading, number) => panic!("nothing checks block {number} of {heading:?}"),
            }
        }
    }
}

/// All but the package, the editor and systemd: on a server that asks for passwords over TCP.
#[test]
fn the_statements_of_the_security_page_run() {
    let site = Site::new();
    let mut ran = 0;
    for (language, block) in blocks("docs/security.md").into_iter().flat_map(|(_, blocks)| blocks) {
        site.run(&language, &block);
        ran += 1;
    }
    assert_eq!(ran, 2);
    let events = site.desired().settings().audit_events.clone();
    assert!(events.contains(AuditEvent::PeerRevoked) && !events.contains(AuditEvent::PeerRoamed));
    assert_eq!(site.psql("select count(*) from audit_logs"), "1", "none is a year old");
}

#[test]
fn the_readme_sets_up_a_gateway() {
    let cluster = Cluster::start(&Setup { host_auth: "scram-sha-256", ..Setup::default() });
    let database = cluster.database(None);
    cluster.psql(&database, "alter role postgres password 'of the owner'");
    let url = cluster.tcp_url("gatepost_fra_1", &database);
    let config =
        format!("[gateway]\nname = \"fra-1\"\n[database]\nurl = {url:?}\ntls = \"disable\"");
    let gatepost = Gatepost::with(&config);
    let (_, blocks) =
        blocks("README.md").into_iter().find(|(name, _)| name == "Set up a gateway").unwrap();
    let owner_url = cluster.tcp_url("postgres", &database);
    let block = blocks[0].1.replace("postgres://postgres@db1/vpn", &owner_url);
    let block = block.replace(" -g gatepost", "");
    let owner = block.lines().find(|line| line.starts_with("owner=")).unwrap();
    let mut ran = 0;
    for line in block.lines() {
        match line.split([' ', '=']).next().unwrap() {
            "make" | "cd" | "cp" | "systemctl" => {}
            "editor" if line.contains("owner.password") => {
                gatepost.write("owner.password", "of the owner\n");
            }
            "editor" => assert!(line.contains("gatepost.toml"), "{line}"),
            "gatepost" if line == "gatepost check" => {
                let found = gatepost.run(&["check"]).stdout;
                let place = format!("ok      database   database {database} at localhost:");
                assert!(found.contains(&place), "{found}");
                assert!(found.contains(", matches the gateway's row"), "{found}");
                ran += 1;
            }
            "owner" | "install" | "head" | "rm" | "gatepost" => {
                let mut command = gatepost.shell(&format!("{owner}\n{line}"));
                let done: crate::gatepost::Done = command.output().unwrap().into();
                done.must_exit(0);
                ran += 1;
            }
            other => panic!("nothing runs {other:?} of README.md"),
        }
    }
    assert_eq!(ran, 9, "commands of README.md");
    assert!(!gatepost.path("owner.password").exists());
    assert_eq!(
        cluster.psql(&database, "select name, vpn_cidr from gateways"),
        "fra-1|10.99.0.0/16"
    );
}

#[test]
fn scripts_change_nothing_if_they_find_no_gateway_or_device() {
    let site = Site::new();
    let add = "psql -v user=alice -v device=laptop -v key=KEY -v gateway=nowhere \
               -f /usr/share/doc/gatepost/docs/sql/add-device.sql";
    assert!(!site.try_run("sh", add).status.success());
    let move_away = "psql -v user=alice -v device=laptop -v gateway=ber-1 \
                     -f /usr/share/doc/gatepost/docs/sql/move-device.sql";
    assert!(!site.try_run("sh", move_away).status.success());
    assert_eq!(site.psql("select count(*) from users"), "0", "nothing is left of what failed");
}

#[test]
fn scripts_say_what_they_lack() {
    let site = Site::new();
    let key = |number: u8| PrivateKey::from_random([number; 32]).public_key();
    let script = |name: &str, vars: &[(&str, &str)]| {
        let vars: Vec<_> =
            vars.iter().map(|(name, value)| format!("-v {name}='{value}'")).collect();
        let file = format!("/usr/share/doc/gatepost/docs/sql/{name}.sql");
        let output = site.try_run("sh", &format!("psql -At {} -f {file}", vars.join(" ")));
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let refuses = |name: &str, vars: &[(&str, &str)], why: &str| {
        let (done, said) = script(name, vars);
        assert!(!done && said.contains(why), "{name} {vars:?}: {said}");
    };
    let (first, second) = (key(1).to_string(), key(2).to_string());
    let alice = [("gateway", "fra-1"), ("user", "alice"), ("device", "laptop"), ("key", &first)];
    for missing in 0..alice.len() {
        let given = Vec::from_iter(alice.iter().enumerate().filter(|it| it.0 != missing));
        let given = Vec::from_iter(given.iter().map(|it| *it.1));
        refuses("add-device", &given, &format!("pass -v {}=..., ", alice[missing].0));
    }
    refuses("move-device", &alice[1..3], "pass -v gateway=..., ");
    refuses("rotate-key", &alice[1..3], "pass -v key=..., ");
    refuses("client-config", &alice[1..2], "pass -v device=..., ");
    assert_eq!(site.psql("select count(*) from users"), "0");

    let (done, said) = script("add-device", &alice);
    assert!(done && said.contains("there was no user \"alice\": added"), "{said}");
    refuses("add-device", &alice, "device \"alice/laptop\" is there already");
    // Names of users are citext.
    let phone = [("gateway", "fra-1"), ("user", "ALICE"), ("device", "phone"), ("key", &second)];
    let (done, said) = script("add-device", &phone);
    assert!(done && !said.contains("no user"), "{said}");
    refuses("rotate-key", &[alice[1], ("device", "desk"), alice[3]], "no device \"alice/desk\"");

    // An envelope is of one gateway.
    site.psql("update wireguard_peers set preshared_key_ciphertext = 'gp1'");
    let moved = [alice[1], alice[2], ("gateway", "ber-1")];
    assert!(script("move-device", &moved).0);
    let sealed = "select count(preshared_key_ciphertext), count(*) from wireguard_peers";
    assert_eq!(site.psql(sealed), "1|2");
    let second_peer = "insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
        select device_id, (select id from gateways where name = 'fra-1'), 'k', '10.99.7.7'
        from wireguard_peers join gateways g on g.id = gateway_id where g.name = 'ber-1'";
    site.psql(second_peer);
    refuses("move-device", &moved, "has 2 peers (ber-1, fra-1), not one");
    site.psql("delete from wireguard_peers where public_key = 'k'");
    site.psql("update gateways set vpn_cidr = '10.97.0.0/31' where name = 'fra-1'");
    let back = [alice[1], alice[2], ("gateway", "fra-1")];
    refuses("move-device", &back, "\"fra-1\" has no free address in 10.97.0.0/31, its vpn_cidr");
    site.psql("update users set is_active = false, deleted_at = now()");
    let desk = [("gateway", "ber-1"), alice[1], ("device", "desk"), ("key", &key(3).to_string())];
    refuses("add-device", &desk, "user \"alice\" is deleted");
}

#[test]
fn each_device_gets_an_address_of_its_own() {
    let site = Site::new();
    let add = |device: &str| {
        let key = PrivateKey::from_random([device.len() as u8; 32]).public_key();
        let script = "/usr/share/doc/gatepost/docs/sql/add-device.sql";
        let vars = format!("-v gateway=fra-1 -v user=alice -v device={device} -v key={key}");
        site.run("sh", &format!("psql -At {vars} -f {script}")).trim().to_owned()
    };
    site.psql(
        "insert into ip_allocations (gateway_id, address, status)
         select id, '10.99.0.3', 'gateway' from gateways where name = 'fra-1'",
    );
    assert_eq!(add("a"), "10.99.0.1", "the gateway has another");
    assert_eq!(add("bb"), "10.99.0.2");
    assert_eq!(add("ccc"), "10.99.0.4");
    site.psql("update ip_allocations set status = 'released' where address = '10.99.0.2'");
    site.psql("update wireguard_peers set deleted_at = now() where assigned_ip = '10.99.0.2'");
    assert_eq!(add("dddd"), "10.99.0.2", "it is free again");
    assert_eq!(site.desired().peers().len(), 3);
    site.psql("update gateways set vpn_cidr = '10.99.0.0/29'");
    assert_eq!(add("eeeee"), "10.99.0.5");
    assert_eq!(add("ffffff"), "10.99.0.6");
    let full = "psql -v gateway=fra-1 -v user=alice -v device=g -v key=KEY \
                -f /usr/share/doc/gatepost/docs/sql/add-device.sql";
    assert!(!site.try_run("sh", full).status.success(), "no address is left");
}
