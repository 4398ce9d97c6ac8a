//! The control plane's own statements and migrations never fail because of Gatepost.

use gatepost::store::Store;
use tokio_postgres::Client;

use crate::postgres::Cluster;
use crate::world::{World, client, insert_gateway, insert_user, options};

/// The watched tables with the columns that agents read.
pub const WATCHED: [(&str, &[&str]); 11] = [
    ("users", &["id", "username", "is_active", "deleted_at"]),
    ("devices", &["id", "user_id", "name", "status", "approved_at", "revoked_at", "deleted_at"]),
    (
        "wireguard_peers",
        &[
            "id",
            "device_id",
            "gateway_id",
            "public_key",
            "assigned_ip",
            "preshared_key_ciphertext",
            "allowed_ips",
            "dns_servers",
            "created_at",
            "deleted_at",
        ],
    ),
    (
        "gateways",
        &[
            "id",
            "name",
            "public_key",
            "listen_port",
            "vpn_cidr",
            "dns_servers",
            "is_active",
            "deleted_at",
        ],
    ),
    ("ip_allocations", &["id", "gateway_id", "device_id", "address", "status"]),
    ("policies", &["id", "name", "priority", "effect", "is_active", "full_tunnel", "deleted_at"]),
    ("policy_targets", &["id", "policy_id", "target_type", "target_id"]),
    ("policy_destinations", &["id", "policy_id", "destination"]),
    ("groups", &["id", "deleted_at"]),
    ("group_memberships", &["id", "group_id", "user_id"]),
    ("settings", &["category", "key", "value"]),
];

/// Two rows for each table that differ in every column, and no constraint or index that would refuse
/// an alteration by itself.
const BARE: &str = "
    do $$
    declare
        c record;
    begin
        for c in
            select conrelid::regclass as relation, conname as name from pg_constraint
            where connamespace = 'public'::regnamespace and contype <> 'n'
            order by contype <> 'f'
        loop
            execute format('alter table %s drop constraint %I', c.relation, c.name);
        end loop;
        for c in
            select i.indexrelid::regclass as name from pg_index i join pg_class t on t.oid = i.indrelid
            where t.relnamespace = 'public'::regnamespace
                and i.indexrelid::regclass::text not like 'gatepost\\_%'
        loop
            execute format('drop index %s', c.name);
        end loop;
        for c in
            select a.attrelid::regclass as relation, a.attname as name from pg_attribute a
            join pg_class t on t.oid = a.attrelid
            where t.relnamespace = 'public'::regnamespace and t.relkind = 'r' and a.attnum > 0
        loop
            execute format('alter table %s alter %I drop not null, alter %I drop default',
                c.relation, c.name, c.name);
        end loop;
    end $$;
    insert into users values
        (gen_random_uuid(), gen_random_uuid(), 'a', 'a', 'a', 'a', true, '2020-01-01', '2020-01-01', '2020-01-01', null),
        (gen_random_uuid(), gen_random_uuid(), 'b', 'b', 'b', 'b', false, '2021-01-01', '2021-01-01', '2021-01-01', '2021-01-01');
    insert into gateways values
        (gen_random_uuid(), 'a', 'a', 'a', 1, '10.1.0.0/16', '{10.1.0.1}', true, '2020-01-01', '2020-01-01', '2020-01-01', null),
        (gen_random_uuid(), 'b', 'b', 'b', 2, '10.2.0.0/16', '{10.2.0.1}', false, '2021-01-01', '2021-01-01', '2021-01-01', '2021-01-01');
    insert into devices values
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'a', 'a', 'a', 'a', 'a', 'a', 'active', '2020-01-01', '2020-01-01', '2020-01-01', '2020-01-01', '2020-01-01', '2020-01-01', null),
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'b', 'b', 'b', 'b', 'b', 'b', 'lost', '2021-01-01', '2021-01-01', null, '2021-01-01', '2021-01-01', '2021-01-01', '2021-01-01');
    insert into wireguard_peers values
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'a', '10.1.0.2', 'a', '{10.1.0.0/16}', '{10.1.0.1}', 1, '2020-01-01', '2020-01-01', '2020-01-01', null),
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'c', '10.1.0.3', 'c', '{10.3.0.0/16}', '{10.3.0.1}', 3, '2022-01-01', '2022-01-01', '2022-01-01', null),
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'b', '10.2.0.2', 'b', '{10.2.0.0/16}', '{10.2.0.1}', 2, '2021-01-01', '2021-01-01', '2021-01-01', '2021-01-01');
    insert into ip_allocations values
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '10.1.0.2', 'allocated', '2020-01-01', '2020-01-01', '2020-01-01', '2020-01-01'),
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '10.2.0.2', 'gateway', '2021-01-01', '2021-01-01', '2021-01-01', '2021-01-01');
    insert into policies values
        (gen_random_uuid(), 'a', 'a', 1, 'allow', true, true, gen_random_uuid(), '2020-01-01', '2020-01-01', null),
        (gen_random_uuid(), 'b', 'b', 2, 'deny', false, false, gen_random_uuid(), '2021-01-01', '2021-01-01', '2021-01-01');
    insert into policy_targets values
        (gen_random_uuid(), gen_random_uuid(), 'user', gen_random_uuid(), '2020-01-01'),
        (gen_random_uuid(), gen_random_uuid(), 'group', gen_random_uuid(), '2021-01-01');
    insert into policy_destinations values
        (gen_random_uuid(), gen_random_uuid(), '10.1.0.0/16', 'a', '2020-01-01'),
        (gen_random_uuid(), gen_random_uuid(), '10.2.0.0/16', 'b', '2021-01-01');
    insert into groups values
        (gen_random_uuid(), 'a', 'a', '2020-01-01', '2020-01-01', null),
        (gen_random_uuid(), 'b', 'b', '2021-01-01', '2021-01-01', '2021-01-01');
    insert into group_memberships values
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '2020-01-01'),
        (gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '2021-01-01');
    insert into settings values
        (gen_random_uuid(), 'gateway', 'a', '1', '2020-01-01', '2020-01-01'),
        (gen_random_uuid(), 'policy', 'b', '2', '2021-01-01', '2021-01-01')";

/// Makes an alteration, runs statements, each from the same state, takes everything back. Returns why the alteration was
/// refused, or for each statement why it failed and whether it left a mark.
const TRIED: &str = "
    create function pg_temp.tried(alteration text, statements text[], out refused text,
        out failed text[], out marked text[])
    language plpgsql as $$
    declare
        statement text;
        error text;
        mark text;
    begin
        failed := '{}';
        marked := '{}';
        begin
            begin
                execute alteration;
            exception when others then
                refused := sqlerrm;
            end;
            if refused is null then
                foreach statement in array statements loop
                    error := null;
                    mark := null;
                    begin
                        execute statement;
                        begin
                            execute 'select case when bool_or(kind = ''all'') then ''everything''
                                when count(*) > 0 then ''something'' else ''nothing'' end
                                from gatepost.change where xid = pg_current_xact_id()' into mark;
                        exception when others then
                            null; -- no table of marks
                        end;
                        raise sqlstate 'TEST0';
                    exception
                        when sqlstate 'TEST0' then null;
                        when others then error := sqlerrm;
                    end;
                    failed := failed || error;
                    marked := marked || mark;
                end loop;
            end if;
            raise sqlstate 'TEST0';
        exception when sqlstate 'TEST0' then
            null;
        end;
    end $$";

struct Tried {
    refused: Option<String>,
    failed: Vec<Option<String>>,
    marked: Vec<Option<String>>,
}

async fn tried(client: &Client, alteration: &str, statements: &[String]) -> Tried {
    let query = "select refused, failed, marked from pg_temp.tried($1, $2)";
    let row = client.query_one(query, &[&alteration, &statements]).await;
    let row = row.unwrap_or_else(|error| panic!("{alteration}: {error:?}"));
    Tried { refused: row.get(0), failed: row.get(1), marked: row.get(2) }
}

/// A database with Gatepost whose writers notify, and the same tables without.
async fn with_and_without() -> (World, Client) {
    let world = World::new().await;
    world.run("truncate gateways cascade").await;
    world.run(BARE).await;
    world.run(TRIED).await;
    world
        .run("insert into gatepost.attached select id, true, now() + interval '1 h' from gateways")
        .await;
    world.run("truncate gatepost.change").await;
    let plain = Cluster::shared().database(None);
    let plain = client("postgres", &plain).await;
    plain.batch_execute(include_str!("../../migrations/V1__control_plane.sql")).await.unwrap();
    plain.batch_execute(BARE).await.unwrap();
    plain.batch_execute(TRIED).await.unwrap();
    (world, plain)
}

/// Gives the value of the row's neighbour to each row.
fn swap(table: &str, column: &str) -> String {
    format!(
        "update {table} set {column} = s.value
         from (select ctid as place, coalesce(lead({column}) over (order by ctid),
             first_value({column}) over (order by ctid)) as value from {table}) s
         where s.place = {table}.ctid"
    )
}

/// Each statement with whether it must leave a mark.
fn statements(table: &str, columns: &[String], watched: &[String]) -> Vec<(String, bool)> {
    let mut all = vec![
        (format!("insert into {table} select * from {table}"), true),
        (format!("delete from {table}"), true),
        (format!("truncate {table}"), true),
    ];
    all.extend(columns.iter().map(|column| (swap(table, column), watched.contains(column))));
    if table == "devices" {
        all.push(("update devices set revoked_at = now(), status = 'revoked'".into(), true));
        all.push(("update devices set revoked_at = now()".into(), true));
    }
    all
}

async fn columns_of(client: &Client, table: &str) -> Vec<(String, String)> {
    let query = "select attname::text, format_type(atttypid, null) from pg_attribute
                 where attrelid = $1::text::regclass and attnum > 0 and not attisdropped order by attnum";
    let rows = client.query(query, &[&table]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Whether an index of ours names the column: then its type must have an order.
async fn is_indexed(client: &Client, table: &str, column: &str) -> bool {
    let query = "select exists (select from pg_index i join pg_attribute a on a.attrelid = i.indrelid
                 and a.attnum = any (i.indkey) where i.indrelid = $1::text::regclass and a.attname = $2::text)";
    client.query_one(query, &[&table, &column]).await.unwrap().get(0)
}

#[tokio::test]
async fn no_alteration_of_a_column_is_refused_or_fails_a_writer() {
    let (world, plain) = with_and_without().await;
    let (mut alterations, mut writes) = (0, 0);
    for (table, watched) in WATCHED {
        let columns = columns_of(&world.admin, table).await;
        for (column, kind) in &columns {
            let mut ways = vec![
                format!("alter table {table} rename {column} to renamed"),
                format!("alter table {table} drop column {column}"),
                format!("alter table {table} alter {column} type jsonb using to_jsonb({column})"),
            ];
            ways.push(if kind == "text" {
                format!("alter table {table} alter {column} type varchar(300)")
            } else {
                format!("alter table {table} alter {column} type text using {column}::text")
            });
            if !is_indexed(&world.admin, table, column).await {
                // Without equality: nothing can be compared.
                ways.push(format!(
                    "alter table {table} alter {column} type json using to_json({column})"
                ));
            }
            for (number, way) in ways.iter().enumerate() {
                let rest = columns.iter().map(|(name, _)| name).filter(|name| *name != column);
                let altered = match number {
                    0 => Some("renamed".to_owned()),
                    1 => None,
                    _ => Some(column.clone()),
                };
                let present: Vec<String> = rest.cloned().chain(altered.clone()).collect();
                let mut read: Vec<String> = watched.iter().map(|name| (*name).to_owned()).collect();
                if watched.contains(&column.as_str()) {
                    read.extend(altered);
                }
                let all = statements(table, &present, &read);
                let texts: Vec<String> = all.iter().map(|(text, _)| text.clone()).collect();
                let without = tried(&plain, way, &texts).await;
                let with = tried(&world.admin, way, &texts).await;
                assert_eq!(with.refused, without.refused, "{way}");
                alterations += usize::from(without.refused.is_none());
                for (index, (failed, (text, must_mark))) in
                    without.failed.iter().zip(&all).enumerate()
                {
                    assert_eq!(&with.failed[index], failed, "{way}; {text}");
                    if failed.is_none() {
                        writes += 1;
                        let nothing = with.marked[index].as_deref() == Some("nothing");
                        assert!(!nothing || !must_mark, "no mark: {way}; {text}");
                    }
                }
            }
        }
    }
    assert!(alterations > 350 && writes > 3_000, "{alterations} alterations, {writes} writes");
}

/// Without any alteration the triggers can tell what changed.
#[tokio::test]
async fn only_a_truncated_table_marks_everything() {
    let (world, _) = with_and_without().await;
    for (table, watched) in WATCHED {
        let watched: Vec<String> = watched.iter().map(|name| (*name).to_owned()).collect();
        let all = statements(table, &watched, &watched);
        let texts: Vec<String> = all.into_iter().map(|(text, _)| text).collect();
        let with = tried(&world.admin, "select 1", &texts).await;
        for (mark, text) in with.marked.iter().zip(&texts) {
            let expected = if text.starts_with("truncate") { "everything" } else { "something" };
            assert_eq!(mark.as_deref(), Some(expected), "{text}");
        }
    }
}

#[tokio::test]
async fn no_loss_of_an_object_of_gatepost_fails_a_writer() {
    let (world, plain) = with_and_without().await;
    let query = "
        select format('drop function %s cascade', oid::regprocedure) from pg_proc
        where pronamespace = 'gatepost'::regnamespace
        union all
        select format('alter function %s rename to lost', oid::regprocedure) from pg_proc
        where pronamespace = 'gatepost'::regnamespace
        union all
        select format('revoke all on function %s from gatepost_owner', oid::regprocedure) from pg_proc
        where pronamespace = 'gatepost'::regnamespace
        union all
        select format('alter function %s reset all', oid::regprocedure) from pg_proc
        where pronamespace = 'gatepost'::regnamespace
        union all
        select format('drop %s %s cascade', case relkind when 'r' then 'table' else 'view' end, oid::regclass)
        from pg_class where relnamespace = 'gatepost'::regnamespace and relkind in ('r', 'v')
        union all
        select format('alter table %s rename to lost', oid::regclass)
        from pg_class where relnamespace = 'gatepost'::regnamespace and relkind in ('r', 'v')
        union all
        select format('revoke all on %s from gatepost_owner', oid::regclass)
        from pg_class where relnamespace in ('gatepost'::regnamespace, 'public'::regnamespace)
            and relkind in ('r', 'v')
        union all
        select format('drop index %s', indexrelid::regclass) from pg_index
        join pg_class c on c.oid = indexrelid
        where c.relname like 'gatepost%' or (c.relnamespace = 'gatepost'::regnamespace and not indisprimary)
        union all
        select format('drop type %s cascade', oid::regtype) from pg_type
        where typnamespace = 'gatepost'::regnamespace and typtype in ('e', 'c')
            and (typrelid = 0 or (select relkind from pg_class where oid = typrelid) = 'c')
        union all
        select format('drop trigger %I on %s', tgname, tgrelid::regclass) from pg_trigger
        where tgname like 'gatepost%'
        union all
        select unnest(array[
            'revoke all on schema gatepost from gatepost_owner',
            'revoke all on schema public from gatepost_owner, public',
            'alter schema gatepost rename to lost',
            'drop schema gatepost cascade',
            'reassign owned by gatepost_owner to current_user',
            'reassign owned by gatepost_owner to gatepost_gateway',
            'alter table gatepost.change rename kind to lost'
        ])";
    let rows = world.admin.query(query, &[]).await.unwrap();
    let losses: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut all = Vec::new();
    for (table, watched) in WATCHED {
        let last: Vec<String> = watched.last().iter().map(|name| (**name).to_owned()).collect();
        all.extend(statements(table, &last, &last).into_iter().map(|(text, _)| text));
    }
    let without = tried(&plain, "select 1", &all).await;
    assert!(without.failed.iter().all(Option::is_none), "{:?}", without.failed);
    for loss in &losses {
        let with = tried(&world.admin, loss, &all).await;
        if let Some(refused) = &with.refused {
            // Triggers' functions run on behalf of triggers; our own tables depend on each other.
            assert!(loss.starts_with("drop ") && refused.contains("depend"), "{loss}: {refused}");
        }
        for (failed, text) in with.failed.iter().zip(&all) {
            assert_eq!(failed, &None, "{loss}; {text}");
        }
    }
    assert!(losses.len() > 250, "{}", losses.len());
}

/// Whatever a writer's session finds by its names, the triggers find the server's, and can tell what changed.
#[tokio::test]
async fn writer_with_a_broken_search_path_neither_fails_nor_hides_what_changed() {
    let (world, plain) = with_and_without().await;
    const BROKEN: &str = "
        create schema shadow;
        grant usage on schema shadow to public;
        create function shadow.wrong(uuid, uuid) returns boolean language plpgsql as
            $$ begin raise exception 'an operator of schema shadow is used'; end $$;
        create operator shadow.= (leftarg = uuid, rightarg = uuid, function = shadow.wrong);
        create function shadow.pg_notify(text, text) returns void language plpgsql as
            $$ begin raise exception 'a function of schema shadow is used'; end $$;
        create domain shadow.uuid as pg_catalog.text check (value = 'wrong');
        create domain shadow.text as pg_catalog.int4";
    for client in [&world.admin, &plain] {
        client.batch_execute(BROKEN).await.unwrap();
    }
    for path in ["nowhere", "''", "shadow, pg_catalog"] {
        let set = format!("set search_path = {path}");
        for client in [&world.admin, &plain] {
            client.batch_execute(&set).await.unwrap();
        }
        for (table, watched) in WATCHED {
            let watched: Vec<String> = watched.iter().map(|name| (*name).to_owned()).collect();
            let all = statements(&format!("public.{table}"), &watched, &watched);
            let texts: Vec<String> = all.into_iter().map(|(text, _)| text).collect();
            let without = tried(&plain, "select 1", &texts).await;
            let with = tried(&world.admin, "select 1", &texts).await;
            assert_eq!(with.failed, without.failed, "{path}: {table}");
            for ((mark, text), failed) in with.marked.iter().zip(&texts).zip(&with.failed) {
                let expected =
                    if text.starts_with("truncate") { "everything" } else { "something" };
                assert!(
                    failed.is_some() || mark.as_deref() == Some(expected),
                    "{path}: {text}: {mark:?}"
                );
            }
        }
    }
    // Without a path of its own, a trigger finds what the session finds, and cannot tell what changed.
    let update = ["update public.devices set name = name || '!'".to_owned()];
    let unprotected = "alter function gatepost.devices_updated() reset search_path";
    let with = tried(&world.admin, unprotected, &update).await;
    assert_eq!((&*with.failed, with.marked[0].as_deref()), (&[None][..], Some("everything")));
}

/// A role that lost the right to write marks is reported, while writers go on.
#[tokio::test]
async fn marks_that_cannot_be_written_are_reported() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    world.run("revoke insert on gatepost.change from gatepost_owner").await;
    world.run("update devices set status = 'revoked'").await;
    let unwatched = world.store.attach(true).await.unwrap().unwatched;
    assert_eq!(unwatched.len(), WATCHED.len(), "{unwatched:?}");
}

#[tokio::test]
async fn nothing_of_gatepost_depends_on_a_column_of_the_control_plane() {
    let world = World::new().await;
    insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    insert_user(&world.admin, "bob").await;
    let dependents = "select count(*) from pg_depend d
        join pg_class t on t.oid = d.refobjid and t.relnamespace = 'public'::regnamespace and t.relkind = 'r'
        where d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0
            and (d.classid in ('pg_rewrite'::regclass, 'pg_proc'::regclass)
                or (d.classid = 'pg_class'::regclass and d.deptype = 'n'))";
    assert_eq!(world.count(dependents).await, 0);
    let computed = "select count(*) from pg_index i join pg_class c on c.oid = i.indexrelid
        where c.relname like 'gatepost\\_%' and i.indexprs is not null";
    assert_eq!(world.count(computed).await, 0);
    let store = Store::connect(&options(&world.role, &world.database)).unwrap();
    store.snapshot().await.unwrap();
}
