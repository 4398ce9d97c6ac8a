//! Through PgBouncer in transaction mode, where a client has a session only for a transaction.

use gatepost::model::DeviceId;
use gatepost::reconcile::{Mode, Present, SyncMode, choose};
use gatepost::store::{ConnectOptions, Handshake, Polled, Read, Store, StoreError, Unavailable};

use crate::postgres::Cluster;
use crate::postgres::pooler::Pooler;
use crate::world::{World, connect};

fn pool(world: &World) -> (Pooler, Store) {
    pool_with(world, "")
}

fn pool_with(world: &World, lines: &str) -> (Pooler, Store) {
    let server = ([127, 0, 0, 1], Cluster::shared().port).into();
    let pooler = Pooler::start_with(server, &world.role, "", lines);
    let dir = pooler.dir.to_str().unwrap().replace('/', "%2F");
    let url = format!("postgres://{}@{dir}:{}/{}", world.role, pooler.port, world.database);
    let store = Store::connect(&ConnectOptions::new(url)).unwrap();
    (pooler, store)
}

#[tokio::test]
async fn everything_but_notifications_works_through_a_pooler() {
    let world = World::new().await;
    let (_pooler, store) = pool(&world);
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
    let handshake = Handshake { device_id, first_at: now, seen_at: now, connected_at: None };
    assert!(store.report(&[handshake]).await.unwrap().skipped.is_empty());
    assert!(store.synced(now).await.unwrap());
    store.merge().await.unwrap();
    let reported = "select count(*) from devices, gateways \
                    where last_seen_at is not null and last_sync_at is not null";
    assert_eq!(world.count(reported).await, 1);
}

#[tokio::test]
async fn auto_polls_behind_a_pooler_and_says_why() {
    let world = World::new().await;
    let (_pooler, store) = pool(&world);
    let hello = store.hello().await.unwrap();
    let chosen = choose(&store, SyncMode::Auto, &hello, Present::default()).await.unwrap();
    assert_eq!(chosen.mode, Mode::Poll);
    assert_eq!(chosen.why, "NOTIFY does not arrive (as behind a pooler in transaction mode)");
    assert!(chosen.listener.is_none());
    // Writers must not notify if no agent hears.
    assert_eq!(world.count("select count(*) from gatepost.listener").await, 0);
}

#[tokio::test]
async fn a_full_pool_is_said_with_what_to_do_and_is_tried_again() {
    let world = World::new().await;
    let (pooler, store) = pool_with(&world, "query_wait_timeout = 1");
    store.hello().await.unwrap();
    let dir = pooler.dir.to_str().unwrap().replace('/', "%2F");
    let url = format!("postgres://{}@{dir}:{}/{}", world.role, pooler.port, world.database);
    // Both sessions of the pool.
    let (one, two) = (connect(&url).await, connect(&url).await);
    for open in [&one, &two] {
        open.batch_execute("begin; select 1").await.unwrap();
    }
    let error = store.hello().await.unwrap_err();
    assert!(matches!(error, StoreError::PoolFull { .. }) && error.is_transient(), "{error}");
    assert!(error.concerns_every_statement());
    assert_eq!(error.unavailable(), Unavailable::NotReady);
    let text = error.to_string();
    assert!(text.contains("query_wait_timeout") && text.contains("default_pool_size"), "{text}");
    two.batch_execute("commit").await.unwrap();
    store.hello().await.unwrap();
    drop(one);
}
