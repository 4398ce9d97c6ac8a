//! A gateway host with a LAN behind it, clients before it, and the database above it.
//!
//! ```text
//!  client 198.51.100.11.. ── wan (a bridge) ── gateway 198.51.100.1 ── lan 10.20.0.10, 10.20.0.200
//!         10.99.0.11..                         tunnel 10.99.0.1
//!         fd99::11..                                             fd20::10, fd20::200
//! ```

mod agent;
mod client;
mod database;
mod download;
mod echo;
mod fault;
mod flood;
mod keys;
mod postgres;
mod refusal;
mod relay;
mod revoke;
mod space;
mod trace;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

pub use agent::{Agent, BINARY};
pub use client::{Client, Ping, peer_rows, policy_rows, wide_policy_rows};
pub use database::{Database, Listener, Session};
pub use download::Download;
pub use fault::Fault;
pub use flood::{Ears, Flood, Ways, way};
use keys::write_secret;
pub use keys::{new_keys, public_key_of};
pub use postgres::{Cluster, Pooler};
pub use refusal::{has_small_sets, refuse_large_profiles};
pub use relay::Relay;
#[allow(unused_imports, reason = "the benchmark uses the rest")]
pub use revoke::{Cut, revoke_under_download, time_to_last_packet};
pub use space::Space;
pub use trace::Trace;

/// The gateway's name, its address outside and in the tunnel, and two hosts of its LAN.
pub const GATEWAY: &str = "fra-1";
pub const GATEWAY_WAN: &str = "198.51.100.1";
pub const GATEWAY_TUNNEL: &str = "10.99.0.1";
pub const LISTEN_PORT: u16 = 51820;
pub const LAN_SERVER: &str = "10.20.0.10";
pub const LAN_OTHER: &str = "10.20.0.200";
pub const LAN_SERVER6: &str = "fd20::10";
pub const LAN_OTHER6: &str = "fd20::200";

/// How long anything may take before a test fails. An emulated processor is twenty times slower.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which WireGuard a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Kernel,
    Userspace,
}

impl Backend {
    /// The one that `GATEPOST_TEST_BACKEND` names, else the kernel's where it has one.
    fn of_environment() -> Self {
        match std::env::var("GATEPOST_TEST_BACKEND").as_deref() {
            Ok("kernel") => Self::Kernel,
            Ok("userspace") => Self::Userspace,
            Ok(other) => panic!("GATEPOST_TEST_BACKEND={other}: must be kernel or userspace"),
            Err(_) if kernel_has_wireguard() => Self::Kernel,
            Err(_) => Self::Userspace,
        }
    }

    /// As in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

fn kernel_has_wireguard() -> bool {
    static HAS_IT: OnceLock<bool> = OnceLock::new();
    *HAS_IT.get_or_init(|| {
        let space = Space::new(&format!("g{}-probe", std::process::id()));
        space.output("ip", &["link", "add", "type", "wireguard"]).status.success()
    })
}

/// One test's world; everything in it ends with it.
pub struct Lab {
    /// Part of every name that the test creates, so that tests and runs do not collide.
    tag: String,
    pub backend: Backend,
    pub database: Database,
    /// The role that the agent logs in as.
    pub login: String,
    /// The only way from the agent to the database: the test can cut it.
    pub relay: Relay,
    pub gateway: Space,
    pub lan: Space,
    wan: Space,
    pub gateway_key: String,
    pub folder: tempfile::TempDir,
    clients: AtomicU8,
    logs: Mutex<Vec<PathBuf>>,
}

impl Lab {
    /// A migrated database with one gateway's row and role, the host's namespaces, no agent yet.
    pub fn open() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        let tag = format!("g{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let backend = Backend::of_environment();
        eprintln!("backend: {}", backend.word());
        let folder = tempfile::Builder::new().prefix("gatepost-netns-").tempdir().unwrap();
        let database = Database::open(&tag);
        let relay = Relay::open(folder.path(), database.address());
        let (gateway, lan, wan) = build_network(&tag);
        let (private_key, gateway_key) = new_keys();
        write_secret(&folder.path().join("private.key"), &private_key);
        write_secret(&folder.path().join("db.password"), database.role_password());
        let lab = Self {
            tag,
            backend,
            login: database.role().to_owned(),
            database,
            relay,
            gateway,
            lan,
            wan,
            gateway_key,
            folder,
            clients: AtomicU8::new(0),
            logs: Mutex::default(),
        };
        lab.write_config("");
        lab.insert_gateway();
        lab
    }

    /// From now on a PgBouncer in transaction mode stands between the relay and the database.
    pub fn pool(&mut self) -> Pooler {
        let database = &self.database;
        let pooler = Pooler::start(database.address(), &self.login, database.role_password());
        let folder = self.folder.path().join("pooled");
        fs::create_dir(&folder).unwrap();
        self.relay = Relay::open(&folder, ([127, 0, 0, 1], pooler.port).into());
        pooler
    }

    /// From now on the agent logs in as a role that gateways share, with a token of its own.
    pub fn take_token(&mut self) {
        let (pool, password) = (format!("{}_pool", self.login), self.database.role_password());
        self.database.exec(&format!("create role {pool} login password '{password}'"));
        let grant = ["grant", "--token", GATEWAY, "--pool-role", &pool];
        let granted = self.admin_command(&grant).output().unwrap();
        assert!(granted.status.success(), "gatepost grant: {granted:?}");
        fs::write(self.folder.path().join("db.token"), granted.stdout).unwrap();
        self.login = pool;
    }

    fn insert_gateway(&self) {
        self.database.exec(&format!(
            "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
                 values ('{GATEWAY}', '{GATEWAY_WAN}:{LISTEN_PORT}', '{}', {LISTEN_PORT}, '10.99.0.0/16');
             insert into roles (name) values ('staff')",
            self.gateway_key
        ));
        let output =
            self.admin_command(&["grant", GATEWAY, self.database.role()]).output().unwrap();
        assert!(output.status.success(), "gatepost grant: {output:?}");
    }

    /// A `gatepost` command line that acts as the database's administrator.
    pub fn admin_command(&self, arguments: &[&str]) -> Command {
        let file = self.folder.path().join("admin.toml");
        let database = &self.database;
        let url = self.relay.url("postgres", database.name(), database.admin_password());
        fs::write(&file, format!("[database]\nurl = \"{url}\"\n")).unwrap();
        let mut command = Command::new(BINARY);
        command.args(arguments).env("GATEPOST_CONFIG", file);
        command
    }

    /// The configuration followed by more TOML.
    pub fn write_config(&self, more: &str) {
        self.write_config_with_heartbeat("1s", more);
    }

    /// As [`write_config`](Self::write_config), with this heartbeat.
    pub fn write_config_with_heartbeat(&self, heartbeat: &str, more: &str) {
        let folder = self.folder.path().display();
        let url = self.relay.url(&self.login, self.database.name(), "");
        let config = format!(
            r#"
[gateway]
name = "{GATEWAY}"
private_key_file = "private.key"
[database]
url = "{url}"
password_file = "db.password"
[interface]
name = "{link}"
backend = "{backend}"
site_prefixes = ["fd99::/64"]
[report]
heartbeat = "{heartbeat}"
interval = "1s"
[control]
socket = "{folder}/control.sock"
[cache]
file = "{folder}/last-good"
{more}"#,
            link = self.link(),
            backend = self.backend.word()
        );
        fs::write(self.config(), config).unwrap();
    }

    /// Adds these lines to the section of the interface.
    pub fn configure_interface(&self, lines: &str) {
        let config = fs::read_to_string(self.config()).unwrap();
        let section = format!("[interface]\n{lines}");
        fs::write(self.config(), config.replace("[interface]\n", &section)).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("gatepost.toml")
    }

    /// The gateway's interface.
    pub fn link(&self) -> String {
        format!("{}g", self.tag)
    }

    /// A `gatepost` command line with this gateway's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments).env("GATEPOST_CONFIG", self.config());
        command
    }

    /// Runs `gatepost` on the gateway: its exit code, standard output and standard error.
    pub fn gatepost(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.gateway.within(|| self.command(arguments).output().unwrap());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Removes everything of ours from the kernel, as a reboot does.
    pub fn forget(&self) {
        match self.backend {
            Backend::Kernel => {
                // Much faster than our own command where the processor is emulated.
                self.gateway.output("ip", &["link", "delete", &self.link()]);
                self.gateway.output("nft", &["delete", "table", "inet", "gatepost"]);
            }
            Backend::Userspace => {
                let (code, out, err) = self.gatepost(&["down", "--yes"]);
                assert_eq!(code, 0, "{out}{err}");
            }
        }
    }

    /// The agent's status as `gatepost status --json` prints it, read from the control socket: tests ask
    /// often, and starting a process each time is expensive on an emulated processor.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        self.ask_status().unwrap_or_else(|error| panic!("no status from the agent: {error}"))
    }

    /// As [`status`](Self::status), where an agent need not answer.
    pub fn ask_status(&self) -> std::io::Result<serde_json::Value> {
        let mut socket = UnixStream::connect(self.folder.path().join("control.sock"))?;
        socket.write_all(b"{\"op\":\"status\"}\n")?;
        let mut answer = serde_json::from_reader::<_, serde_json::Value>(socket)?;
        Ok(answer["done"].take())
    }

    /// Sends the agent a request of this name, and does not wait for the answer.
    pub fn ask(&self, request: &str) {
        let socket = self.folder.path().join("control.sock");
        let mut socket = UnixStream::connect(socket).unwrap();
        socket.write_all(format!("{{\"op\":\"{request}\"}}\n").as_bytes()).unwrap();
    }

    /// Starts an agent and waits until it is ready.
    pub fn start(&self) -> Agent {
        let agent = self.launch(BINARY.as_ref());
        self.await_ready();
        agent
    }

    pub fn await_ready(&self) {
        let serves = |status: serde_json::Value| {
            ["ready", "degraded"].map(Into::into).contains(&status["state"])
        };
        eventually("the agent is ready", || {
            self.ask_status().is_ok_and(serves) && self.gatepost(&["status", "--json"]).0 == 0
        });
    }

    /// Everything the agents of this test wrote to standard error.
    pub fn log(&self) -> String {
        self.logs.lock().unwrap().iter().filter_map(|log| fs::read_to_string(log).ok()).collect()
    }

    /// What the gateway's sockets and links have dropped, as the kernel counts it, the rules of its firewall that have
    /// counted packets, and the queues of all processors: what each has taken, dropped and put off, in hexadecimal digits.
    pub fn drops(&self) -> String {
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
        let [snmp, links, queues] =
            self.gateway.within(|| ["snmp", "dev", "softnet_stat"].map(read));
        let queues = queues.lines().map(|queue| queue.get(..26).unwrap_or(queue));
        let sockets = snmp.lines().filter(|line| line.starts_with("Udp:"));
        let rules = self.gateway.run("nft", &["list", "table", "inet", "gatepost"]);
        let counted =
            |rule: &&str| rule.contains("counter packets") && !rule.contains("counter packets 0 ");
        let counted = rules.lines().filter(counted).map(str::trim);
        sockets.chain(links.lines()).chain(counted).chain(queues).collect::<Vec<_>>().join("\n")
    }

    /// A client with a device, a key and an address; unknown to the database until inserted.
    pub fn client(&self, name: &str) -> Client {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        let space = Space::new(&format!("{}-c{number}", self.tag));
        plug(&self.wan, &space, &format!("c{number}"));
        let link = format!("{}c{number}", self.tag);
        Client::build(name, space, link, 11 + number, self)
    }

    /// The public keys that the gateway's device holds, as `wg` reads them.
    pub fn kernel_peers(&self) -> Vec<String> {
        let output = self.gateway.run("wg", &["show", &self.link(), "peers"]);
        let mut keys: Vec<_> = output.lines().map(str::to_owned).collect();
        keys.sort();
        keys
    }

    /// `wg show <link> <what>`, sorted, so that two readings compare.
    pub fn wg_show(&self, what: &str) -> Vec<String> {
        let output = self.gateway.run("wg", &["show", &self.link(), what]);
        let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.log());
        }
        // Sockets of userspace devices that die with their namespace.
        let is_ours = |name: &str| {
            // The tag of the first lab begins that of the tenth, whose devices live on.
            let rest = name.strip_prefix(&self.tag);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
        };
        for entry in fs::read_dir("/var/run/wireguard").into_iter().flatten().flatten() {
            if is_ours(&entry.file_name().to_string_lossy()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn build_network(tag: &str) -> (Space, Space, Space) {
    let [gateway, lan, wan] = ["gw", "lan", "wan"].map(|role| Space::new(&format!("{tag}-{role}")));
    wan.ip(&["link set lo up", "link add br0 type bridge", "link set br0 up"]);
    plug(&wan, &gateway, "gw");
    gateway.ip(&[
        "link set lo up",
        // With a broadcast address, as hosts have it: systemd-networkd 252 fails on its own addresses without.
        &format!("address add {GATEWAY_WAN}/24 brd + dev eth0"),
        "link set eth0 up",
        &format!("link add lan0 type veth peer name eth0 netns {}", lan.name()),
        "address add 10.20.0.1/24 brd + dev lan0",
        "address add fd20::1/64 dev lan0 nodad",
        "link set lan0 up",
    ]);
    lan.ip(&[
        "link set lo up",
        &format!("address add {LAN_SERVER}/24 dev eth0"),
        &format!("address add {LAN_OTHER}/24 dev eth0"),
        &format!("address add {LAN_SERVER6}/64 dev eth0 nodad"),
        &format!("address add {LAN_OTHER6}/64 dev eth0 nodad"),
        "link set eth0 up",
    ]);
    gateway.within(|| {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
        }
    });
    (gateway, lan, wan)
}

/// Gives a host a link `eth0` to the network before the gateway.
fn plug(wan: &Space, space: &Space, port: &str) {
    wan.ip(&[
        &format!("link add {port} type veth peer name eth0 netns {}", space.name()),
        &format!("link set {port} master br0 up"),
    ]);
}

/// Tries until `condition` holds; fails the test when it never does.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = Instant::now();
        if condition() {
            return;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        // If a question is expensive, half of the time is left for the processes that work on the answer.
        std::thread::sleep(asked.elapsed().max(Duration::from_millis(10)));
    }
}

/// Runs a program that must succeed: its trimmed output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
