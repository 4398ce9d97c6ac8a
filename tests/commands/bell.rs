//! `gatepost bell` with a real database and a real NATS server, whose permissions are those of
//! deploy/nats-server.conf.

use std::fmt::Debug;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, Subscriber};
use futures_util::StreamExt;

use crate::broker::{AGENT, BELL, Nats};
use crate::gatepost::{Done, Gatepost};
use crate::postgres::{Cluster, free_port};

/// Longer than any wait that succeeds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database with one gateway, and a NATS server.
struct Site {
    owner: Gatepost,
    database: String,
    owner_url: String,
    gateway: String,
    nats: Nats,
}

/// A running bell.
struct Bell {
    // The folder of its configuration lives as long.
    _gatepost: Gatepost,
    child: Child,
    metrics_port: u16,
}

impl Site {
    fn new() -> Self {
        let cluster = Cluster::shared();
        let database = cluster.database(None);
        let owner_url = cluster.socket_url("postgres", &database);
        let owner = Gatepost::with("");
        owner.run(&["migrate", "--database-url", &owner_url]).must_exit(0);
        let insert = "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
            values ('fra-1', 'e:1', 'k', 1, '10.8.0.0/16') returning id";
        let gateway = cluster.psql(&database, insert);
        let nats = Nats::for_gateway(&gateway);
        Self { owner, database, owner_url, gateway, nats }
    }

    fn as_owner(&self, args: &[&str]) -> Done {
        self.owner.run(&[args, &["--database-url", &self.owner_url]].concat())
    }

    fn psql(&self, sql: &str) -> String {
        Cluster::shared().psql(&self.database, sql)
    }

    /// The name of a role that may ring.
    fn role(&self, name: &str) -> String {
        let role = format!("{}_{name}", self.database);
        self.as_owner(&["grant", "--bell", &role, "--create"]).must_exit(0);
        role
    }

    /// A folder with a bell's configuration.
    fn configured(&self, role: &str, login: &str, metrics_port: u16) -> Gatepost {
        let url = Cluster::shared().socket_url(role, &self.database);
        let nats = format!("nats://127.0.0.1:{}", self.nats.port);
        let gatepost = Gatepost::with(&format!(
            "[database]\nurl = {url:?}\n[hints]\nurl = {nats:?}\n\
             [metrics]\nlisten = \"127.0.0.1:{metrics_port}\""
        ));
        gatepost.write("hints.login", login);
        gatepost
    }

    fn bell(&self, role: &str) -> Bell {
        let metrics_port = free_port();
        let gatepost = self.configured(role, BELL, metrics_port);
        let child = gatepost.command(&["bell"]).stderr(Stdio::null()).spawn().unwrap();
        Bell { _gatepost: gatepost, child, metrics_port }
    }

    /// The host and process that hold the bell, as the database knows them.
    fn holder(&self) -> u32 {
        let holder = self.psql("select coalesce(holder, '/0-') from gatepost.bell");
        let (_, process) = holder.split_once('/').unwrap();
        process.split('-').next().unwrap().parse().unwrap()
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hears as the gateway's agent does.
struct Ear {
    // The connection.
    _client: Client,
    own: Subscriber,
    all: Subscriber,
    alive: Subscriber,
}

async fn hear(site: &Site) -> Ear {
    let (user, password) = AGENT.split_once(':').unwrap();
    let options = ConnectOptions::with_user_and_password(user.into(), password.into());
    let client = options.connect(format!("nats://127.0.0.1:{}", site.nats.port)).await.unwrap();
    let own = client.subscribe(format!("gatepost.hint.{}", site.gateway)).await.unwrap();
    let all = client.subscribe("gatepost.hint.all").await.unwrap();
    let alive = client.subscribe("gatepost.alive").await.unwrap();
    client.flush().await.unwrap();
    Ear { _client: client, own, all, alive }
}

/// Waits for a message.
async fn next(subscriber: &mut Subscriber, what: &str) {
    let heard = tokio::time::timeout(PATIENCE, subscriber.next()).await;
    let message = heard.unwrap_or_else(|_| panic!("no {what}")).expect("the connection is lost");
    assert!(message.payload.is_empty(), "a hint carries nothing");
}

impl Bell {
    /// Empty while it does not serve it.
    fn page(&self, path: &str) -> String {
        self.ask(path).unwrap_or_default()
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics_port))?;
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n")?;
        std::io::read_to_string(stream)
    }
}

/// Looks until it is so, and fails with what was seen last.
async fn eventually<T: Debug>(mut look: impl FnMut() -> T, is_so: impl Fn(&T) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if is_so(&seen) {
            return;
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bell_rings_the_gateway_concerned_and_another_bell_takes_over() {
    let mut site = Site::new();
    let (role_a, role_b) = (site.role("a"), site.role("b"));
    let mut ear = hear(&site).await;
    let bells = [site.bell(&role_a), site.bell(&role_b)];
    next(&mut ear.all, "hint for all from the first bell").await;
    next(&mut ear.alive, "sign of life").await;

    let touch = "update gateways set listen_port = listen_port + 1";
    site.psql(touch);
    next(&mut ear.own, "hint of a change").await;
    let ready = || bells.each_ref().map(|bell| bell.page("/readyz"));
    let says = |reply: &str, what: &str| reply.starts_with("HTTP/1.1 200") && reply.contains(what);
    eventually(ready, |[one, other]| {
        let [rings, waits] = if one.contains("ringing") { [one, other] } else { [other, one] };
        says(rings, "ringing") && says(waits, "waiting: ")
    })
    .await;

    // Killed, not stopped: the other takes over, and rings for what may be lost.
    let holder = site.holder();
    let mut bells = Vec::from(bells);
    let at = bells.iter().position(|bell| bell.child.id() == holder).unwrap();
    let mut killed = bells.remove(at);
    killed.child.kill().unwrap();
    site.psql(touch);
    // What the first one published may come before it.
    loop {
        next(&mut ear.all, "hint for all from the second bell").await;
        if site.holder() != holder {
            break;
        }
    }
    site.psql(touch);
    next(&mut ear.own, "hint from the second bell").await;

    // A broker that was away: what was published meanwhile may be lost.
    site.nats.kill();
    site.psql(touch);
    site.nats.resume();
    let mut ear = hear(&site).await;
    next(&mut ear.alive, "sign of life after the broker is back").await;
    let is_metric = |line: &&str| line.starts_with("gatepost_bell_hints_total{to=\"all\"}");
    let metrics = || bells[0].page("/metrics");
    eventually(metrics, |metrics| {
        let value = metrics.lines().find(is_metric).and_then(|line| line.split(' ').nth(1));
        let to_all: Option<f64> = value.and_then(|value| value.parse().ok());
        to_all >= Some(2.0) && metrics.contains("\ngatepost_bell_ringing 1\n")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_a_gateway_are_merged_while_a_bell_rings() {
    let site = Site::new();
    let gateway_role = format!("{}_fra", site.database);
    site.as_owner(&["grant", "fra-1", &gateway_role, "--create"]).must_exit(0);
    let mut ear = hear(&site).await;
    let _bell = site.bell(&site.role("a"));
    next(&mut ear.alive, "sign of life").await;
    let url = Cluster::shared().socket_url(&gateway_role, &site.database);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("select gatepost.proven(now(), null, 'm', 'b', 'h')").await.unwrap();
    let synced = "select count(*) from gateways where last_sync_at is not null";
    let merged = async {
        while site.psql(synced) != "1" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, merged).await.expect("nothing was merged");
}

#[test]
fn bell_names_what_it_lacks() {
    let site = Site::new();
    let role = site.role("a");
    let check = |gatepost: &Gatepost, code| gatepost.run(&["bell", "--check"]).must_exit(code);

    let none = check(&site.configured(&role, BELL, 0), 3);
    assert!(none.stdout.contains("bell       none has rung yet\n"), "{}", none.stdout);
    assert!(none.stdout.ends_with("nats       connected\n"), "{}", none.stdout);

    let stranger = format!("{}_stranger", site.database);
    site.psql(&format!("create role {stranger} login"));
    let refused = check(&site.configured(&stranger, BELL, 0), 1).stderr;
    assert!(refused.contains(&format!("run `gatepost grant --bell {stranger}`")), "{refused}");

    let refused = check(&site.configured(&role, "bell:wrong", 0), 1).stderr;
    assert!(refused.contains("refuses the login"), "{refused}");

    let url = Cluster::shared().socket_url(&role, &site.database);
    let silent = Gatepost::with(&format!("[database]\nurl = {url:?}"));
    let unset = check(&silent, 78).stderr;
    assert!(unset.contains("`hints.url` is not set"), "{unset}");

    // A schema of before bells.
    site.psql("drop function gatepost.bells()");
    let old = check(&site.configured(&role, BELL, 0), 1).stderr;
    assert!(old.contains("run `gatepost migrate`"), "{old}");
}
