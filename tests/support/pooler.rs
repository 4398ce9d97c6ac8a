//! PgBouncer in transaction mode before a test's PostgreSQL.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{as_postgres, free_port, own};

/// A running PgBouncer, on a socket in its folder and on 127.0.0.1. Ends when dropped.
pub struct Pooler {
    child: Child,
    pub dir: PathBuf,
    pub port: u16,
}

impl Pooler {
    /// For one role, whom it asks nothing.
    pub fn start(server: SocketAddr, role: &str, password: &str) -> Self {
        Self::start_with(server, role, password, "")
    }

    /// With these lines in its settings.
    pub fn start_with(server: SocketAddr, role: &str, password: &str, lines: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("gp-pooler-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        own(&dir);
        std::fs::write(dir.join("users"), format!("\"{role}\" \"{password}\"\n")).unwrap();
        let port = free_port();
        let settings = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\npool_mode = transaction\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {folder}\n\
             auth_type = trust\nauth_file = {folder}/users\ndefault_pool_size = 2\n\
             server_reset_query = RESET ALL\nserver_reset_query_always = 1\n{lines}\n",
            server.ip(),
            server.port(),
            folder = dir.display()
        );
        std::fs::write(dir.join("settings"), settings).unwrap();
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
        let program = program.into_iter().find(|path| Path::new(path).exists());
        let mut child = as_postgres(program.expect("no pgbouncer: run tests/install-deps.sh test"))
            .arg(dir.join("settings"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut said = Vec::new();
        while !said.iter().any(|line: &String| line.contains("process up")) {
            said.push(log.next().unwrap_or_else(|| panic!("pgbouncer ended: {said:#?}")));
        }
        // It must not stop because nobody reads what it says.
        std::thread::spawn(move || log.for_each(drop));
        Self { child, dir, port }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
