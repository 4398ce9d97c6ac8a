//! Cursors that cannot be followed: their marks are pruned, or they are of another history.

use std::time::Duration;

use gatepost::store::{Cursor, Read};

use crate::world::{World, client, insert_gateway};

#[tokio::test]
async fn a_cursor_that_needs_pruned_marks_reads_everything() {
    let world = World::alone().await;
    let old = world.cursor().await;
    world.peer(world.gateway, "ann").await;
    let fresh = world.cursor().await;
    let hour = Duration::from_secs(3600);
    assert_eq!(world.store.prune(hour).await.unwrap(), 0);
    assert!(world.store.prune(hour / 2).await.is_err());
    assert!(matches!(world.read(&old).await, Read::Changed(..)));

    world.run("update gatepost.change set at = now() - interval '2 h'").await;
    assert!(world.store.prune(hour).await.unwrap() > 0);
    assert_eq!(world.count("select count(*) from gatepost.change").await, 0);
    let Read::Everything(why) = world.read(&old).await else { panic!("a gap was not noticed") };
    assert_eq!(why, "the marks since the cursor are pruned");
    assert!(matches!(world.read(&fresh).await, Read::Nothing(..)));

    // A backup of a server that counted further.
    world.run("update gatepost.state set floor = '9999999999'").await;
    assert!(matches!(world.read(&fresh).await, Read::Nothing(..)));
    world.peer(world.gateway, "bob").await;
    world.run("update gatepost.change set at = now() - interval '2 h'").await;
    assert!(world.store.prune(hour).await.unwrap() > 0);
    assert!(matches!(world.read(&fresh).await, Read::Everything(_)));
}

#[tokio::test]
async fn pruning_under_a_long_transaction_spares_what_new_cursors_need() {
    let world = World::new().await;
    let mut long = client("postgres", &world.database).await;
    let long = long.transaction().await.unwrap();
    long.execute("select pg_current_xact_id()", &[]).await.unwrap();
    world.peer(world.gateway, "ann").await;
    world.run("update gatepost.change set at = now() - interval '2 h'").await;
    // Every cursor now begins at the long transaction, so its marks must stay.
    world.store.prune(Duration::from_secs(3600)).await.unwrap();
    let cursor = world.cursor().await;
    assert!(matches!(world.read(&cursor).await, Read::Nothing(..)));
    long.rollback().await.unwrap();
}

#[tokio::test]
async fn a_cursor_of_another_history_reads_everything() {
    let world = World::new().await;
    let cursor = world.cursor().await;
    let ahead = Cursor { snapshot: "900000000:900000001:".into(), ..cursor.clone() };
    let Read::Everything(why) = world.read(&ahead).await else { panic!("read from the future") };
    assert_eq!(why, "the cursor is ahead of the server");
    // The role is bound to another gateway: the same cursor means other rows.
    insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let create = gatepost::store::CreateRole::No;
    let admin = crate::world::options("postgres", &world.database);
    gatepost::store::grant(&admin, "g2", &world.role, &create).await.unwrap();
    assert!(matches!(world.read(&cursor).await, Read::Everything(_)));
    let restored = "update gatepost.state set database_epoch = gen_random_uuid()";
    let cursor = world.cursor().await;
    world.run(restored).await;
    assert!(matches!(world.read(&cursor).await, Read::Everything(_)));
}
