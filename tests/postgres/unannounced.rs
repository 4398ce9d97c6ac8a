//! Changes that no trigger announced, because triggers were off for a moment.

use gatepost::store::{Polled, Read};

use crate::world::World;

/// As a data-only restore does it: in one transaction, so that no look finds a trigger off.
pub fn while_off(table: &str, write: &str) -> String {
    let on: String = ["insert", "update", "delete", "truncate"]
        .map(|event| format!("alter table {table} enable always trigger gatepost_{event};"))
        .concat();
    format!("begin; alter table {table} disable trigger all; {write}; {on} commit")
}

#[tokio::test]
async fn a_write_while_triggers_were_off_is_read_at_the_next_look() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let mut cursor = world.cursor().await;
    for (table, write) in [
        ("devices", "update devices set status = 'revoked', revoked_at = now()"),
        ("users", "update users set is_active = false"),
        ("wireguard_peers", "delete from wireguard_peers"),
        ("settings", "insert into settings (category, key, value) values ('gateway', 'a', '1')"),
    ] {
        assert!(matches!(world.read(&cursor).await, Read::Nothing(..)), "{table}");
        world.run(&while_off(table, write)).await;
        assert!(world.store.unwatched().await.unwrap().is_empty(), "{table}");
        assert_eq!(world.store.poll(&cursor).await.unwrap(), Polled::News, "{table}");
        let Read::Everything(why) = world.read(&cursor).await else { panic!("{table}: unseen") };
        assert_eq!(why, "a table or its triggers were altered since the cursor");
        cursor = world.cursor().await;
    }
}

/// A write to the parent fires none of the child's triggers.
#[tokio::test]
async fn a_table_with_a_parent_is_unwatched_and_read_when_it_loses_the_parent() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world
        .run(
            "create table fleet (like devices) partition by list (platform);
             create table assets (id uuid not null, name text not null)",
        )
        .await;
    for (attach, write, detach) in [
        (
            "alter table fleet attach partition devices default",
            "update fleet set status = 'revoked'",
            "alter table fleet detach partition devices",
        ),
        (
            "alter table devices inherit assets",
            "update assets set name = 'phone'",
            "alter table devices no inherit assets",
        ),
    ] {
        let cursor = world.cursor().await;
        world.run(attach).await;
        world.run(write).await;
        assert_eq!(world.store.unwatched().await.unwrap(), ["devices"], "{attach}");
        let Read::Everything(_) = world.read(&cursor).await else { panic!("{attach}: unseen") };
        let cursor = world.cursor().await;
        world.run(&format!("{write}; {detach}")).await;
        assert!(world.store.unwatched().await.unwrap().is_empty(), "{detach}");
        let Read::Everything(_) = world.read(&cursor).await else { panic!("{detach}: unseen") };
    }
}

/// A trigger that is made anew has another row, which counts as altered too.
#[tokio::test]
async fn a_trigger_made_anew_is_noticed() {
    let world = World::new().await;
    let cursor = world.cursor().await;
    world
        .run(
            "begin; drop trigger gatepost_update on devices; update devices set name = 'x';
             create trigger gatepost_update after update on devices referencing old table as
                 old_rows new table as new_rows for each statement
                 execute function gatepost.devices_updated();
             alter table devices enable always trigger gatepost_update; commit",
        )
        .await;
    assert!(world.store.unwatched().await.unwrap().is_empty());
    assert!(matches!(world.read(&cursor).await, Read::Everything(_)));
}

/// Such a statement fires no trigger, and may change what every row says.
#[tokio::test]
async fn a_table_that_was_altered_is_read_as_a_whole() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let mut cursor = world.cursor().await;
    for sql in [
        "alter table devices alter column status type text using 'revoked'",
        "alter table users alter column is_active type boolean using false",
        "begin; alter table users drop column is_active; alter table users add column is_active boolean default false;
         grant select (is_active) on users to gatepost_owner; commit",
        "begin; alter table devices rename revoked_at to was_revoked_at;
         alter table devices add column revoked_at timestamptz default now();
         grant select (revoked_at) on devices to gatepost_owner; commit",
        "alter table devices add column colour text",
    ] {
        assert!(matches!(world.read(&cursor).await, Read::Nothing(..)), "{sql}");
        world.run(sql).await;
        assert_eq!(world.store.poll(&cursor).await.unwrap(), Polled::News, "{sql}");
        let read = world.read(&cursor).await;
        assert!(matches!(read, Read::Everything(_)), "{sql}: {read:?}");
        cursor = world.cursor().await;
    }
}

#[tokio::test]
async fn what_leaves_the_tables_and_triggers_as_they_are_asks_for_no_full_read() {
    let world = World::new().await;
    world.run("create table other (id uuid references devices (id))").await;
    let cursor = world.cursor().await;
    for sql in [
        "vacuum freeze pg_trigger",
        "vacuum full pg_trigger",
        "vacuum freeze devices",
        "grant select on devices to public",
        "analyze devices",
        "create index on devices (name)",
        "reindex table devices",
        "reindex table pg_trigger",
        "alter table devices enable always trigger gatepost_update",
        "create function nothing() returns trigger language plpgsql as 'begin return null; end'",
        "create trigger theirs after insert on devices execute function nothing()",
        "alter table devices disable trigger theirs",
        "alter table other disable trigger all",
    ] {
        world.run(sql).await;
        let read = world.read(&cursor).await;
        assert!(matches!(read, Read::Nothing(..)), "{sql}: {read:?}");
    }
}

/// It takes 42 us on an idle machine. Pages are counted instead, because a busy machine changes times.
#[tokio::test]
async fn to_compare_the_triggers_reads_no_other_triggers() {
    let world = World::new().await;
    world
        .run(
            "create function nothing() returns trigger language plpgsql as 'begin return null; end';
             do $$ begin
                 for n in 1..4000 loop
                     -- A trigger costs as much as its table has triggers already.
                     if n % 50 = 1 then
                         execute format('create table other_%s (id int)', (n - 1) / 50);
                     end if;
                     execute format('create trigger gatepost_%s after insert on other_%s
                                     execute function nothing()', n, (n - 1) / 50);
                 end loop;
             end $$",
        )
        .await;
    world.run("analyze pg_trigger").await;
    let row =
        world.admin.query_one("select pg_relation_size('pg_trigger') / 8192", &[]).await.unwrap();
    let all = u64::try_from(row.get::<_, i64>(0)).unwrap();
    let read = pages_to_compare_triggers(&world).await;
    assert!(read < all, "{read} pages, the catalog has {all}");
}

/// Pages that the comparison of the triggers reads once the server's caches are warm.
async fn pages_to_compare_triggers(world: &World) -> u64 {
    let asked = "explain (analyze, buffers, format json) select gatepost.triggers_version()";
    let mut pages = 0;
    for _warmer in 0..3 {
        let row = world.admin.query_one(asked, &[]).await.unwrap();
        let plan = &row.get::<_, serde_json::Value>(0)[0]["Plan"];
        pages = plan["Shared Hit Blocks"].as_u64().unwrap()
            + plan["Shared Read Blocks"].as_u64().unwrap();
    }
    println!("pages: {pages}");
    pages
}
