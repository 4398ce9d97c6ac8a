//! A restored database, or one that lost objects of Gatepost: `migrate` makes it whole again.

use gatepost::store::{
    ConnectOptions, CreateRole, Read, Store, StoreError, grant, migrate, pending,
};

use crate::postgres::{Cluster, Setup, bin};
use crate::world::{World, options};

/// What `pg_dump` with these options prints, as a file.
pub fn dump(cluster: &Cluster, database: &str, options: &[&str]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let status = std::process::Command::new(bin("pg_dump"))
        .args(["-h", cluster.dir.to_str().unwrap(), "-p", &cluster.port.to_string()])
        .args(["-U", "postgres", "-f", file.path().to_str().unwrap()])
        .args(options)
        .arg(database)
        .status()
        .unwrap();
    assert!(status.success(), "pg_dump {options:?}");
    file
}

/// Restores a dump as an operator does who lets errors about roles pass.
fn restore(cluster: &Cluster, database: &str, dump: &tempfile::NamedTempFile) {
    let output = std::process::Command::new(bin("psql"))
        .args(["-h", cluster.dir.to_str().unwrap(), "-p", &cluster.port.to_string()])
        .args(["-X", "-q", "-U", "postgres", "-d", database, "-f", dump.path().to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn migrate_repairs_a_dump_restored_without_owners_and_rights() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let cluster = Cluster::shared();
    let file = dump(cluster, &world.database, &["--no-owner", "--no-acl"]);
    let restored = cluster.database(None);
    restore(cluster, &restored, &file);
    let agent = Store::connect(&options(&world.role, &restored)).unwrap();
    let wrong = agent.wrong_rights().await.unwrap();
    assert!(
        wrong.contains(&"schema gatepost belongs to postgres instead of gatepost_owner".into())
    );
    assert!(wrong.contains(&"function gatepost.me() is open to PUBLIC".into()), "{wrong:?}");
    let error = agent.hello().await.unwrap_err().to_string();
    assert!(error.ends_with("run `gatepost migrate`"), "{error}");

    let admin = options("postgres", &restored);
    let names: Vec<_> = pending(&admin).await.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["prepare", "access", "triggers"]);
    migrate(&admin).await.unwrap();
    assert_eq!(pending(&admin).await.unwrap(), []);
    assert!(agent.wrong_rights().await.unwrap().is_empty());
    assert_eq!(agent.snapshot().await.unwrap().0.peers.len(), 1);
}

/// The new server has none of the roles that the dump names.
#[tokio::test]
async fn migrate_and_grant_repair_a_dump_restored_on_another_server() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    for extra in [&[][..], &["--no-owner", "--no-acl"]] {
        let file = dump(Cluster::shared(), &world.database, extra);
        let other = Cluster::start(&Setup::default());
        let restored = other.database(None);
        restore(&other, &restored, &file);
        let admin = ConnectOptions::new(other.socket_url("postgres", &restored));
        let role = &world.role;
        let refused = grant(&admin, "g1", role, &CreateRole::IfAbsent(None)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Unmigrated { .. }), "{refused}");
        migrate(&admin).await.unwrap();
        grant(&admin, "g1", role, &CreateRole::IfAbsent(None)).await.unwrap();
        assert_eq!(pending(&admin).await.unwrap(), []);
        let agent =
            Store::connect(&ConnectOptions::new(other.socket_url(role, &restored))).unwrap();
        assert_eq!(agent.snapshot().await.unwrap().0.peers.len(), 1, "{extra:?}");
        assert!(agent.attach(true).await.unwrap().unwatched.is_empty());
    }
}

/// Each of our objects, one after the other, with what hangs on it.
#[tokio::test]
async fn migrate_makes_lost_objects_of_gatepost_again() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let admin = options("postgres", &world.database);
    let query = "
        select 'function ' || oid::regprocedure from pg_proc where pronamespace = 'gatepost'::regnamespace
        union all
        select case relkind when 'r' then 'table ' else 'view ' end || oid::regclass
        from pg_class where relnamespace = 'gatepost'::regnamespace and relkind in ('r', 'v')
            and relname <> 'schema_history'
        union all
        select 'type ' || oid::regtype from pg_type
        where typnamespace = 'gatepost'::regnamespace and typtype in ('e', 'c')
            and (typrelid = 0 or (select relkind from pg_class where oid = typrelid) = 'c')";
    let describe = "select count(*), md5(string_agg(o, ',' order by o)) from (
        select pg_get_functiondef(oid) as o from pg_proc where pronamespace = 'gatepost'::regnamespace
        union all
        select attrelid::regclass::text || attnum || attname || atttypid::regtype from pg_attribute
        where attrelid in (select oid from pg_class where relnamespace = 'gatepost'::regnamespace)
            and attnum > 0
    ) s";
    let described = async || -> (i64, String) {
        let row = world.admin.query_one(describe, &[]).await.unwrap();
        (row.get(0), row.get(1))
    };
    let whole = described().await;
    let objects = world.admin.query(query, &[]).await.unwrap();
    let objects: Vec<String> = objects.iter().map(|row| row.get(0)).collect();
    assert!(objects.len() > 60, "{}", objects.len());
    // Many at a time, because each migration takes a while.
    for objects in objects.chunks(9) {
        let cursor = world.store.snapshot().await.unwrap().1;
        for object in objects.iter().filter(|object| *object != "type gatepost.kind") {
            // It may be gone with the one before.
            let (kind, name) = object.split_once(' ').unwrap();
            world.run(&format!("drop {kind} if exists {name} cascade")).await;
        }
        let names: Vec<_> = pending(&admin).await.unwrap().into_iter().map(|it| it.name).collect();
        assert!(names.contains(&"repair".to_owned()), "{names:?}");
        migrate(&admin).await.unwrap();
        assert_eq!(pending(&admin).await.unwrap(), [], "{objects:?}");
        assert_eq!(described().await, whole, "{objects:?}");
        grant(&admin, "g1", &world.role, &CreateRole::No).await.unwrap();
        assert!(world.store.wrong_rights().await.unwrap().is_empty());
        assert!(world.store.attach(true).await.unwrap().unwatched.is_empty());
        // What was written meanwhile left no mark.
        let tables = objects.iter().any(|object| object.starts_with("table "));
        assert!(!tables || matches!(world.read(&cursor).await, Read::Everything(_)));
    }
}

#[tokio::test]
async fn migrate_says_what_to_do_where_it_cannot_make_again_what_was_lost() {
    for (loss, way_out) in [
        (
            "alter table gatepost.change drop column kind cascade",
            "drop table gatepost.change cascade",
        ),
        ("drop type gatepost.kind cascade", "drop table gatepost.change cascade"),
        ("drop table gatepost.schema_history", "drop schema gatepost cascade"),
    ] {
        let world = World::new().await;
        let admin = options("postgres", &world.database);
        world.run(loss).await;
        let error = migrate(&admin).await.unwrap_err().to_string();
        assert!(error.contains(way_out), "{error}");
        world.run(way_out).await;
        migrate(&admin).await.unwrap();
        grant(&admin, "g1", &world.role, &CreateRole::No).await.unwrap();
        world.store.snapshot().await.unwrap();
        assert!(world.store.attach(true).await.unwrap().unwatched.is_empty());
    }
}

/// What docs/security.md says that a thief of a dump learns.
#[tokio::test]
async fn a_dump_tells_names_keys_and_addresses_and_no_login() {
    let world = World::new().await;
    world.peer(world.gateway, "ann").await;
    let role = format!("{}_g2", world.database);
    let create = CreateRole::IfAbsent(Some("a password of the role".to_owned().into()));
    grant(&options("postgres", &world.database), "g1", &role, &create).await.unwrap();
    let envelope = "gp1.k1.AAAA";
    let sealed = format!("update wireguard_peers set preshared_key_ciphertext = '{envelope}'");
    world.run(&sealed).await;
    let file = dump(Cluster::shared(), &world.database, &[]);
    let text = std::fs::read_to_string(file.path()).unwrap();
    for told in ["ann", "key of g1", "10.8.", "vpn.example.net:51820", envelope] {
        assert!(text.contains(told), "{told}");
    }
    for hidden in ["SCRAM-SHA-256$", "CREATE ROLE", "a password of the role"] {
        assert!(!text.contains(hidden), "{hidden}");
    }
    let verifier = "select rolpassword like 'SCRAM%' from pg_authid where rolname = ";
    assert_eq!(Cluster::shared().psql("postgres", &format!("{verifier}'{role}'")), "t");
}
