//! A test's own database, and SQL as its administrator.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::agent::BINARY;
use super::postgres::Server;

const ROLE_PASSWORD: &str = "a-gateways-password";

/// A migrated database and the role that a gateway's agent logs in as.
pub struct Database {
    name: String,
    role: String,
    client: Client,
}

impl Database {
    pub(super) fn open(tag: &str) -> Self {
        let server = Server::shared();
        let (name, role) = (format!("{tag}_vpn"), format!("{tag}_gateway"));
        let admin = connect(server, "postgres");
        simple(&admin, &format!("create database {name} template {}", template(server)));
        simple(&admin, &format!("create role {role} login password '{ROLE_PASSWORD}'"));
        let client = connect(server, &name);
        Self { name, role, client }
    }

    /// One more database, without any schema in it.
    pub fn empty(&self) -> String {
        let name = format!("{}_empty", self.name);
        self.exec(&format!("create database {name}"));
        name
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn role(&self) -> &str {
        &self.role
    }

    pub fn role_password(&self) -> &str {
        ROLE_PASSWORD
    }

    /// From now on the role must prove its password, where the server is our own: another one asks anyway.
    pub fn require_password(&self) {
        let rule = format!("host {} {} 127.0.0.1/32 scram-sha-256", self.name, self.role);
        Server::require(&rule);
        self.value("select pg_reload_conf()");
    }

    pub fn admin_password(&self) -> &str {
        &Server::shared().password
    }

    pub fn address(&self) -> SocketAddr {
        Server::shared().address
    }

    /// One more session, for a writer or a listener of its own.
    pub fn session(&self) -> Session {
        Session { client: connect(Server::shared(), &self.name) }
    }

    /// Runs statements. Several are one transaction.
    #[track_caller]
    pub fn exec(&self, sql: &str) {
        simple(&self.client, sql);
    }

    /// The first column of every row.
    #[track_caller]
    pub fn column(&self, sql: &str) -> Vec<String> {
        column(&self.client, sql)
    }

    /// The first column of the only row.
    #[track_caller]
    pub fn value(&self, sql: &str) -> String {
        let [value] = <[String; 1]>::try_from(self.column(sql))
            .unwrap_or_else(|rows| panic!("{sql}: {} rows", rows.len()));
        value
    }

    /// Whether a condition holds.
    #[track_caller]
    pub fn holds(&self, condition: &str) -> bool {
        self.value(&format!("select {condition}")) == "t"
    }
}

/// A session of its own.
pub struct Session {
    client: Client,
}

impl Session {
    #[track_caller]
    pub fn exec(&self, sql: &str) {
        simple(&self.client, sql);
    }
}

/// Counts the notifications of some channels from now on. The server delivers them with the answer
/// to the next statement at the latest, so one `select` proves that all of them were counted.
pub struct Listener {
    client: Client,
    seen: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Listener {
    pub fn open(database: &Database, channels: &[String]) -> Self {
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&seen);
        let (client, mut connection) =
            runtime().block_on(config(Server::shared(), &database.name).connect(NoTls)).unwrap();
        runtime().spawn(async move {
            while let Some(Ok(message)) =
                std::future::poll_fn(|context| connection.poll_message(context)).await
            {
                if matches!(message, tokio_postgres::AsyncMessage::Notification(_)) {
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            }
        });
        for channel in channels {
            simple(&client, &format!("listen \"{channel}\""));
        }
        Self { client, seen }
    }

    pub fn count(&self) -> usize {
        simple(&self.client, "select 1");
        self.seen.load(std::sync::atomic::Ordering::SeqCst)
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

fn config(server: &Server, database: &str) -> Config {
    let mut config = Config::new();
    config.host(server.address.ip().to_string()).port(server.address.port()).dbname(database);
    config.user("postgres").password(&server.password);
    config
}

fn connect(server: &Server, database: &str) -> Client {
    let (client, connection) = runtime()
        .block_on(config(server, database).connect(NoTls))
        .unwrap_or_else(|error| panic!("{database}: {error}"));
    runtime().spawn(connection);
    client
}

#[track_caller]
fn simple(client: &Client, sql: &str) -> Vec<SimpleQueryMessage> {
    runtime().block_on(client.simple_query(sql)).unwrap_or_else(|error| {
        let detail = error.as_db_error().map_or_else(String::new, ToString::to_string);
        panic!("{error}: {detail}\n{sql}")
    })
}

#[track_caller]
fn column(client: &Client, sql: &str) -> Vec<String> {
    let rows = simple(client, sql).into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    rows.collect()
}

/// A database that was migrated once; the tests' are copies of it.
fn template(server: &Server) -> &'static str {
    static TEMPLATE: Mutex<Option<&'static str>> = Mutex::new(None);
    let mut template = TEMPLATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    template.get_or_insert_with(|| {
        let name = format!("g{}_template", std::process::id());
        simple(&connect(server, "postgres"), &format!("create database {name}"));
        migrate(server, &name);
        name.leak()
    })
}

/// By the command that a user would run, over a socket: the server's own address wants TLS.
fn migrate(server: &Server, database: &str) {
    let folder = tempfile::tempdir().unwrap();
    let relay = super::Relay::open(folder.path(), server.address);
    let config = folder.path().join("gatepost.toml");
    std::fs::write(&config, "").unwrap();
    let output = Command::new(BINARY)
        .arg("migrate")
        .env("GATEPOST_CONFIG", &config)
        .env("GATEPOST_DATABASE_URL", relay.url("postgres", database, &server.password))
        .output()
        .unwrap();
    assert!(output.status.success(), "gatepost migrate: {output:?}");
}
