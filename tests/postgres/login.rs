//! Passwords, certificates, several hosts: on a cluster of its own that trusts no TCP connection.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gatepost::model::DeviceId;
use gatepost::store::{
    AuditEntry, AuditEvent, AuditStatus, ConnectOptions, CreateRole, Entity, Handshake, Merged,
    Password, Polled, Read, Store, StoreError, Tls, TlsFiles, Unavailable, grant, migrate,
};
use tokio::sync::OnceCell;

use crate::postgres::{Cluster, Setup, free_port};
use crate::world::{Peer, World, client, options};

pub struct Site {
    pub cluster: Cluster,
    pub database: String,
    /// Where the keys and certificates are.
    pub folder: PathBuf,
}

const PASSWORD: &str = "correct horse";

async fn site() -> &'static Site {
    static SITE: OnceCell<Site> = OnceCell::const_new();
    SITE.get_or_init(Site::new).await
}

impl Site {
    /// A server with TLS that lets role `agent` in with [`PASSWORD`].
    pub async fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        openssl(&format!(
            "cd {dir}
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                 -subj '/CN=test CA' -keyout ca.key -out ca.pem
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                 -subj '/CN=other CA' -keyout other.key -out other.pem
             openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                 -subj '/CN=localhost' -keyout server.key -out server.csr
             printf 'subjectAltName=DNS:localhost' > san
             openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile san -out server.pem",
            dir = dir.display()
        ));
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let cluster = Cluster::start(&Setup {
            host_auth: "scram-sha-256",
            tls: Some((read("server.pem"), read("server.key"))),
            settings: "",
        });
        // The cluster's directory goes when the process does; a static is never dropped.
        let folder = cluster.dir.clone();
        for file in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        let database = cluster.database(None);
        let admin = ConnectOptions::new(cluster.socket_url("postgres", &database));
        migrate(&admin).await.unwrap();
        cluster.psql(
            &database,
            "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
                 values ('g1', 'e:1', 'k', 1, '10.8.0.0/16')",
        );
        let create = CreateRole::IfAbsent(Some(PASSWORD.to_owned().into()));
        grant(&admin, "g1", "agent", &create).await.unwrap();
        Self { cluster, database, folder }
    }

    pub fn options(&self) -> ConnectOptions {
        ConnectOptions {
            password: Some(Password::from(PASSWORD.to_owned())),
            tls_files: self.trusting("ca.pem"),
            ..ConnectOptions::new(self.cluster.tcp_url("agent", &self.database))
        }
    }

    /// This certificate of the folder.
    pub fn trusting(&self, name: &str) -> TlsFiles {
        TlsFiles { ca: Some(self.folder.join(name)), ..TlsFiles::default() }
    }

    /// Lets these lines of pg_hba.conf decide about TCP, and gives the server this certificate.
    pub fn serve(&self, certificate: &str, rules: &str) {
        let data = self.cluster.dir.join("data");
        let socket = "local all,replication all trust\n";
        std::fs::write(data.join("pg_hba.conf"), format!("{socket}{rules}\n")).unwrap();
        for (name, kind) in [("server.crt", "pem"), ("server.key", "key")] {
            let text = std::fs::read(self.folder.join(format!("{certificate}.{kind}"))).unwrap();
            std::fs::write(data.join(name), text).unwrap();
        }
        self.cluster.pg_ctl(&["-m", "fast", "restart"]);
    }
}

pub fn openssl(script: &str) {
    let output = Command::new("sh").args(["-e", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub async fn hello(options: &ConnectOptions) -> Result<String, StoreError> {
    Ok(Store::connect(options)?.hello().await?.gateway_name)
}

#[tokio::test]
async fn scram_over_verified_tls_logs_in_and_listens() {
    let site = site().await;
    let store = Store::connect(&site.options()).unwrap();
    let me = store.hello().await.unwrap();
    let mut listener = store.listen(&me).await.unwrap();
    assert!(listener.probe().await.unwrap());
    let encrypted = "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) \
                     where a.usename = 'agent' and s.ssl";
    assert_ne!(site.cluster.psql(&site.database, encrypted), "0");
    let verifier =
        "select rolpassword like 'SCRAM-SHA-256$%' from pg_authid where rolname = 'agent'";
    assert_eq!(site.cluster.psql(&site.database, verifier), "t");
}

#[tokio::test]
async fn a_wrong_password_is_reported_but_not_shown() {
    let options = ConnectOptions {
        password: Some(Password::from("hunter2".to_owned())),
        ..site().await.options()
    };
    let error = hello(&options).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    let words = error.to_string();
    assert!(words.contains("role agent") && words.contains("password file"), "{words}");
    assert!(!words.contains("hunter2") && !format!("{error:?}").contains("hunter2"));
    assert_eq!(error.unavailable(), Unavailable::Refuses);
    let none = ConnectOptions { password: None, ..site().await.options() };
    let error = hello(&none).await.unwrap_err();
    assert_eq!(error.unavailable(), Unavailable::Refuses);
    let words = error.to_string();
    assert!(words.contains("asks for a password: set database.password_file"), "{words}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_name_is_refused() {
    let site = site().await;
    let other = ConnectOptions { tls_files: site.trusting("other.pem"), ..site.options() };
    let error = hello(&other).await.unwrap_err();
    assert!(matches!(error, StoreError::Tls { .. }), "{error}");
    let words = error.to_string();
    assert!(words.contains("no trusted authority signed the server's certificate: "), "{words}");
    assert!(words.contains("in database.tls_ca_file"), "{words}");

    let mut renamed = site.options();
    renamed.url = renamed.url.replace("localhost", "127.0.0.1");
    let words = hello(&renamed).await.unwrap_err().to_string();
    assert!(words.contains("certificate is for localhost, not for 127.0.0.1: "), "{words}");

    let any_name = ConnectOptions { tls: Tls::VerifyCa, ..renamed };
    assert_eq!(hello(&any_name).await.unwrap(), "g1");
    let other = ConnectOptions { tls_files: site.trusting("other.pem"), ..any_name };
    assert!(matches!(hello(&other).await.unwrap_err(), StoreError::Tls { .. }));
}

#[tokio::test]
async fn a_server_that_requires_tls_refuses_plain_connections() {
    let options = ConnectOptions { tls: Tls::Disable, ..site().await.options() };
    let error = hello(&options).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_dead_first_host_is_skipped() {
    let site = site().await;
    let mut options = site.options();
    let (dead, live) = (free_port(), site.cluster.port);
    options.url = format!(
        "postgres://agent@localhost:{dead},localhost:{live}/{}?target_session_attrs=read-write",
        site.database
    );
    assert_eq!(hello(&options).await.unwrap(), "g1");
    options.url = format!("postgres://agent@localhost:{dead}/{}", site.database);
    let error = hello(&options).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&dead.to_string()), "{error}");
}

/// As a server whose disk hangs: its kernel still accepts connections.
#[tokio::test]
async fn a_first_host_that_accepts_and_stays_silent_is_skipped() {
    let site = site().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (first, live) = (silent.local_addr().unwrap().port(), site.cluster.port);
    let options = |second: u16| ConnectOptions {
        url: format!("postgres://agent@localhost:{first},localhost:{second}/{}", site.database),
        connect_timeout: Duration::from_secs(1),
        ..site.options()
    };
    assert_eq!(hello(&options(live)).await.unwrap(), "g1");
    let words = hello(&options(free_port())).await.unwrap_err().to_string();
    let told = format!("localhost:{first} did not answer within 1 s");
    assert!(words.contains(&told), "{words}");
}

#[tokio::test]
async fn each_of_several_hosts_is_told_with_its_own_error_in_one_line() {
    let site = site().await;
    let (live, dead, gone) = (site.cluster.port, free_port(), free_port());
    let words = async |first: u16, second: u16| {
        let url =
            format!("postgres://agent@localhost:{first},localhost:{second}/{}", site.database);
        let password = Some(Password::from("hunter2".to_owned()));
        let error = hello(&ConnectOptions { url, password, ..site.options() }).await.unwrap_err();
        let words = error.to_string();
        assert!(!words.contains('\n'), "{words}");
        (error.unavailable(), words)
    };
    // Whatever their order, the host that answers says what to do.
    for (first, second) in [(dead, live), (live, dead)] {
        let (unavailable, words) = words(first, second).await;
        assert_eq!(unavailable, Unavailable::Refuses, "{words}");
        let dead = format!("at localhost:{live} as role agent (localhost:{dead} is unreachable: ");
        assert!(words.contains(&dead), "{words}");
        assert!(
            words.contains("(os error 111)): login refused: password authentication"),
            "{words}"
        );
    }
    let (unavailable, words) = words(dead, gone).await;
    assert_eq!(unavailable, Unavailable::Unreachable, "{words}");
    let both = format!("at localhost:{dead} as role agent (localhost:{gone} is unreachable: ");
    assert!(words.contains(&both) && words.matches("(os error 111)").count() == 2, "{words}");
}

/// As behind a load balancer that is stopped.
#[tokio::test]
async fn connection_that_ends_without_a_word_is_told_without_a_link_to_a_manual() {
    let site = site().await;
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (server, port) = (site.cluster.port, between.local_addr().unwrap().port());
    let carries = tokio::spawn(async move {
        let mut carried = tokio::task::JoinSet::new();
        loop {
            let (mut client, _) = between.accept().await.unwrap();
            let mut server = tokio::net::TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            carried.spawn(async move {
                tokio::io::copy_bidirectional(&mut client, &mut server).await.unwrap();
            });
        }
    });
    let url = format!("postgres://agent@localhost:{port}/{}", site.database);
    let store = Store::connect(&ConnectOptions { url, ..site.options() }).unwrap();
    let mut listener = store.listen(&store.hello().await.unwrap()).await.unwrap();
    carries.abort();
    let words = listener.next().await.unwrap_err().to_string();
    assert!(
        words.ends_with("is unreachable: it closed the connection without sending an error"),
        "{words}"
    );
}

/// Settings that an administrator may choose for other applications.
const SETTINGS: [&str; 11] = [
    "idle_session_timeout = '1s'",
    "statement_timeout = '40ms'",
    "lock_timeout = '1ms'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "DateStyle = 'SQL, DMY'",
    "IntervalStyle = 'iso_8601'",
    "TimeZone = 'Asia/Kathmandu'",
    "client_encoding = 'LATIN1'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
];

/// What hides the server's own names from a session that looks for them there first.
const SHADOWS: &str = "
    create schema shadow;
    grant usage on schema shadow to public;
    create function shadow.wrong() returns boolean language plpgsql as
        $$ begin raise exception 'a name of schema shadow is used'; end $$;
    create function shadow.wrong(uuid, uuid) returns boolean language plpgsql as
        $$ begin raise exception 'an operator of schema shadow is used'; end $$;
    create operator shadow.= (leftarg = uuid, rightarg = uuid, function = shadow.wrong);
    create function shadow.now() returns timestamptz language sql as $$ select '2001-01-01'::timestamptz $$;
    create function shadow.hello() returns boolean language sql as 'select shadow.wrong()';
    create domain shadow.uuid as pg_catalog.text check (shadow.wrong());
    create domain shadow.jsonb as pg_catalog.text check (shadow.wrong());
    create domain shadow.timestamptz as pg_catalog.text check (shadow.wrong());
    create view shadow.devices as select * from public.devices where false;
    create view shadow.pg_class as select * from pg_catalog.pg_class where false;
    grant select on all tables in schema shadow to public";

async fn set(world: &World, owner: &str, setting: &str) {
    let name = setting.split(' ').next().unwrap().to_lowercase();
    let known = format!("select count(*) from pg_settings where lower(name) = '{name}'");
    // Version 13 has no limit for idle sessions.
    let is_known = world.count(&known).await == 1;
    assert!(is_known || name == "idle_session_timeout", "{name}");
    if is_known {
        world.run(&format!("alter {owner} set {setting}")).await;
    }
}

#[tokio::test]
async fn settings_of_role_and_database_change_nothing() {
    for (row_security, path) in [("on", "nowhere"), ("off", "shadow, pg_catalog")] {
        let world = World::new().await;
        let ann = world.peer(world.gateway, "ann").await;
        world.run(SHADOWS).await;
        for owner in [format!("role {}", world.role), format!("database {}", world.database)] {
            for setting in SETTINGS {
                set(&world, &owner, setting).await;
            }
            set(&world, &owner, &format!("row_security = {row_security}")).await;
            set(&world, &owner, &format!("search_path = {path}")).await;
        }
        let session = client(&world.role, &world.database).await;
        let in_force = session.query_one("select current_setting('search_path')", &[]).await;
        assert_eq!(in_force.unwrap().get::<_, String>(0), path);
        every_call_is_answered(&world, ann).await;
        let admin = options("postgres", &world.database);
        gatepost::store::migrate(&admin).await.unwrap();
    }
}

/// All that an agent calls, in sessions of its own.
async fn every_call_is_answered(world: &World, ann: Peer) {
    let store = Store::connect(&options(&world.role, &world.database)).unwrap();
    let hello = store.hello().await.unwrap();
    let mut listener = store.listen(&hello).await.unwrap();
    assert_eq!(store.attach(true).await.unwrap().unwatched, [""; 0]);
    let (rows, cursor) = store.snapshot().await.unwrap();
    assert_eq!(rows.peers.len(), 1);
    assert!(matches!(store.poll(&cursor).await.unwrap(), Polled::Quiet(..)));
    let device_id = DeviceId(ann.device);
    let seen_at = rows.taken_at;
    let handshake = Handshake { device_id, first_at: seen_at, seen_at, connected_at: None };
    assert_eq!(store.report(&[handshake]).await.unwrap().skipped, []);
    let entry = AuditEntry {
        event: AuditEvent::GatewayStarted,
        entity: Entity::Gateway(hello.gateway_id),
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message: "started".into(),
        metadata: serde_json::json!({}),
    };
    let audited = store.audit(&[entry]).await;
    assert_eq!((audited.settled, audited.refused.len()), (1, 0), "{audited:?}");
    assert!(store.synced(rows.taken_at).await.unwrap());
    assert_eq!(store.try_reports().await.unwrap(), [""; 0]);
    assert_eq!(store.merge().await.unwrap(), Merged::default());
    let written = format!(
        "select (select count(*) from public.devices where last_seen_at = '{0}')
            + (select count(*) from public.gateways where last_sync_at = '{0}')
            + (select count(*) from public.audit_logs)",
        humantime::format_rfc3339_micros(rows.taken_at)
    );
    assert_eq!(world.count(&written).await, 3);
    world.run(&format!("update devices set name = 'tablet' where id = '{}'", ann.device)).await;
    listener.next().await.unwrap();
    assert_eq!(store.poll(&cursor).await.unwrap(), Polled::News);
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Changed(..)));
    store.prune(Duration::from_secs(86_400)).await.unwrap();
    // Longer than the timeout for idle sessions.
    let quiet = Duration::from_millis(1_500);
    assert!(tokio::time::timeout(quiet, listener.next()).await.is_err());
    store.snapshot().await.unwrap();
}
