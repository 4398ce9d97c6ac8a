//! Several hosts with one gateway's row.

use std::time::{Duration, SystemTime};

use gatepost::reconcile::status::{State, Status};
use gatepost::store::{ConnectOptions, Host, Store};

use crate::agent::{Memory, agent, good_peer, options_with};
use crate::fault::row;
use crate::running::Running;
use crate::world::World;

fn store(world: &World, host: Host) -> Store {
    Store::connect(&ConnectOptions { host, ..ConnectOptions::new(&*world.url) }).unwrap()
}

/// Moves what the hosts said into the past, by more than a lease.
async fn let_leases_end(world: &World) {
    world
        .run(
            "update gatepost.host set seen_at = seen_at - gatepost.lease() - interval '1 second',
                since = since - gatepost.lease() - interval '1 second'",
        )
        .await;
}

async fn synced_at(world: &World) -> Option<SystemTime> {
    world.store.merge().await.unwrap();
    let read = "select last_sync_at from gateways where name = 'g1'";
    world.admin.query_one(read, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn last_sync_at_is_the_oldest_proof_of_all_hosts() {
    let world = World::new().await;
    let now = world.store.snapshot().await.unwrap().0.taken_at;
    let before = |secs| now - Duration::from_secs(secs);
    let one = store(&world, Host::new("machine 1", "boot", "one"));
    let two = store(&world, Host::new("machine 2", "boot", "two"));
    assert!(one.prove(Some(before(60))).await.unwrap().taken);
    assert_eq!(synced_at(&world).await, Some(before(60)));
    // The second one has proven nothing yet.
    let proven = two.prove(None).await.unwrap();
    assert!(!proven.taken);
    assert_eq!(proven.hosts.leader.as_deref(), Some("one"));
    assert!(one.prove(Some(before(30))).await.unwrap().hosts.leader.is_none());
    assert_eq!(synced_at(&world).await, Some(before(60)));
    two.prove(Some(before(40))).await.unwrap();
    assert_eq!(synced_at(&world).await, Some(before(40)));
    let awaited =
        "select count(*) from gatepost.await_sync(now() - interval '35 s', '0') where is_proven";
    assert_eq!(world.count(awaited).await, 0);

    // To be silent is not to leave: its kernel may still pass whom the database has revoked.
    let_leases_end(&world).await;
    one.prove(Some(before(10))).await.unwrap();
    assert_eq!(synced_at(&world).await, Some(before(40)));
    let hosts = one.hosts().await.unwrap();
    let names: Vec<_> = hosts.iter().map(|host| (&*host.name, host.leads)).collect();
    assert_eq!(names, [("one", true), ("two", false)]);
    two.leave().await.unwrap();
    assert_eq!(synced_at(&world).await, Some(before(10)));
}

#[tokio::test]
async fn host_that_was_started_again_is_the_same_host_and_a_clone_is_not() {
    let world = World::new().await;
    let now = world.store.snapshot().await.unwrap().0.taken_at;
    let before = |secs| now - Duration::from_secs(secs);
    // An agent of the version before, which names no host, then this version's.
    world.store.prove(Some(before(90))).await.unwrap();
    let first = store(&world, Host::new("machine", "boot 1", "fra-1"));
    assert_eq!(first.prove(Some(before(80))).await.unwrap().hosts.others, [""; 0]);
    // The host was started again.
    let second = store(&world, Host::new("machine", "boot 2", "fra-1"));
    let_leases_end(&world).await;
    let proven = second.prove(Some(before(70))).await.unwrap();
    assert_eq!((proven.hosts.others, proven.hosts.leader), (vec![], None));
    assert_eq!(synced_at(&world).await, Some(before(70)));
    // Both report within one lease: the machine was copied.
    for (store, is_led) in [(&first, true), (&second, false), (&first, true)] {
        let hosts = store.prove(Some(before(60))).await.unwrap().hosts;
        assert_eq!((hosts.leader.is_some(), hosts.others.len()), (is_led, 1));
    }
    assert_eq!(second.hosts().await.unwrap().len(), 2);
}

#[tokio::test]
async fn second_host_says_so_and_holds_last_sync_back() {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let of_first = agent(&world, Memory::default()).await;
    let store_of = |name: &str| store(&world, Host::new(name, "boot", name));
    let quick = |name: &str, memory: &Memory| {
        let mut options = options_with(store_of(name), memory.clone());
        options.machine.timing.heartbeat = Duration::from_millis(200);
        options
    };
    drop(of_first);
    let (first_memory, second_memory) = (Memory::default(), Memory::default());
    let mut first = Running::start(quick("one", &first_memory));
    first.waits_for("ready", |status| status.state == State::Ready).await;
    let mut second = Running::start(quick("two", &second_memory));
    let is_second = |status: &Status| {
        matches!(&status.state, State::NotReady { why } if why.starts_with("host one reports"))
            && status.reports.led_by.as_deref() == Some("one")
    };
    second.waits_for("the second one says so", is_second).await;
    let sees_it = |status: &Status| {
        status.state == State::Ready && status.warnings.iter().any(|it| it.contains("host two"))
    };
    first.waits_for("the first one sees it", sees_it).await;
    // Both serve, and one of them audits.
    assert_eq!((first_memory.state().peers.len(), second_memory.state().peers.len()), (1, 1));
    world.run("update devices set status = 'revoked', revoked_at = now()").await;
    second.waits_for("revoked", |status| status.peers.in_kernel == 0).await;
    first.waits_for("revoked", |status| status.peers.in_kernel == 0).await;
    first.stop().await;
    second.stop().await;
    world.store.merge().await.unwrap();
    let audited = "select count(*) from audit_logs where event_type = 'peer.revoked'";
    assert_eq!(world.count(audited).await, 1);
    let oldest = "select count(*) from gateways g where g.name = 'g1' and g.last_sync_at = (
        select min(h.proven_at) from gatepost.host h where h.gateway_id = g.id
        having count(*) >= 2 and bool_and(h.proven_at is not null))";
    assert_eq!(world.count(oldest).await, 1, "last_sync_at is the older proof");
    row(
        "two hosts with one gateway row",
        "the second is not ready and named; last_sync_at is the older proof",
        None,
    );
}
