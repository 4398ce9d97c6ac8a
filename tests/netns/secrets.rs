//! Where the secrets of a loaded agent are, and where they are not.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use gatepost::model::PrivateKey;
use nix::sys::signal::Signal;

use crate::bells::Bells;
use crate::broker::AGENT;
use crate::lab::{Agent, Cluster, Lab, eventually, run};
use crate::troubles::secured::Secured;

/// How often each secret is in the memory of the agent: the places that ARCHITECTURE.md names.
const COPIES: [(&str, usize); 3] = [("private key", 1), ("sealing key", 1), ("preshared key", 2)];

/// The driver copies the password for each connection that it makes, and wipes none of the copies.
const MOST_PASSWORDS: usize = 8;

/// The token is a parameter of each statement: the driver copies it, and wipes none of the copies. There come no more
/// after the first heartbeats.
const MOST_TOKENS: usize = 128;

/// The forms in which a secret may stand somewhere.
struct Secret {
    name: &'static str,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Secret {
    fn key(name: &'static str, base64: &str) -> Self {
        let bytes = base64.parse::<PrivateKey>().unwrap().expose_bytes().to_vec();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let forms = vec![
            ("bytes", bytes),
            ("base64", base64.into()),
            ("HEX", hex.to_uppercase().into()),
            ("hex", hex.into()),
        ];
        Self { name, forms }
    }

    /// Where it stands, in which form.
    fn found(&self, part: &Part) -> Vec<String> {
        let of = |(form, text): &(&str, Vec<u8>)| {
            let at = memchr::memmem::find_iter(&part.bytes, text);
            at.map(|at| format!("{form} at {} + {at:#x}", part.place)).collect::<Vec<_>>()
        };
        self.forms.iter().flat_map(of).collect()
    }

    fn found_in(&self, parts: &[Part]) -> Vec<String> {
        parts.iter().flat_map(|part| self.found(part)).collect()
    }
}

/// How long the agent may take to finish what it does.
const RESTS_WITHIN: Duration = Duration::from_secs(20);

/// A file, or a part of the agent's memory.
struct Part {
    place: String,
    bytes: Vec<u8>,
}

#[test]
fn secrets_are_in_the_places_that_are_named_and_nowhere_else() {
    let lab = Lab::open();
    // Between heartbeats it neither reads keys nor writes them.
    lab.write_config_with_heartbeat("10m", "");
    lab.database.require_password();
    let (sealing, preshared) = (run("wg", &["genpsk"]), run("wg", &["genpsk"]));
    fs::write(lab.folder.path().join("psk.keys"), format!("k1 {sealing}\n")).unwrap();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    for client in [&alice, &bob] {
        lab.database.exec(&client.rows());
    }
    let envelope = alice.sealed(&lab, &preshared);
    lab.database.exec(&format!(
        "update wireguard_peers set preshared_key_ciphertext = '{envelope}' where public_key = '{}'",
        alice.key
    ));
    let mut agent = lab.start();
    let has_it = || lab.wg_show("preshared-keys").iter().any(|line| line.contains(&preshared));
    eventually("the kernel has the preshared key", has_it);
    // It logs in again, reads everything again, and writes to the kernel.
    lab.relay.refuse();
    eventually("the database is away", || lab.status()["database"]["connected"] == false);
    lab.relay.accept();
    eventually("the database is back", || lab.status()["database"]["connected"] == true);
    lab.database.exec(&bob.revocation());
    eventually("bob is gone", || lab.kernel_peers() == [alice.key.as_str()]);
    assert_eq!(lab.gatepost(&["resync"]).0, 0);
    assert!(agent.is_running());

    let text = |name: &str| fs::read_to_string(lab.folder.path().join(name)).unwrap();
    let forms = vec![("text", lab.database.role_password().into())];
    let password = Secret { name: "password", forms };
    let keys = [
        Secret::key("private key", text("private.key").trim()),
        Secret::key("sealing key", &sealing),
        Secret::key("preshared key", &preshared),
    ];
    let memory = memory_at_rest(&agent, &keys);
    let copies = |secret: &Secret| secret.found_in(&memory);
    for (secret, (name, number)) in keys.iter().zip(COPIES) {
        assert_eq!(secret.name, name);
        assert_eq!(copies(secret).len(), number, "{name}: {:#?}", copies(secret));
    }
    let passwords = copies(&password);
    eprintln!("{} copies of the password", passwords.len());
    assert!((1..=MOST_PASSWORDS).contains(&passwords.len()), "{passwords:#?}");

    let elsewhere = outside_of_memory(&lab, &agent);
    assert!(elsewhere.iter().any(|part| part.place.ends_with("last-good")), "its files are read");
    let own = ["private.key", "psk.keys", "db.password"];
    for (secret, file) in
        keys[..2].iter().chain([&password, &keys[2]]).zip(own.into_iter().chain(["none"]))
    {
        for part in &elsewhere {
            let expected = usize::from(part.place.ends_with(file));
            assert_eq!(secret.found(part).len(), expected, "{} in {}", secret.name, part.place);
        }
    }
}

/// The agent of a gateway behind a pool, which follows hints and shows a client certificate.
#[test]
fn token_login_for_hints_and_client_key_are_in_their_files_and_nowhere_else() {
    let lab = Lab::open();
    let path = |name: &str| lab.folder.path().join(name);
    let (role, pool) = (lab.database.role(), format!("{}_pool", lab.database.role()));
    let password = lab.database.role_password();
    lab.database.exec(&format!("create role {pool} login password '{password}'"));
    let database = lab.database.name();
    Cluster::shared().require(&format!("hostssl {database} {pool} 127.0.0.1/32 scram-sha-256"));
    let _server = Secured::of(&lab);
    let bells = Bells::start(&lab);
    let granted = lab.admin_command(&["grant", "--token", "fra-1", "--pool-role", &pool]).output();
    fs::write(path("db.token"), granted.unwrap().stdout).unwrap();
    let client = "tls_cert_file = \"unknown.pem\"\ntls_key_file = \"unknown.key\"";
    let config = fs::read_to_string(lab.config()).unwrap();
    let config = config.replace(&format!("//{role}@"), &format!("//{pool}@"));
    let config = config.replace("[database]", &format!("[database]\n{client}"));
    fs::write(lab.config(), format!("{config}[hints]\nurl = \"{}\"\n", bells.url())).unwrap();
    let agent = lab.start();
    eventually("the bell is heard", || lab.log().contains("the bell is heard"));
    let of_pool = format!("exists (select from pg_stat_activity where usename = '{pool}')");
    assert!(lab.database.holds(&of_pool));

    let text = |name: &str| fs::read_to_string(path(name)).unwrap().trim().to_owned();
    let whole = |name, text: &str| Secret { name, forms: vec![("text", text.into())] };
    let (_, login) = AGENT.split_once(':').unwrap();
    let lines = text("unknown.key");
    let line = lines.lines().nth(1).unwrap();
    let secrets = [
        ("db.token", whole("token", &text("db.token"))),
        ("hints.login", whole("login for hints", login)),
        ("unknown.key", whole("client key", line)),
        ("db.password", whole("password", password)),
    ];
    let counts = || {
        let memory = memory_at_rest(&agent, &[]);
        secrets.each_ref().map(|(_, secret)| secret.found_in(&memory).len())
    };
    for _ in 0..10 {
        let last = lab.database.value("select coalesce(last_sync_at, '-infinity') from gateways");
        let newer = format!("exists (select from gateways where last_sync_at > '{last}')");
        eventually("a heartbeat", || lab.database.holds(&newer));
    }
    let most = [MOST_TOKENS, MOST_PASSWORDS, MOST_PASSWORDS, MOST_PASSWORDS];
    let found = counts();
    eprintln!("copies: {found:?}");
    assert!(found.iter().zip(most).all(|(found, most)| *found <= most), "{found:?}");
    let mut elsewhere = outside_of_memory(&lab, &agent);
    // The bells have a login of their own.
    elsewhere.retain(|part| !["/a/", "/b/"].iter().any(|bell| part.place.contains(bell)));
    for (file, secret) in &secrets {
        assert!(elsewhere.iter().any(|part| part.place.ends_with(file)), "{file} is read");
        for part in &elsewhere {
            let expected = usize::from(part.place.ends_with(file));
            assert_eq!(secret.found(part).len(), expected, "{} in {}", secret.name, part.place);
        }
    }
}

/// Its arguments, environment, journal and files.
fn outside_of_memory(lab: &Lab, agent: &Agent) -> Vec<Part> {
    let process = |name: &str| {
        let bytes = fs::read(format!("/proc/{}/{name}", agent.pid())).unwrap();
        Part { place: name.to_owned(), bytes }
    };
    let mut all = vec![process("cmdline"), process("environ")];
    all.push(Part { place: "journal".into(), bytes: lab.log().into_bytes() });
    files(lab.folder.path(), &mut all);
    all
}

/// While the agent works there may be more copies for a moment. The last memory, if they stay.
fn memory_at_rest(agent: &Agent, keys: &[Secret]) -> Vec<Part> {
    let deadline = Instant::now() + RESTS_WITHIN;
    loop {
        agent.signal(Signal::SIGSTOP);
        eventually("the agent is stopped", || agent.is_stopped());
        let memory = memory(agent);
        agent.signal(Signal::SIGCONT);
        let rests =
            keys.iter().zip(COPIES).all(|(key, (_, number))| key.found_in(&memory).len() == number);
        if rests || Instant::now() > deadline {
            return memory;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The pages that the agent may write to and has touched, as runs of neighbours.
fn memory(agent: &Agent) -> Vec<Part> {
    const PAGE: u64 = 4096;
    let process = format!("/proc/{}", agent.pid());
    let [memory, pages] =
        ["mem", "pagemap"].map(|name| fs::File::open(format!("{process}/{name}")).unwrap());
    let mut parts: Vec<Part> = Vec::new();
    for line in fs::read_to_string(format!("{process}/maps")).unwrap().lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (from, to) = words[0].split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        if !words[1].starts_with("rw") {
            continue;
        }
        let mut entries = vec![0; usize::try_from((to - from) / PAGE * 8).unwrap()];
        pages.read_exact_at(&mut entries, from / PAGE * 8).unwrap();
        let mut is_run = false;
        for (number, entry) in (0..).zip(entries.chunks_exact(8)) {
            let mut page = vec![0; usize::try_from(PAGE).unwrap()];
            // The two highest bits: present, or in swap. Another thread may give it back meanwhile.
            let is_there = entry[7] & 0xc0 != 0
                && memory.read_exact_at(&mut page, from + number * PAGE).is_ok();
            match parts.last_mut() {
                Some(run) if is_there && is_run => run.bytes.append(&mut page),
                _ if is_there => {
                    let place =
                        format!("{:#x} {}", from + number * PAGE, words.get(5).unwrap_or(&""));
                    parts.push(Part { place, bytes: page });
                }
                _ => {}
            }
            is_run = is_there;
        }
    }
    let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
    assert!(bytes > 1 << 20, "{bytes} bytes of memory were read");
    parts
}

/// The files below a folder, but for the clients' own.
fn files(folder: &Path, all: &mut Vec<Part>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !["alice", "bob"].iter().any(|client| path.ends_with(client)) {
                files(&path, all);
            }
        } else if path.is_file() {
            all.push(Part { place: path.display().to_string(), bytes: fs::read(&path).unwrap() });
        }
    }
}
