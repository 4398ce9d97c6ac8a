//! Notifications that are lost or too many, and rows that are gone or wrong.

use std::sync::Arc;
use std::time::Duration;

use gatepost::model::{DesiredState, DeviceId, KeyText, PeerId, PeerRow, PublicKey, UserId};
use gatepost::reconcile::status::Status;
use gatepost::store::Listener;
use tokio::time::Instant;

use crate::agent::{Memory, agent, good_peer};
use crate::fault::{Bound, Row, row};
use crate::marks::heard;
use crate::running::Running;
use crate::test_rows::{id, local, peer_row, snapshot};
use crate::world::{World, client};

/// Within which the agent must follow, on a machine that does other things.
const BOUND: Duration = Duration::from_secs(60);

const REVOKE: &str =
    "update devices set status = 'revoked', revoked_at = now() where device_fingerprint = 'user-1'";

fn is_ready_with(status: &Status, peers: u64) -> bool {
    status.state.is_ready() && status.peers.in_kernel == peers
}

/// An agent with the peers of `user-1` and `user-2`, and someone else who hears what it hears.
struct Scene {
    world: World,
    host: Memory,
    runs: Running,
    ear: Listener,
}

impl Scene {
    /// The agent looks by itself as often as this.
    async fn start(looks_every: Duration) -> Self {
        let world = World::new().await;
        for number in [1, 2] {
            good_peer(&world, number).await;
        }
        let host = Memory::default();
        let mut options = agent(&world, host.clone()).await;
        options.machine.timing.safety_poll_interval = looks_every;
        // A heartbeat looks, too.
        options.machine.timing.heartbeat = Duration::from_secs(600);
        let mut runs = Running::start(options);
        runs.waits_for("ready", |status| is_ready_with(status, 2)).await;
        let ear = world.store.listen(&world.store.hello().await.unwrap()).await.unwrap();
        Self { world, host, runs, ear }
    }

    /// From a moment after the revocation until only the other peer is left.
    async fn until_revoked(&mut self) -> Duration {
        let since = Instant::now();
        self.runs.waits_for("followed", |status| is_ready_with(status, 1)).await;
        assert_eq!(self.host.state().peers.len(), 1);
        let took = since.elapsed();
        assert!(took < BOUND, "{took:?}");
        took
    }
}

#[tokio::test]
async fn a_revocation_whose_notification_is_lost_is_found_at_the_next_look() {
    let mut scene = Scene::start(Duration::from_secs(1)).await;
    let silently = format!(
        "begin; update gatepost.attached set listens = false; {REVOKE};
         update gatepost.attached set listens = true; commit"
    );
    scene.world.run(&silently).await;
    assert_eq!(heard(&mut scene.ear).await, 0, "the notification was not lost");
    let took = scene.until_revoked().await;
    scene.runs.stop().await;
    row(
        "notification of a revocation lost",
        "found when the agent looks by itself: here after 1 s, by default after 10 s",
        Some(took),
    );
}

/// Nothing but the end of the session tells this agent that it may have missed something.
#[tokio::test]
async fn a_revocation_while_the_listening_session_ends_is_read_when_there_is_another() {
    let mut scene = Scene::start(Duration::from_secs(600)).await;
    scene.world.run(&format!("begin; {REVOKE}")).await;
    let sessions = format!(
        "select count(*) from pg_stat_activity where case when usename = '{}' \
         and application_name = 'gatepost listen' then pg_terminate_backend(pid) end",
        scene.world.role
    );
    assert_eq!(scene.world.count(&sessions).await, 2, "the agent's session and that of the test");
    assert!(scene.ear.next().await.is_err(), "the session goes on");
    scene.world.run("commit").await;
    let took = scene.until_revoked().await;
    scene.runs.stop().await;
    row(
        "session that listens ended by the server, while a revocation is committed",
        "read as soon as the agent listens again",
        Some(took),
    );
}

/// Of commits that each concern this gateway.
const STORM: usize = 1_000;

#[tokio::test]
async fn a_storm_of_notifications_holds_up_no_revocation() {
    let mut scene = Scene::start(Duration::from_secs(600)).await;
    let writer = client("postgres", &scene.world.database).await;
    let storm = async {
        loop {
            let commits = "do $$ begin
                for n in 1..100 loop
                    update devices set name = 'n' || n where device_fingerprint = 'user-2';
                    commit;
                end loop;
            end $$";
            writer.batch_execute(commits).await.unwrap();
        }
    };
    let revocation = async {
        let mut notifications = 0;
        while notifications < STORM {
            notifications += scene.ear.next().await.unwrap();
        }
        scene.world.run(REVOKE).await;
        scene.until_revoked().await
    };
    let took = tokio::select! {
        () = storm => unreachable!(),
        took = revocation => took,
    };
    scene.runs.stop().await;
    row(
        "1,000 notifications, one for each commit, and no end of them",
        "a revocation among them is carried out at once",
        Some(took),
    );
}

/// More than the guard lets go at once.
const PEERS: u8 = 12;

#[tokio::test]
async fn tables_that_are_emptied_under_a_running_agent_cost_no_peer() {
    let world = World::new().await;
    for number in 1..=PEERS {
        good_peer(&world, number).await;
    }
    let apart = "update wireguard_peers p set assigned_ip = '10.8.1.0'::inet + n.number from (
        select id, row_number() over () as number from wireguard_peers) n where n.id = p.id";
    world.run(apart).await;
    let (host, mut removals) = Memory::that_keeps_all();
    let mut options = agent(&world, host.clone()).await;
    // Neither a heartbeat nor a reading that is due by itself comes in time.
    options.machine.timing.report_interval = Duration::from_secs(600);
    options.machine.timing.heartbeat = Duration::from_secs(600);
    let mut runs = Running::start(options);
    runs.waits_for("ready", |status| is_ready_with(status, PEERS.into())).await;
    let before = host.state().peers;
    world
        .run(
            "create table kept_devices as table devices; create table kept_peers as table wireguard_peers;
             truncate devices cascade",
        )
        .await;
    assert_eq!(world.count("select count(*) from wireguard_peers").await, 0);
    let held = |status: &Status| status.held_back.as_ref().map(|held| held.removals);
    runs.waits_for("held back", |status| held(status) == Some(PEERS.into())).await;
    world
        .run(
            "insert into devices select * from kept_devices;
             insert into wireguard_peers select * from kept_peers",
        )
        .await;
    let restored_at = Instant::now();
    runs.waits_for("right again", |status| {
        held(status).is_none() && is_ready_with(status, PEERS.into())
    })
    .await;
    let took = restored_at.elapsed();
    assert!(took < BOUND, "{took:?}");
    assert!(removals.try_recv().is_err(), "a peer was removed");
    assert_eq!(host.state().peers, before);
    runs.stop().await;
    row(
        "tables of devices and peers emptied (truncate) under a running agent",
        "the guard holds the removals back and names them; every peer stays until the rows are back",
        Some(took),
    );
}

/// All with keys and addresses of their own.
fn many_peers(count: u32) -> Vec<PeerRow> {
    let peer = |number: u32| {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        let [_, a, b, c] = number.to_be_bytes();
        PeerRow {
            id: PeerId(id(number)),
            device_id: DeviceId(id(number)),
            user_id: UserId(id(number)),
            public_key: KeyText::Key(PublicKey::from_bytes(key).unwrap()),
            assigned_ip: format!("10.{a}.{b}.{c}/32").parse().unwrap(),
            ..peer_row(9)
        }
    };
    // Without the addresses of network and gateway.
    (16..16 + count).map(peer).collect()
}

#[test]
fn one_wrong_row_among_100_000_costs_one_peer() {
    let rows = |peers| {
        let mut rows = snapshot(peers);
        rows.gateway.vpn_cidr = "10.0.0.0/8".parse().unwrap();
        rows
    };
    let local = Arc::new(local());
    let mut peers = many_peers(100_000);
    let right = DesiredState::build(local.clone(), rows(peers.clone())).unwrap();
    assert_eq!((right.peers().len(), right.quarantined_count()), (100_000, 0));
    let wrong = &mut peers[50_000];
    let wrong_id = wrong.id;
    let KeyText::Key(key) = wrong.public_key.clone() else { unreachable!() };
    wrong.public_key = KeyText::parse("not a key");
    let with_it = DesiredState::build(local, rows(peers)).unwrap();
    let named: Vec<_> = with_it.quarantined().map(|(row, _)| row.id).collect();
    assert_eq!(named, [wrong_id]);
    let mut others = right.peers().clone();
    others.remove(&key).expect("the row was right before");
    assert!(*with_it.peers() == others, "another peer differs");
    Row {
        fault: "one wrong row among 100,000 peers",
        expected: "costs that peer alone, which is named with the reason",
        bound: Bound::NotMeasured,
        lost: None,
        converged_in: None,
        tier: "model",
    }
    .print();
}
