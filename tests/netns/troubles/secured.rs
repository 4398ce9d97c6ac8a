//! A server that proves itself by a certificate and asks for passwords, over TCP on the gateway.

use std::fs;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::lab::{Cluster, Lab};

/// Holds the certificates: `known` is the one that the agent trusts.
pub struct Secured {
    server: Server,
    folder: PathBuf,
    rule: String,
    /// The tests' server has one certificate at a time.
    _alone: Option<MutexGuard<'static, ()>>,
}

static ALONE: Mutex<()> = Mutex::new(());

enum Server {
    Shared(&'static Cluster),
    Standby(Cluster),
}

impl Secured {
    /// From now on the tests' server offers TLS, and the agent of this lab connects so.
    pub fn of(lab: &Lab) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = lab.folder.path().to_owned();
        let database = &lab.database;
        for name in ["known", "unknown"] {
            let script = format!(
                "cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                     -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE \
                     -keyout {name}.key -out {name}.pem",
                folder.display()
            );
            let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let rule =
            format!("hostssl {} {} 127.0.0.1/32 scram-sha-256", database.name(), database.role());
        let server = Server::Shared(Cluster::shared());
        let secured = Self { server, folder, rule, _alone: Some(alone) };
        secured.secure();
        let url = lab.relay.url(database.role(), database.name(), "");
        let (role, name) = (database.role(), database.name());
        let over_tcp = format!("postgres://{role}@127.0.0.1:{}/{name}", bridge(lab));
        let config = fs::read_to_string(lab.config()).unwrap().replace(&url, &over_tcp);
        let config = config.replace("[database]", "[database]\ntls_ca_file = \"known.pem\"");
        let more = "[firewall]\nown_table = false\n[sync]\nstatement_timeout = \"2s\"\n";
        fs::write(lab.config(), config + more).unwrap();
        secured
    }

    /// A standby of it, which is reached in the same way.
    pub fn standby(&self) -> Self {
        let Server::Shared(primary) = &self.server else { panic!("it is a standby itself") };
        let (folder, rule) = (self.folder.clone(), self.rule.clone());
        let standby =
            Self { server: Server::Standby(primary.standby()), folder, rule, _alone: None };
        standby.secure();
        standby
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.cluster().port))
    }

    /// New connections see this certificate.
    pub fn serve(&self, certificate: &str) {
        let data = self.cluster().dir.join("data");
        for (name, kind) in [("server.crt", "pem"), ("server.key", "key")] {
            let script = format!(
                "install -m 600 -o $(stat -c %u {0}) -g $(stat -c %g {0}) {1} {0}/{name}",
                data.display(),
                self.folder.join(format!("{certificate}.{kind}")).display()
            );
            let output = Command::new("sh").args(["-ec", &script]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        self.cluster().psql("postgres", "select pg_reload_conf()");
    }

    fn secure(&self) {
        self.cluster().require(&self.rule);
        self.cluster().psql("postgres", "alter system set ssl = on");
        self.serve("known");
    }

    fn cluster(&self) -> &Cluster {
        match &self.server {
            Server::Shared(cluster) => cluster,
            Server::Standby(cluster) => cluster,
        }
    }
}

/// A TCP port on the gateway that leads to the lab's relay.
fn bridge(lab: &Lab) -> u16 {
    let socket = lab.relay.socket();
    let listener = lab.gateway.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let Ok(mut server) = UnixStream::connect(&socket) else { return };
            let (mut from_client, mut from_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut server);
                let _ = server.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut from_server, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    port
}
