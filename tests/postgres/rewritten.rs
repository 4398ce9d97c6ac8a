//! A migration rewrites a table while it is read. To the read's snapshot its rows look new, so it sees none.

use std::time::Duration;

use gatepost::store::Read;

use crate::world::{World, client};

/// Rewrites of a table, each within the migration's transaction.
const REWRITES: [&str; 2] = [
    "alter table wireguard_peers alter assigned_ip type inet using assigned_ip::text::inet",
    "create temporary table kept on commit drop as table wireguard_peers;
     truncate wireguard_peers; insert into wireguard_peers select * from kept",
];

/// Reads while a migration has rewritten `wireguard_peers`, and ends once the read waits for it.
async fn read_during<T>(world: &World, rewrite: &str, read: impl Future<Output = T>) -> T {
    let migration = client("postgres", &world.database).await;
    migration.batch_execute(&format!("begin; {rewrite}")).await.unwrap();
    let waiting = format!(
        "select count(*) from pg_stat_activity where usename = '{}' and wait_event_type = 'Lock'",
        world.role
    );
    let ends = async {
        let begins_to_wait = async {
            while world.count(&waiting).await == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), begins_to_wait).await.expect("nothing waits");
        migration.batch_execute("commit").await.unwrap();
    };
    tokio::join!(read, ends).0
}

#[tokio::test]
async fn rows_that_a_migration_rewrites_while_they_are_read_are_not_missing() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    for rewrite in REWRITES {
        let read = read_during(&world, rewrite, world.store.snapshot()).await;
        assert_eq!(read.unwrap().0.peers.len(), 1, "{rewrite}");

        let cursor = world.cursor().await;
        world.run("update devices set name = name || 'x'").await;
        let read = read_during(&world, rewrite, world.store.changes(&cursor)).await.unwrap();
        let peers = match read {
            Read::Changed(rows, _) => rows.peers[&ann.device.into()].len(),
            // Statements on a whole table mark everything.
            Read::Everything(_) => world.store.snapshot().await.unwrap().0.peers.len(),
            Read::Nothing(..) => panic!("{rewrite}: the change of the name was not read"),
        };
        assert_eq!(peers, 1, "{rewrite}");
    }
}

/// The agent's role may do nothing in the schema of the tables, whose functions act for their owner.
#[tokio::test]
async fn a_read_needs_no_right_on_the_schema_of_the_tables() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world.run("revoke all on schema public from public").await;
    assert_eq!(world.store.snapshot().await.unwrap().0.peers.len(), 1);
}

#[tokio::test]
async fn a_partitioned_table_does_not_count_as_rewritten() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world
        .run(
            "begin; alter table settings rename to one_setting;
             create table settings (like one_setting including defaults) partition by list (category);
             alter table settings attach partition one_setting default;
             grant select on settings to gatepost_owner; commit",
        )
        .await;
    assert_eq!(world.store.snapshot().await.unwrap().0.peers.len(), 1);
}
