//! PgBouncer in transaction mode before a private PostgreSQL.

use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::postgres::free_port;

/// Server sessions in all. Each gateway logs in as itself, so that each needs one of its own.
const SERVER_SESSIONS: usize = 100;
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// Ends when dropped.
pub struct Bouncer {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Bouncer {
    /// For the roles of the first so many gateways.
    pub fn start(fleet: &Fleet<'_>, gateways: usize) -> Self {
        let mut roles = String::new();
        for number in 1..=gateways {
            writeln!(roles, "\"{}\" \"\"", fleet.role(number)).unwrap();
        }
        let pool = format!("default_pool_size = 2\nmax_db_connections = {SERVER_SESSIONS}\n");
        Self::launch(fleet, &roles, &pool)
    }

    /// For one role whose sessions all gateways share, as docs/scale.md advises.
    pub fn shared(fleet: &Fleet<'_>, role: &str, sessions: usize) -> Self {
        let pool = format!(
            "default_pool_size = {sessions}\nserver_reset_query = RESET ALL\n\
             server_reset_query_always = 1\nserver_login_retry = 1\n"
        );
        Self::launch(fleet, &format!("\"{role}\" \"\"\n"), &pool)
    }

    fn launch(fleet: &Fleet<'_>, roles: &str, pool: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("users"), roles).unwrap();
        let port = free_port();
        let config = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             max_client_conn = 5000\nlog_connections = 0\nlog_disconnections = 0\n{pool}",
            fleet.cluster.dir.display(),
            fleet.cluster.port,
            path("users").display()
        );
        fs::write(path("pgbouncer.ini"), config).unwrap();
        open_to_all(&folder);
        // It refuses to run as root.
        let log = fs::File::create(path("log")).unwrap();
        let process = Command::new("setpriv")
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"])
            .args(["/usr/sbin/pgbouncer", path("pgbouncer.ini").to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut bouncer = Self { process, port, folder };
        bouncer.wait();
        bouncer
    }

    pub fn url(&self, fleet: &Fleet<'_>, gateway: usize) -> String {
        self.url_of(&fleet.role(gateway), &fleet.database)
    }

    pub fn url_of(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    fn wait(&mut self) {
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none() && started.elapsed() < STARTS_WITHIN, "pgbouncer:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn open_to_all(folder: &tempfile::TempDir) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).unwrap();
}
