//! What keeps a thousand gateways cheap: answers that are worked out once, and reports that are merged together.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::Client;
use uuid::Uuid;

use gatepost::store::{ConnectOptions, CreateRole, Store, grant};

use crate::world::{World, client, insert_gateway, options};

const SYNCED: &str = "select count(*) from gateways where last_sync_at is not null";
/// A server that recovers from a crash answers within this time.
const RECOVERS_WITHIN: Duration = Duration::from_secs(30);

/// A login of a bell that rings.
async fn bell(world: &World) -> Client {
    let role = format!("{}_bell", world.database);
    world.run(&format!("create role {role} login in role gatepost_bell")).await;
    let bell = client(&role, &world.database).await;
    bell.execute("select gatepost.hold_bell('a')", &[]).await.unwrap();
    // A bell that merges asks this.
    waiting(&bell).await;
    bell
}

/// Gateways whose reports wait.
async fn waiting(bell: &Client) -> Vec<Uuid> {
    bell.query_one("select array(select gatepost.unmerged())", &[]).await.unwrap().get(0)
}

async fn merge(bell: &Client, kind: &str) -> i32 {
    let query = format!("select gatepost.merge_{kind}(100)");
    bell.query_one(&query, &[]).await.unwrap().get(0)
}

/// A second gateway, with its agent's store.
async fn second(world: &World) -> (Uuid, Store) {
    let gateway = insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    let role = format!("{}_g2", world.database);
    let create = CreateRole::IfAbsent(None);
    grant(&options("postgres", &world.database), "g2", &role, &create).await.unwrap();
    let url = world.url.replace(&world.role, &role);
    (gateway, Store::connect(&ConnectOptions::new(url)).unwrap())
}

#[tokio::test]
async fn proofs_of_all_gateways_are_merged_together_but_for_what_is_refused_or_locked() {
    let world = World::new().await;
    let (g2, other) = second(&world).await;
    let bell = bell(&world).await;
    let prove = async || {
        world.run("update gateways set last_sync_at = null").await;
        for store in [&world.store, &other] {
            assert!(store.synced(SystemTime::now()).await.unwrap());
        }
    };
    prove().await;
    assert_eq!(merge(&bell, "proofs").await, 2);
    assert_eq!(world.count(SYNCED).await, 2);
    assert_eq!(merge(&bell, "proofs").await, 0);
    assert_eq!(waiting(&bell).await, [] as [Uuid; 0]);

    prove().await;
    let portal = client("postgres", &world.database).await;
    portal.batch_execute("begin; select from gateways where name = 'g1' for update").await.unwrap();
    assert_eq!(merge(&bell, "proofs").await, 1, "it waits for no lock");
    portal.batch_execute("rollback").await.unwrap();
    assert_eq!(merge(&bell, "proofs").await, 1);

    prove().await;
    world
        .run(
            "create function refuse() returns trigger language plpgsql as
                 $$ begin raise exception 'not %', new.name; end $$;
             create trigger refuse before update of last_sync_at on gateways
                 for each row when (new.name = 'g2') execute function refuse()",
        )
        .await;
    assert_eq!(merge(&bell, "proofs").await, 1);
    assert_eq!(waiting(&bell).await, [g2]);
    let alone = "select * from gatepost.merge_gateway($1)";
    assert_eq!(bell.query(alone, &[&g2]).await.unwrap().len(), 1, "it says why");
    assert_eq!(merge(&bell, "proofs").await, 0, "a refused row is not tried with others");
    let why = other.prove(None).await.unwrap().merged_by_bell.unwrap();
    assert!(why.len() == 1 && why[0].why.contains("not g2"), "{why:?}");
    world.run("drop trigger refuse on gateways").await;
    assert_eq!(bell.query(alone, &[&g2]).await.unwrap().len(), 0);
    assert_eq!(world.count(SYNCED).await, 2);
    assert_eq!(other.prove(None).await.unwrap().merged_by_bell, Some(vec![]));
}

#[tokio::test]
async fn audit_entries_of_all_gateways_are_merged_together_but_for_what_is_refused() {
    let world = World::new().await;
    let (g2, _) = second(&world).await;
    let bell = bell(&world).await;
    let role = format!("{}_g2", world.database);
    let audit = async |message: &str| {
        for role in [&world.role, &role] {
            let entry = format!(
                r#"select gatepost.audit('[{{"event_type": "peer.connected", "entity_type": "peer",
                    "status": "success", "message": "{message} {role}"}}]')"#
            );
            client(role, &world.database).await.batch_execute(&entry).await.unwrap();
        }
    };
    audit("one").await;
    assert_eq!(merge(&bell, "events").await, 2);
    assert_eq!(merge(&bell, "events").await, 0);
    let merged = "select count(*) from audit_logs where event_type = 'peer.connected'";
    assert_eq!(world.count(merged).await, 2);
    world
        .run(&format!("alter table audit_logs add check (message not like '%{role}') not valid"))
        .await;
    audit("two").await;
    assert_eq!(merge(&bell, "events").await, 1);
    assert_eq!(waiting(&bell).await, [g2]);
    let alone = "select why, since from gatepost.merge_gateway($1)";
    let refused = bell.query(alone, &[&g2]).await.unwrap();
    let since = refused[0].get::<_, Option<SystemTime>>("since");
    assert!(refused.len() == 1 && since.is_some(), "the table refuses all of them: {refused:?}");
    audit("three").await;
    assert_eq!(merge(&bell, "events").await, 1, "a refused entry keeps no other waiting");
    assert_eq!(world.count(merged).await, 4);
}

#[tokio::test]
async fn without_a_bell_that_merges_an_agent_merges_itself() {
    let world = World::new().await;
    let proven = world.store.prove(Some(SystemTime::now())).await.unwrap();
    assert_eq!((proven.taken, proven.merged_by_bell), (true, None));
    let bell = bell(&world).await;
    assert_eq!(world.store.prove(None).await.unwrap().merged_by_bell, Some(vec![]));
    bell.execute("select gatepost.leave_bell('a')", &[]).await.unwrap();
    assert_eq!(world.store.prove(None).await.unwrap().merged_by_bell, None);
}

#[tokio::test]
async fn what_a_bell_found_unannounced_is_not_believed_once_a_trigger_was_altered() {
    let world = World::new().await;
    let bell = bell(&world).await;
    let unwatched = async || world.store.attach(false).await.unwrap().unwatched;
    bell.execute("select gatepost.look_for_unwatched()", &[]).await.unwrap();
    assert_eq!(unwatched().await, [""; 0]);
    world.run("update gatepost.merger set unwatched = '{users}'").await;
    assert_eq!(unwatched().await, ["users"], "it is what the bell found");
    world.run("alter table devices disable trigger gatepost_update").await;
    assert_eq!(unwatched().await, ["devices"]);
    world.run("alter table devices enable always trigger gatepost_update").await;
    world.run("update gatepost.merger set triggers = gatepost.triggers_version()").await;
    assert_eq!(unwatched().await, ["users"]);
    world.run("update gatepost.merger set unwatched_at = now() - interval '16 seconds'").await;
    assert_eq!(unwatched().await, [""; 0], "it is too old");
}

#[tokio::test]
async fn a_heartbeat_proves_and_attaches_in_one_statement() {
    let world = World::new().await;
    let (_, other) = second(&world).await;
    other.attach(false).await.unwrap();
    let (proven, attached) =
        world.store.heartbeat(Some(SystemTime::now()), Some(false)).await.unwrap();
    assert_eq!((proven.taken, proven.merged_by_bell), (true, None));
    assert_eq!(attached.unwrap().gateways, 2);
    world.store.merge().await.unwrap();
    assert_eq!(world.count(SYNCED).await, 1);
    let bell = bell(&world).await;
    bell.execute("select gatepost.look_for_unwatched()", &[]).await.unwrap();
    world.run("update gatepost.merger set gateways = 7").await;
    let (proven, attached) = world.store.heartbeat(None, Some(false)).await.unwrap();
    assert_eq!((proven.taken, proven.merged_by_bell), (false, Some(vec![])));
    assert_eq!(attached.unwrap().gateways, 7, "it is what the bell counted");
    world.run("update gatepost.merger set unwatched_at = now() - interval '16 seconds'").await;
    assert_eq!(other.attach(false).await.unwrap().gateways, 2, "it is too old");
}

#[tokio::test]
async fn a_proof_is_taken_although_the_gateway_cannot_be_attached() {
    let world = World::new().await;
    world.run("alter table gatepost.attached add check (not listens) not valid").await;
    let (proven, attached) =
        world.store.heartbeat(Some(SystemTime::now()), Some(true)).await.unwrap();
    assert!(proven.taken && attached.is_none());
}

#[tokio::test]
async fn a_full_read_brings_the_marks_that_the_bell_addressed_to_its_gateway_and_those_that_it_did_not_see()
 {
    let world = World::new().await;
    let (g2, _) = second(&world).await;
    let mark = async |kind: &str, of: &str| {
        let id = Uuid::from_u128(fastrand::u128(..));
        let made = "insert into gatepost.change (gateway_id, kind, ids)";
        world.run(&format!("{made} values ({of}, '{kind}', array['{id}'::uuid])")).await;
        id
    };
    let brought = async || {
        let (.., marks) = world.store.snapshot_with_marks(None).await.unwrap();
        BTreeSet::from_iter(marks.into_iter().flat_map(|mark| mark.ids.unwrap_or_default()))
    };
    let before = mark("device", "gatepost.nobody()").await;
    let bell = bell(&world).await;
    // The first call begins to address, the second one addresses.
    let ring = "select * from gatepost.ring('a')";
    bell.execute(ring, &[]).await.unwrap();
    let addressed = mark("device", "gatepost.nobody()").await;
    bell.execute(ring, &[]).await.unwrap();
    let (own, foreign) = (
        mark("device", "(select id from gateways where name = 'g1')").await,
        mark("device", &format!("'{g2}'")).await,
    );
    let unseen = mark("device", "gatepost.nobody()").await;
    let found = brought().await;
    for id in [before, own, unseen] {
        assert!(found.contains(&id), "{found:?}");
    }
    for id in [addressed, foreign] {
        assert!(!found.contains(&id), "it concerns no peer of this gateway: {found:?}");
    }
    world.run("update gatepost.addressed set history = 'another'").await;
    assert!(
        brought().await.contains(&addressed),
        "no bell has addressed the marks of this history"
    );
}

/// The transaction that inserts the row may stay open for hours.
#[tokio::test]
async fn an_open_transaction_that_remembers_the_server_holds_up_no_other() {
    let world = World::new().await;
    world.run("delete from gatepost.server").await;
    let stolen = client(&world.role, &world.database).await;
    stolen.batch_execute("begin; select gatepost.follow(false)").await.unwrap();
    let (_, other) = second(&world).await;
    other.attach(false).await.unwrap();
    let known = "select count(*) from gatepost.server";
    assert_eq!(world.count(known).await, 1, "of this one, whose transaction has ended");
}

/// The server that recovers may have lost its last transactions, though it is the same process.
#[tokio::test]
async fn a_crash_of_the_server_is_another_history_and_empties_what_was_remembered() {
    let world = World::alone().await;
    world.store.attach(false).await.unwrap();
    let before = world.cursor().await.epoch;
    assert_eq!(before, world.cursor().await.epoch);
    let known = "select count(*) from gatepost.server";
    assert_eq!(world.count(known).await, 1);
    let pid: i32 = world.admin.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let after = epoch_again(&world.store).await;
    assert_ne!(after, before);
    let known = || world.cluster().psql(&world.database, known).trim().to_owned();
    assert_eq!(known(), "0");
    world.store.attach(false).await.unwrap();
    assert_eq!(known(), "1");
    assert_eq!(world.cursor().await.epoch, after, "what is remembered is what was worked out");
}

async fn epoch_again(store: &Store) -> String {
    let asked = async {
        loop {
            match store.snapshot().await {
                Ok((_, cursor)) => return cursor.epoch,
                // The server announces no end of its recovery.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(RECOVERS_WITHIN, asked).await.unwrap()
}
