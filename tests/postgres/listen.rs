use std::time::Duration;

use gatepost::store::{Read, Store, StoreError};

use crate::postgres::{Cluster, Setup};
use crate::world::{World, options};

#[tokio::test]
async fn a_commit_is_announced_and_then_read() {
    let world = World::new().await;
    let hello = world.store.hello().await.unwrap();
    assert_eq!(hello.gateway_name, "g1");
    let mut listener = world.store.listen(&hello).await.unwrap();
    let cursor = world.cursor().await;
    let ann = world.peer(world.gateway, "ann").await;
    assert!(listener.next().await.unwrap() >= 1);
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("missed the peer") };
    assert_eq!(rows.peers[&ann.device.into()].len(), 1);
}

#[tokio::test]
async fn a_killed_connection_is_an_error_and_the_next_one_is_notified() {
    let world = World::new().await;
    let hello = world.store.hello().await.unwrap();
    let mut listener = world.store.listen(&hello).await.unwrap();
    let cursor = world.cursor().await;
    let killed = world
        .count(
            // The order of conditions is not fixed: without `case`, listeners of other tests die, too.
            "select count(*) from pg_stat_activity where case when datname = current_database() \
             and query like 'listen%' then pg_terminate_backend(pid) end",
        )
        .await;
    assert_eq!(killed, 1, "the listener was not there to be killed");
    let error = listener.next().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(listener.next().await.is_err());

    world.peer(world.gateway, "ann").await;
    let mut listener = world.store.listen(&hello).await.unwrap();
    assert!(matches!(world.read(&cursor).await, Read::Changed(..)));
    world.peer(world.gateway, "bob").await;
    assert!(listener.next().await.unwrap() >= 1);
}

#[tokio::test]
async fn a_probe_wakes_no_other_listener() {
    let world = World::new().await;
    let hello = world.store.hello().await.unwrap();
    let mut one = world.store.listen(&hello).await.unwrap();
    let mut two = world.store.listen(&hello).await.unwrap();
    assert!(one.probe().await.unwrap());
    assert!(two.probe().await.unwrap());
    assert!(tokio::time::timeout(Duration::ZERO, two.next()).await.is_err());
    assert!(tokio::time::timeout(Duration::ZERO, one.next()).await.is_err());
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_cut_off() {
    let world = World::new().await;
    let limits = |seconds| gatepost::store::ConnectOptions {
        statement_timeout: Duration::from_secs(seconds),
        ..options(&world.role, &world.database)
    };
    // One second for the statement, five for the network: the server must cut it off first.
    let store = Store::connect(&limits(1)).unwrap();
    let cursor = store.snapshot().await.unwrap().1;
    world.run("begin; lock table gatepost.change in access exclusive mode").await;
    let error = store.changes(&cursor).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("read the changes"), "{error}");
    world.run("commit").await;
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Nothing(..)));
}

#[tokio::test]
async fn an_unresponsive_server_is_noticed_and_its_connection_closed() {
    let world = World::alone().await;
    let limits = gatepost::store::ConnectOptions {
        statement_timeout: Duration::from_secs(1),
        ..gatepost::store::ConnectOptions::new(world.url.clone())
    };
    let store = Store::connect(&limits).unwrap();
    let cursor = store.snapshot().await.unwrap().1;
    let backend = format!(
        "select pid::bigint from pg_stat_activity where usename = '{}' \
         and query not like 'listen%'",
        world.role
    );
    let pid = world.count(&backend).await.to_string();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success(), "no backend to stop");
    };
    signal("-STOP");
    let error = store.changes(&cursor).await.unwrap_err();
    assert!(matches!(error, StoreError::Stalled { .. }), "{error}");
    // The next question goes to another backend while the first is still stopped.
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Nothing(..)));
    signal("-CONT");
}

#[tokio::test]
async fn a_server_restart_changes_the_epoch() {
    let cluster = Cluster::start(&Setup::default());
    let database = cluster.database(None);
    let options =
        |role: &str| gatepost::store::ConnectOptions::new(cluster.socket_url(role, &database));
    gatepost::store::migrate(&options("postgres")).await.unwrap();
    cluster.psql(
        &database,
        "insert into gateways (name, endpoint, public_key, listen_port, vpn_cidr)
             values ('g1', 'e:1', 'k', 1, '10.8.0.0/16')",
    );
    let create = gatepost::store::CreateRole::IfAbsent(None);
    gatepost::store::grant(&options("postgres"), "g1", "agent", &create).await.unwrap();
    let store = Store::connect(&options("agent")).unwrap();
    let cursor = store.cursor().await;
    assert!(matches!(store.changes(&cursor).await.unwrap(), Read::Nothing(..)));

    cluster.pg_ctl(&["-m", "immediate", "stop"]);
    let error = store.changes(&cursor).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = store.hello().await.unwrap_err().to_string();
    assert!(error.contains("is unreachable") && error.contains(&database), "{error}");
    cluster.pg_ctl(&["start"]);
    let Read::Everything(why) = store.changes(&cursor).await.unwrap() else {
        panic!("trusted a cursor of before the crash")
    };
    assert_eq!(why, "the cursor is of another epoch");
    let next = store.cursor().await;
    assert!(matches!(store.changes(&next).await.unwrap(), Read::Nothing(..)));
}

/// For a [`Store`] outside a [`World`].
trait At {
    async fn cursor(&self) -> gatepost::store::Cursor;
}

impl At for Store {
    async fn cursor(&self) -> gatepost::store::Cursor {
        self.snapshot().await.unwrap().1
    }
}
