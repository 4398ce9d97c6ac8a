//! Orderly restarts of the server, after which cursors go on, and what must not be taken for one.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use gatepost::store::{Cursor, Read};

use crate::world::{World, connect};

const BEFORE: &str = "update devices set status = 'suspended'";

/// A peer, and a cursor that has seen it.
async fn world() -> (World, Cursor) {
    let world = World::alone().await;
    world.store.attach(false).await.unwrap();
    world.peer(world.gateway, "a").await;
    let cursor = world.cursor().await;
    (world, cursor)
}

/// How many devices this cursor leads to, and the next cursor.
async fn changed(world: &World, since: &Cursor) -> (usize, Cursor) {
    match world.read(since).await {
        Read::Changed(rows, next) => {
            assert_eq!(rows.marks.len(), rows.peers.len(), "no mark of before the cursor");
            (rows.peers.len(), next)
        }
        Read::Nothing(next, _) => (0, next),
        Read::Everything(why) => panic!("reads everything: {why}"),
    }
}

async fn is_of_another_epoch(world: &World, since: &Cursor) -> bool {
    match world.read(since).await {
        Read::Everything(why) => why == "the cursor is of another epoch",
        other => panic!("{other:?}"),
    }
}

async fn restart(world: &World, how: &str) {
    world.cluster().pg_ctl(&["-m", how, "restart"]);
    open_anew(world).await;
}

/// A session of before ends with the first question.
async fn open_anew(world: &World) {
    while world.store.hello().await.is_err() {}
}

fn write(world: &World, sql: &str) {
    world.cluster().psql(&world.database, sql);
}

#[tokio::test]
async fn a_cursor_of_before_orderly_restarts_goes_on() {
    let (world, first) = world().await;
    write(&world, BEFORE);
    restart(&world, "fast").await;
    let (peers, second) = changed(&world, &first).await;
    assert_eq!(peers, 1, "a change of before the restart");
    assert_ne!(second.epoch, first.epoch);
    assert!(world.store.synced(SystemTime::now()).await.unwrap(), "the rows are of this start");
    assert_eq!(changed(&world, &second).await.0, 0);

    world.store.attach(false).await.unwrap();
    for how in ["fast"; 3] {
        restart(&world, how).await;
        // No agent has registered since this start, and one was away since the first.
        for cursor in [&first, &second] {
            changed(&world, cursor).await;
        }
        world.store.attach(false).await.unwrap();
    }
    assert_eq!(changed(&world, &first).await.0, 1);
    for _ in 0..9 {
        restart(&world, "fast").await;
        world.store.attach(false).await.unwrap();
    }
    assert!(is_of_another_epoch(&world, &first).await, "only the last starts are remembered");
}

#[tokio::test]
async fn a_proof_of_before_a_restart_waits_for_the_next_read() {
    let (world, cursor) = world().await;
    restart(&world, "fast").await;
    assert!(!world.store.synced(SystemTime::now()).await.unwrap());
    changed(&world, &cursor).await;
    assert!(world.store.synced(SystemTime::now()).await.unwrap());
}

#[tokio::test]
async fn a_crash_between_two_orderly_restarts_voids_the_cursors_of_before() {
    let (world, first) = world().await;
    restart(&world, "fast").await;
    let (_, second) = changed(&world, &first).await;
    restart(&world, "immediate").await;
    for cursor in [&first, &second] {
        assert!(is_of_another_epoch(&world, cursor).await);
    }
    world.store.attach(false).await.unwrap();
    restart(&world, "fast").await;
    for cursor in [&first, &second] {
        assert!(is_of_another_epoch(&world, cursor).await);
    }
}

/// The copy has the table, too, because an orderly shutdown keeps it.
#[tokio::test]
async fn a_copy_of_the_files_of_an_earlier_shutdown_continues_no_later_start() {
    let (world, first) = world().await;
    let data = world.cluster().dir.join("data");
    let copy = data.with_file_name("copy");
    world.cluster().pg_ctl(&["-m", "fast", "stop"]);
    copy_files(&data, &copy);
    world.cluster().pg_ctl(&["start"]);
    open_anew(&world).await;
    world.store.attach(false).await.unwrap();
    write(&world, "update devices set status = 'revoked', revoked_at = now()");
    let (_, second) = changed(&world, &first).await;

    world.cluster().pg_ctl(&["-m", "fast", "stop"]);
    std::fs::remove_dir_all(&data).unwrap();
    copy_files(&copy, &data);
    world.cluster().pg_ctl(&["start"]);
    open_anew(&world).await;
    for attached in [false, true] {
        if attached {
            world.store.attach(false).await.unwrap();
        }
        assert!(is_of_another_epoch(&world, &second).await, "the revocation is lost");
        // All that this one saw is in the copy.
        changed(&world, &first).await;
    }
}

fn copy_files(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[tokio::test]
async fn another_database_of_the_cluster_continues_no_cursor() {
    let (world, cursor) = world().await;
    world.cluster().pg_ctl(&["-m", "fast", "restart"]);
    let name = &world.database;
    for sql in [
        format!("alter database {name} rename to former"),
        format!("create database {name} template former"),
    ] {
        world.cluster().psql("postgres", &sql);
    }
    open_anew(&world).await;
    assert!(is_of_another_epoch(&world, &cursor).await);
    world.store.attach(false).await.unwrap();
    assert!(is_of_another_epoch(&world, &cursor).await);
}

/// Both see the row of before; one has not committed yet.
#[tokio::test]
async fn two_agents_that_remember_a_start_at_once_both_know_the_start_before() {
    let (world, cursor) = world().await;
    restart(&world, "fast").await;
    let other = connect(&world.cluster().socket_url("postgres", &world.database)).await;
    other.batch_execute("begin; select gatepost.remember_server()").await.unwrap();
    world.store.attach(false).await.unwrap();
    let known = "select count(*) from gatepost.server where cardinality(predecessors) = 1";
    let known = || world.cluster().psql(&world.database, known);
    assert_eq!(known(), "1");
    changed(&world, &cursor).await;
    other.batch_execute("commit").await.unwrap();
    assert_eq!(known(), "2", "neither waited for the other");
    changed(&world, &cursor).await;
}
