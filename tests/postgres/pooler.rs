//! Through PgBouncer in transaction mode, where a session is nobody's for longer than a transaction.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use gatepost::model::DeviceId;
use gatepost::reconcile::{Mode, SyncMode, choose};
use gatepost::store::{ConnectOptions, Handshake, Polled, Read, Store};

use crate::postgres::{Cluster, as_postgres, free_port};
use crate::world::World;

/// A running PgBouncer before the shared server. Ends when dropped.
struct Pooler {
    child: Child,
    port: u16,
}

impl Pooler {
    fn start(world: &World) -> Self {
        let (cluster, port) = (Cluster::shared(), free_port());
        let dir = cluster.dir.join(&world.database);
        let dir = dir.to_str().unwrap();
        assert!(as_postgres("mkdir").arg(dir).status().unwrap().success());
        let users = format!("\"{}\" \"\"\n", world.role);
        std::fs::write(format!("{dir}/users"), users).unwrap();
        let settings = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\npool_mode = transaction\n\
             listen_addr =\nlisten_port = {port}\nunix_socket_dir = {dir}\n\
             auth_type = trust\nauth_file = {dir}/users\ndefault_pool_size = 2\n",
            cluster.dir.display(),
            cluster.port
        );
        std::fs::write(format!("{dir}/settings"), settings).unwrap();
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
        let program = program.into_iter().find(|path| std::path::Path::new(path).exists());
        let mut child = as_postgres(program.expect("no pgbouncer: run tests/install-deps.sh test"))
            .arg(format!("{dir}/settings"))
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
        Self { child, port }
    }

    fn store(&self, world: &World) -> Store {
        let dir = Cluster::shared().dir.join(&world.database);
        let dir = dir.to_str().unwrap().replace('/', "%2F");
        let url = format!("postgres://{}@{dir}:{}/{}", world.role, self.port, world.database);
        Store::connect(&ConnectOptions::new(url)).unwrap()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn everything_but_notifications_works_through_a_pooler() {
    let world = World::new().await;
    let pooler = Pooler::start(&world);
    let store = pooler.store(&world);
    let hello = store.hello().await.unwrap();
    assert_eq!(hello.gateway_id.0, world.gateway);
    let (rows, mut cursor) = store.snapshot().await.unwrap();
    assert!(rows.peers.is_empty());

    let ann = world.peer(world.gateway, "ann").await;
    // Several at a time, so that they meet on the pooler's two sessions.
    let (one, two, three) =
        tokio::join!(store.changes(&cursor), store.changes(&cursor), store.changes(&cursor));
    for read in [one, two, three] {
        let Read::Changed(rows, next) = read.unwrap() else { panic!("missed the peer") };
        assert_eq!(rows.peers[&ann.device.into()].len(), 1);
        cursor = next;
    }
    world.run("update devices set status = 'blocked'").await;
    let news = loop {
        match store.poll(&cursor).await.unwrap() {
            Polled::Quiet(next, _) => cursor = next,
            Polled::News => break store.changes(&cursor).await.unwrap(),
        }
    };
    assert!(matches!(news, Read::Changed(..)), "{news:?}");

    let now = std::time::SystemTime::now();
    let device_id: DeviceId = ann.device.into();
    let handshake = Handshake { device_id, seen_at: now, connected_at: None };
    assert!(store.report(&[handshake]).await.unwrap().skipped.is_empty());
    assert!(store.synced(now).await.unwrap());
    let reported = "select count(*) from devices, gateways \
                    where last_seen_at is not null and last_sync_at is not null";
    assert_eq!(world.count(reported).await, 1);
}

#[tokio::test]
async fn auto_polls_behind_a_pooler_and_says_why() {
    let world = World::new().await;
    let pooler = Pooler::start(&world);
    let store = pooler.store(&world);
    let hello = store.hello().await.unwrap();
    let chosen = choose(&store, SyncMode::Auto, &hello, None).await.unwrap();
    assert_eq!(chosen.mode, Mode::Poll);
    assert_eq!(chosen.why, "no notification arrives, as behind a pooler in transaction mode");
    assert!(chosen.listener.is_none());
    // Writers are spared what nobody hears.
    assert_eq!(world.count("select count(*) from gatepost.listener").await, 0);
}
