//! Reads beside a table, a column or a type that is not what they expect.

use gatepost::store::{Read, StoreError};

use crate::fault::row;
use crate::guest::WATCHED;
use crate::world::{World, options};

#[tokio::test]
async fn reads_name_the_column_they_miss_and_go_on_when_it_is_back() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    world
        .run(&format!(
            "insert into groups (id, name) values ('{0}', 'staff');
             insert into group_memberships (group_id, user_id) values ('{0}', '{1}');
             insert into policies (id, name) values ('{0}', 'intranet');
             insert into policy_targets (policy_id, target_type, target_id) values ('{0}', 'user', '{1}');
             insert into policy_destinations (policy_id, destination) values ('{0}', '10.0.0.0/8')",
            ann.peer, ann.user
        ))
        .await;
    let whole = world.store.snapshot().await.unwrap().0;
    let mut stopped = 0;
    for (table, watched) in WATCHED {
        for column in watched {
            world.run(&format!("alter table {table} rename {column} to renamed")).await;
            if let Err(error) = world.store.snapshot().await {
                stopped += 1;
                let StoreError::Misfit { misfits, .. } = &error else {
                    panic!("{table}.{column}: {error}")
                };
                assert_eq!(misfits, &[format!("column {table}.{column} is missing")]);
                assert!(!error.is_transient());
            }
            world.run(&format!("alter table {table} rename renamed to {column}")).await;
            let again = world.store.snapshot().await.unwrap().0;
            assert_eq!(again.peers, whole.peers, "{table}.{column}");
            assert_eq!(again.policies, whole.policies, "{table}.{column}");
        }
        world.run(&format!("revoke all on {table} from gatepost_owner")).await;
        let error = world.store.snapshot().await.unwrap_err().to_string();
        assert!(error.contains(&format!("gatepost_owner may not read {table}.")), "{error}");
        assert!(error.ends_with("run `gatepost migrate`"), "{error}");
        gatepost::store::migrate(&options("postgres", &world.database)).await.unwrap();
        world.store.snapshot().await.unwrap();
    }
    assert!(stopped > 45, "{stopped}");
    world.run("alter table gatepost.change rename to lost").await;
    let error = world.store.changes(&world.cursor().await).await.unwrap_err().to_string();
    assert!(error.contains("table gatepost.change is missing"), "{error}");
    row(
        "column of the control plane renamed or dropped",
        "not ready with its name; goes on when it is back",
        None,
    );
}

/// Types that a migration of the control plane may well choose.
#[tokio::test]
async fn reads_go_on_after_a_change_of_types_that_keeps_the_meaning() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let whole = world.store.snapshot().await.unwrap().0;
    let mut cursor = world.cursor().await;
    world.run("drop index ip_allocations_device_id_idx").await;
    for alteration in [
        "alter table devices alter name type varchar(100)",
        "create type device_status as enum ('active', 'revoked');
         alter table devices alter status drop default;
         alter table devices alter status type device_status using status::device_status;
         alter table devices alter status set default 'active'",
        "alter table devices alter revoked_at type timestamptz(3)",
        "alter table users alter username type text",
        "alter table wireguard_peers alter public_key type varchar(44)",
        "alter table wireguard_peers alter preshared_key_ciphertext type varchar(300)",
        "alter table wireguard_peers alter dns_servers type varchar(50)[]",
        "alter table policies alter name type varchar(80), alter effect type varchar(10), alter priority type smallint",
        "alter table ip_allocations alter status drop default, alter status type varchar(20)",
        "alter table gateways alter endpoint type varchar(80), alter listen_port type smallint using 51820 - 30000",
    ] {
        world.run(alteration).await;
        let rows =
            world.store.snapshot().await.unwrap_or_else(|error| panic!("{alteration}: {error}")).0;
        assert_eq!(rows.peers, whole.peers, "{alteration}");
        // A table that was rewritten is read as a whole.
        if let Read::Everything(_) = world.read(&cursor).await {
            cursor = world.cursor().await;
        }
        world.run("update devices set os_version = os_version || '+', name = name || '+'").await;
        let Read::Changed(rows, next) = world.read(&cursor).await else {
            panic!("{alteration}: no change")
        };
        assert_eq!(rows.peers.len(), 1, "{alteration}");
        cursor = next;
        world.run(&format!("update devices set name = 'ann' where id = '{}'", ann.device)).await;
        cursor = match world.read(&cursor).await {
            Read::Changed(_, next) => next,
            read => panic!("{alteration}: {read:?}"),
        };
    }
}

/// A change that the trigger cannot follow is a reason to read everything, not to read nothing.
#[tokio::test]
async fn a_revocation_beside_a_renamed_column_is_seen_once_the_column_is_back() {
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    world.run("alter table devices rename approved_at to renamed").await;
    world.run("update devices set status = 'revoked', revoked_at = now()").await;
    assert!(matches!(world.store.changes(&cursor).await, Ok(Read::Everything(_))));
    world.run("alter table devices rename renamed to approved_at").await;
    let rows = world.store.snapshot().await.unwrap().0;
    assert_eq!(rows.peers[0].device_id.0, ann.device);
    assert!(rows.peers[0].revoked_at.is_some());
}
