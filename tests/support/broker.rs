//! A NATS server of a test's own, with the configuration that the documentation gives.

#[allow(clippy::duplicate_mod, reason = "the private PostgreSQL takes ports, too")]
mod ports;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What docs/scale.md tells an operator to start from.
const EXAMPLE: &str = include_str!("../../deploy/nats-server.conf");
/// The gateway of the example, and the logins of its users.
pub const EXAMPLE_GATEWAY: &str = "00000000-0000-0000-0000-000000000001";
pub const BELL: &str = "bell:a-password-of-the-bell";
pub const AGENT: &str = "fra-1:a-password-of-fra-1";

const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A running server on 127.0.0.1. Ends when dropped.
pub struct Nats {
    child: Option<Child>,
    pub port: u16,
    folder: tempfile::TempDir,
}

impl Nats {
    /// With the users and permissions of the example, for this gateway instead of its own, and without
    /// TLS.
    pub fn for_gateway(gateway: &str) -> Self {
        Self::start(&without_tls(&EXAMPLE.replace(EXAMPLE_GATEWAY, gateway)))
    }

    /// With a user `1`, `2`, ... for each of these gateways, whose password is its name.
    #[allow(dead_code, reason = "only the benchmark of a fleet has many")]
    pub fn for_gateways(gateways: &[String]) -> Self {
        let (before, user) = EXAMPLE.split_once("    {\n      user: \"fra-1\"").unwrap();
        let mut config = before.to_owned();
        for (index, gateway) in gateways.iter().enumerate() {
            let name = (index + 1).to_string();
            let user = user.replace(EXAMPLE_GATEWAY, gateway).replace("a-password-of-fra-1", &name);
            let (user, _) = user.split_once("\n  ]").unwrap();
            config.push_str(&format!("    {{\n      user: \"{name}\"{user}\n"));
        }
        Self::start(&without_tls(&format!("{config}  ]\n}}\n")))
    }

    /// With TLS from these files.
    pub fn with_tls(certificate: &Path, key: &Path) -> Self {
        let own =
            |text: &str, file: &str, path: &Path| text.replace(file, &path.display().to_string());
        let config = own(EXAMPLE, "/etc/nats/server.crt", certificate);
        Self::start(&own(&config, "/etc/nats/server.key", key))
    }

    fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = ports::free_port();
        let config = config.replace("0.0.0.0:4222", &format!("127.0.0.1:{port}"));
        std::fs::write(folder.path().join("config"), config).unwrap();
        let mut nats = Self { child: None, port, folder };
        nats.resume();
        nats
    }

    /// Starts it again on its port.
    pub fn resume(&mut self) {
        let mut child = Command::new("nats-server")
            .arg("--config")
            .arg(self.folder.path().join("config"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("no nats-server: run tests/install-deps.sh test");
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        while !said.iter().any(|line: &String| line.contains("Server is ready")) {
            said.push(log.next().unwrap_or_else(|| panic!("nats-server ended: {said:#?}")));
        }
        // It must not stop because its log is not read.
        std::thread::spawn(move || log.for_each(drop));
        self.child = Some(child);
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < STARTS_WITHIN, "nats-server does not answer");
            std::thread::yield_now();
        }
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

fn without_tls(config: &str) -> String {
    let (before, rest) = config.split_once("tls {").unwrap();
    let (_, after) = rest.split_once("}\n").unwrap();
    format!("{before}{after}")
}
