//! A server that has too few sessions for an agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gatepost::reconcile::SyncMode;
use gatepost::reconcile::status::{State, Status};
use gatepost::store::{Store, StoreError};
use tokio_postgres::Client;

use crate::agent::{Memory, agent, good_peer};
use crate::fault;
use crate::postgres::{Cluster, Setup};
use crate::running::{PATIENCE, Running};
use crate::world::{World, options};

/// The mode is reconsidered each minute, which may take a busy machine some seconds.
const A_MINUTE: Duration = Duration::from_secs(90);

fn mode(status: &Status) -> Option<String> {
    status.sync.mode.filter(|_| status.state == State::Ready).map(|mode| mode.to_string())
}

/// What the agent says of the session that it misses.
fn missed(status: &Status) -> Option<&String> {
    status
        .warnings
        .iter()
        .find(|it| it.starts_with("polling until there is a session to listen on"))
}

fn listens(status: &Status) -> bool {
    mode(status).as_deref() == Some("listen") && missed(status).is_none()
}

/// Whether the agent polls, and says for want of what, in the server's words.
fn polls(status: &Status, refusal: &str) -> bool {
    let Some(warning) = missed(status) else { return false };
    mode(status).as_deref() == Some("poll")
        && status.sync.mode_why == "the server has no session to listen on"
        && warning.contains(refusal)
        && warning.contains("an agent uses up to four sessions, and can poll with one")
}

async fn limit(world: &World, sessions: i32) {
    world.run(&format!("alter role {} connection limit {sessions}", world.role)).await;
}

#[tokio::test]
async fn queries_share_the_only_session_that_the_role_may_have() {
    let world = World::new().await;
    limit(&world, 1).await;
    let store = &world.store;
    let queries = || async {
        tokio::try_join!(store.hello(), store.attach(false), store.unwatched(), store.snapshot())
    };
    queries().await.unwrap();
    // A query that failed closes its session, which may still count when the next one asks for its own.
    world.run("alter function gatepost.attach(boolean) rename to elsewhere").await;
    store.attach(false).await.unwrap_err();
    world.run("alter function gatepost.elsewhere(boolean) rename to attach").await;
    queries().await.unwrap();
    let other = Store::connect(&options(&world.role, &world.database)).unwrap();
    let error = other.hello().await.unwrap_err();
    assert!(matches!(error, StoreError::NoRoom { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn question_that_its_asker_gives_up_does_not_cost_the_only_session() {
    let world = World::new().await;
    limit(&world, 1).await;
    let store = &world.store;
    store.hello().await.unwrap();
    world.run("alter function gatepost.words(uuid[], uuid[]) rename to elsewhere").await;
    let slow = "create function gatepost.words(uuid[], uuid[]) \
        returns table (kind text, id uuid, word text) language plpgsql \
        as 'begin perform pg_sleep(5); end'";
    world.run(slow).await;
    let session = format!(
        "select min(pid)::bigint from pg_stat_activity where usename = '{}' and query like '%words%' \
         and state = 'active'",
        world.role
    );
    let (groups, devices) = (BTreeSet::new(), BTreeSet::new());
    let asking = tokio::select! {
        answer = store.words(&groups, &devices) => panic!("the answer was awaited: {answer:?}"),
        asking = found(&world, &session) => asking,
    };
    store.hello().await.unwrap();
    let same = format!("select count(*) from pg_stat_activity where pid = {asking}");
    assert_eq!(world.count(&same).await, 1, "another session");
}

#[tokio::test]
async fn agent_whose_role_may_have_one_session_polls_and_listens_once_it_may_have_more() {
    let world = World::new().await;
    let host = Memory::default();
    let mut options = agent(&world, host.clone()).await;
    options.mode = SyncMode::Auto;
    let mut agent = Running::start(options);
    agent.waits_for("listens", listens).await;
    limit(&world, 1).await;
    let killed = world
        .count(&format!(
            "select count(*) from pg_stat_activity where case when usename = '{}' \
             and query like 'listen%' then pg_terminate_backend(pid) end",
            world.role
        ))
        .await;
    assert_eq!(killed, 1, "the session that listens");
    agent.waits_for("polls", |status| polls(status, "too many connections for role")).await;
    good_peer(&world, 1).await;
    agent.waits_for("served", |status| status.peers.in_kernel == 1).await;
    let proven = "select count(*) from gateways where last_sync_at > now() - interval '30 s'";
    assert_eq!(world.count(proven).await, 1, "reports take the same session");
    limit(&world, 10).await;
    let raised_at = Instant::now();
    agent.waits_for("listens again", listens).await;
    let converged_in = raised_at.elapsed();
    println!("listens again after {converged_in:?}");
    assert!(converged_in < A_MINUTE, "{converged_in:?}");
    good_peer(&world, 2).await;
    agent.waits_for("served", |status| status.peers.in_kernel == 2).await;
    agent.stop().await;
    let expected = "polls on it, and listens again within a minute once it may have more";
    fault::row("connection limit leaves the agent one session", expected, Some(converged_in));
}

#[tokio::test]
async fn agent_polls_while_the_server_is_full_but_for_one_session_and_loses_no_connection() {
    let settings = "max_connections = 12\nsuperuser_reserved_connections = 3\n";
    let cluster = Cluster::start(&Setup { settings, ..Setup::default() });
    let database = cluster.database(None);
    let owner = gatepost::store::ConnectOptions::new(cluster.socket_url("postgres", &database));
    gatepost::store::migrate(&owner).await.unwrap();
    let world = World::on(&cluster, database).await;
    world.run("create role crowd login").await;
    let mut crowd = fill(&cluster, &world).await;
    drop(crowd.pop());
    let mut options = agent(&world, Memory::default()).await;
    // What the configuration asks for cannot be had, either.
    options.mode = SyncMode::Listen;
    let mut agent = Running::start(options);
    agent.waits_for("polls", |status| polls(status, "(53300)")).await;
    let was_lost = Arc::new(AtomicBool::new(false));
    let watching = tokio::spawn({
        let (was_lost, mut status) = (was_lost.clone(), agent.status.clone());
        async move {
            while status.changed().await.is_ok() {
                let is_connected = status.borrow_and_update().database.connected;
                was_lost.fetch_or(!is_connected, Ordering::Relaxed);
            }
        }
    });
    good_peer(&world, 1).await;
    agent.waits_for("served", |status| status.peers.in_kernel == 1).await;
    drop(crowd);
    agent.waits_for("listens", listens).await;
    assert!(!was_lost.load(Ordering::Relaxed), "the connection was lost");
    agent.stop().await;
    watching.await.unwrap();
}

/// Waits until there is such a number.
async fn found(world: &World, sql: &str) -> i64 {
    let looks = async {
        loop {
            if let Some(number) = world.admin.query_one(sql, &[]).await.unwrap().get(0) {
                return number;
            }
        }
    };
    tokio::time::timeout(PATIENCE, looks).await.unwrap_or_else(|_| panic!("never {sql}"))
}

/// Takes all sessions that are left for others than superusers.
async fn fill(cluster: &Cluster, world: &World) -> Vec<Client> {
    // Sessions that have ended may count for a while.
    found(
        world,
        "select case when count(*) = 1 then 1::bigint end from pg_stat_activity
             where backend_type = 'client backend'",
    )
    .await;
    let mut crowd = Vec::new();
    loop {
        let url = cluster.socket_url("crowd", &world.database);
        match tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            Ok((session, connection)) => {
                tokio::spawn(connection);
                crowd.push(session);
            }
            Err(error) if error.code().is_some_and(|code| code.code() == "53300") => {
                assert!(crowd.len() >= 2, "nothing to fill");
                return crowd;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
