//! A private PostgreSQL for tests, with its own directory, socket and port. It ends with the test
//! process, however that ends. Needs `initdb`, `pg_ctl` and `psql`; test crates share it by `#[path]`.
#![allow(dead_code, clippy::unwrap_used)]

pub mod pooler;
mod ports;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

pub use ports::free_port;

/// How TCP clients log in, and settings for `postgresql.conf`.
#[derive(Debug, Clone)]
pub struct Setup {
    /// A word of pg_hba.conf for 127.0.0.1: `trust`, `scram-sha-256`. The socket is always `trust`.
    pub host_auth: &'static str,
    /// Server certificate and key, PEM. With it, TCP without TLS is refused.
    pub tls: Option<(String, String)>,
    /// Lines for `postgresql.conf`.
    pub settings: &'static str,
}

impl Setup {
    /// Without autovacuum. It takes transaction ids and short exclusive locks in any database at any time; a
    /// lock that it holds on a catalog for 50 ms, where the processor is busy, costs a writer its notification.
    pub const UNDISTURBED: Self =
        Self { host_auth: "trust", tls: None, settings: "autovacuum = off" };
}

impl Default for Setup {
    fn default() -> Self {
        Self { host_auth: "trust", tls: None, settings: "" }
    }
}

/// A running server. On drop, and when this process dies, it stops and its directory is removed.
pub struct Cluster {
    pub dir: PathBuf,
    pub port: u16,
    keeper: Child,
    /// Closing it makes the keeper stop the server.
    alive: Option<ChildStdin>,
}

impl Cluster {
    /// One cluster for the whole test binary, `trust` everywhere.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&Setup::UNDISTURBED))
    }

    pub fn start(setup: &Setup) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("gp-pg-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        own(&dir);
        let data = dir.join("data");
        let init = as_postgres(&bin("initdb"))
            .args(["-D", data.to_str().unwrap(), "-U", "postgres", "-A", "trust"])
            .args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"])
            .output()
            .unwrap();
        assert!(init.status.success(), "initdb: {}", String::from_utf8_lossy(&init.stderr));
        let port = free_port();
        configure(&dir, port, setup);
        Self::keep(dir, port)
    }

    /// A hot standby that follows this server.
    pub fn standby(&self) -> Self {
        self.standby_at(self.dir.with_extension("standby"), free_port())
    }

    /// A hot standby in this directory, which listens on this port.
    pub fn standby_at(&self, dir: PathBuf, port: u16) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        own(&dir);
        let data = dir.join("data");
        let copy = as_postgres(&bin("pg_basebackup"))
            .args(["-h", self.dir.to_str().unwrap(), "-p", &self.port.to_string()])
            .args(["-U", "postgres", "-D", data.to_str().unwrap(), "--checkpoint=fast"])
            .output()
            .unwrap();
        assert!(copy.status.success(), "{}", String::from_utf8_lossy(&copy.stderr));
        configure(&dir, port, &Setup::default());
        let from = format!("host={} port={} user=postgres", self.dir.display(), self.port);
        let settings = data.join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&settings).unwrap();
        text.push_str(&format!("primary_conninfo = '{from}'\n"));
        std::fs::write(&settings, text).unwrap();
        std::fs::write(data.join("standby.signal"), "").unwrap();
        own(&data.join("standby.signal"));
        Self::keep(dir, port)
    }

    /// Starts the server of this directory, and keeps it.
    fn keep(dir: PathBuf, port: u16) -> Self {
        let script = r#"
            "$1" -D "$2/data" -l "$2/log" -w -s start && echo ready && cat >/dev/null
            "$1" -D "$2/data" -m immediate -s stop
            rm -rf "$2"
        "#;
        let mut keeper = as_postgres("sh")
            .args(["-c", script, "keeper", &bin("pg_ctl"), dir.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A signal to the tests' process group must not reach the process that cleans up.
            .process_group(0)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert_eq!(ready.trim(), "ready", "postgres did not start:\n{log}");
        let alive = keeper.stdin.take();
        Self { dir, port, keeper, alive }
    }

    /// Makes an empty database with a name of its own, a copy of `template` if one is given.
    pub fn database(&self, template: Option<&str>) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("db{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let template = template.unwrap_or("template0");
        self.psql("postgres", &format!("create database {name} template {template}"));
        name
    }

    /// A URL over the unix socket.
    pub fn socket_url(&self, role: &str, database: &str) -> String {
        let dir = self.dir.to_str().unwrap().replace('/', "%2F");
        format!("postgres://{role}@{dir}:{}/{database}", self.port)
    }

    /// A URL over TCP to `localhost`, which is the name a test's certificate should carry.
    pub fn tcp_url(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@localhost:{}/{database}", self.port)
    }

    /// Runs SQL as the superuser and returns what `psql -At` prints. Panics on an error.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let output = self.try_psql(database, sql);
        output.unwrap_or_else(|error| panic!("psql: {error}\n{sql}"))
    }

    /// Runs SQL as the superuser; `Err` is psql's error.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = Command::new(bin("psql"))
            .args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", "postgres"])
            .args(["-h", self.dir.to_str().unwrap(), "-p", &self.port.to_string()])
            .args(["-d", database, "-c", sql])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Puts this rule before all others of pg_hba.conf, for its next reload. Other tests may do so, too.
    pub fn require(&self, rule: &str) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.dir.join("data/pg_hba.conf");
        let (rules, new) = (std::fs::read_to_string(&file).unwrap(), file.with_extension("new"));
        std::fs::write(&new, format!("{rule}\n{rules}")).unwrap();
        own(&new);
        std::fs::rename(&new, &file).unwrap();
    }

    /// Runs `pg_ctl -w` with these arguments: `["-m", "immediate", "stop"]`, `["start"]`.
    pub fn pg_ctl(&self, arguments: &[&str]) {
        let status = as_postgres(&bin("pg_ctl"))
            .args(["-D", self.dir.join("data").to_str().unwrap()])
            .args(["-l", self.dir.join("log").to_str().unwrap(), "-w", "-s"])
            .args(arguments)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "pg_ctl {arguments:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.keeper.wait();
    }
}

fn configure(dir: &Path, port: u16, setup: &Setup) {
    let data = dir.join("data");
    let mut settings = format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n\
         fsync = off\nfull_page_writes = off\nmax_connections = 200\n\
         password_encryption = 'scram-sha-256'\n{}\n",
        dir.display(),
        setup.settings
    );
    let mut host = "host";
    if let Some((certificate, key)) = &setup.tls {
        settings.push_str("ssl = on\n");
        host = "hostssl";
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            std::fs::write(&path, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&path, mode).unwrap();
            own(&path);
        }
    }
    std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    let auth = setup.host_auth;
    let rules = format!("local all,replication all trust\n{host} all all 127.0.0.1/32 {auth}\n");
    std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
}

/// Postgres refuses to run as root: then it runs as `postgres`.
fn is_root() -> bool {
    id("-u", None) == 0
}

fn id(flag: &str, user: Option<&str>) -> u32 {
    let mut text = String::new();
    let mut child = Command::new("id").arg(flag).args(user).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text.trim().parse().unwrap()
}

fn own(path: &Path) {
    if is_root() {
        let user = Some("postgres");
        std::os::unix::fs::chown(path, Some(id("-u", user)), Some(id("-g", user))).unwrap();
    }
}

pub fn as_postgres(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command.current_dir("/");
    command
}

/// The program of `GATEPOST_TEST_POSTGRES`, a folder with those of another version, if it has this one.
/// Debian keeps the server's programs out of PATH.
pub fn bin(name: &str) -> String {
    let other = std::env::var_os("GATEPOST_TEST_POSTGRES").map(|dir| Path::new(&dir).join(name));
    if let Some(other) = other.filter(|path| path.exists()) {
        return other.to_str().unwrap().to_owned();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().map_or_else(|| name.to_owned(), |path| path.to_str().unwrap().to_owned())
}
