//! The whole loop, on a host that is only memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gatepost::dataplane::nft::ProfileCounters;
use gatepost::dataplane::{
    Dataplane, DataplaneError, DataplaneHandle, Glance, Outcome, Reading, SharedObserved,
};
use gatepost::model::{BlockList, ObservedState, PrivateKey, ProfileId, Whom};
use gatepost::plan::guard::MaxRemoved;
use gatepost::plan::{Plan, Step};
use gatepost::reconcile::status::{State, Status};
use gatepost::reconcile::{
    Ask, BlockFile, Cache, LastGood, MachineOptions, Options, RunError, StaleOptions, StalePolicy,
    SyncMode, Timing, Withdrawals, run, run_once,
};
use gatepost::store::{ConnectOptions, Store};
use tokio::sync::{mpsc, oneshot, watch};

use crate::running::Running;
use crate::test_rows::local;
pub use crate::test_rows::private_key;
use crate::unannounced::while_off;
use crate::world::{World, insert_device, insert_gateway, insert_peer, insert_user};

#[derive(Default, Clone)]
pub struct Memory {
    state: Arc<Mutex<ObservedState>>,
    panics: bool,
    /// Says when a peer is to be removed, and waits for leave to do it.
    gate: Option<Gate>,
}

#[derive(Clone)]
pub struct Gate {
    reached: mpsc::UnboundedSender<()>,
    leave: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

impl Memory {
    /// Says when a peer is to be removed, and then fails.
    pub fn that_keeps_all() -> (Self, mpsc::UnboundedReceiver<()>) {
        let (reached, removals) = mpsc::unbounded_channel();
        let leave = Arc::new(Mutex::new(std::sync::mpsc::channel().1));
        (Self { gate: Some(Gate { reached, leave }), ..Self::default() }, removals)
    }

    pub fn state(&self) -> ObservedState {
        self.state.lock().unwrap().clone()
    }
}

impl Dataplane for Memory {
    fn observe(&mut self) -> Result<Reading, DataplaneError> {
        if self.panics {
            // Like a panic, without its noise.
            std::panic::resume_unwind(Box::new(()));
        }
        Ok(Reading { state: self.state(), ..Reading::default() })
    }

    fn glance(&mut self) -> Result<Glance, DataplaneError> {
        let ObservedState { interface, routes, routing, .. } = self.state();
        Ok(Glance { interface, routes, routing, firewall_is_current: true })
    }

    fn counters_of(&mut self, _: ProfileId) -> Result<Option<ProfileCounters>, DataplaneError> {
        Ok(None)
    }

    fn apply(&mut self, plan: &Plan, observed: &SharedObserved) -> Outcome {
        let removes = |step: &Step| matches!(step, Step::RemovePeer { .. });
        if let Some(gate) = self.gate.as_ref().filter(|_| plan.steps().iter().any(removes)) {
            gate.reached.send(()).unwrap();
            gate.leave.lock().unwrap().recv().unwrap();
        }
        for step in plan.steps() {
            self.state.lock().unwrap().apply(step);
            observed.apply(step);
        }
        Outcome { applied: plan.steps().len(), ..Outcome::default() }
    }
}

/// An agent for the world's gateway, whose row has the agent's key then.
pub async fn agent(world: &World, host: Memory) -> Options<Memory> {
    let key = private_key().public_key();
    world.run(&format!("update gateways set public_key = '{key}'")).await;
    options_with(world.store.clone(), host)
}

pub fn options_with(store: Store, host: Memory) -> Options<Memory> {
    let machine = MachineOptions {
        local: Arc::new(local()),
        block_list: BlockList::default(),
        timing: Timing {
            poll_interval: Duration::from_secs(1),
            safety_poll_interval: Duration::from_secs(10),
            resync_interval: Duration::from_secs(600),
            report_interval: Duration::from_secs(15),
            heartbeat: Duration::from_secs(10),
            heartbeat_among_many: Duration::from_secs(60),
            seed: 1,
        },
        max_removed: MaxRemoved::default(),
        lost_history: Duration::from_secs(3_600),
        withdrawals: Withdrawals::default(),
        stale: StaleOptions { policy: StalePolicy::Keep, after: Duration::from_secs(86_400) },
    };
    Options {
        machine,
        store,
        mode: SyncMode::Listen,
        hints: None,
        dataplane: DataplaneHandle::spawn(move || Ok(host)).unwrap(),
        kernel_events: mpsc::channel(1).1,
        cache: None,
        block_file: BlockFile::new("/nonexistent/blocked".into()),
        gateway: "g1".into(),
        version: "test",
    }
}

/// A peer whose row can be obeyed.
pub async fn good_peer(world: &World, number: u8) {
    let name = format!("user-{number}");
    let user = insert_user(&world.admin, &name).await;
    let device = insert_device(&world.admin, user, &name).await;
    let key = PrivateKey::from_random([100 + number; 32]).public_key();
    insert_peer(&world.admin, world.gateway, device, &key.to_string()).await;
}

async fn once(options: Options<Memory>) -> Result<(), RunError> {
    let (say, _status) = watch::channel(Status::default());
    let (_stop, stopped) = watch::channel(false);
    run_once(options, say, stopped).await
}

#[tokio::test]
async fn one_pass_is_reported_and_ends() {
    let world = World::new().await;
    once(agent(&world, Memory::default()).await).await.unwrap();
    assert_eq!(
        world.count("select count(*) from gateways where last_sync_at > '2020-01-01'").await,
        1
    );
}

#[tokio::test]
async fn one_pass_gives_up_on_an_unreadable_database() {
    let world = World::new().await;
    world.run("alter function gatepost.snapshot_settings() rename to elsewhere").await;
    let end = once(agent(&world, Memory::default()).await).await;
    assert!(matches!(end, Err(RunError::NotConverged(_))), "{end:?}");
}

#[tokio::test]
async fn one_pass_gives_up_when_it_cannot_be_reported() {
    let world = World::new().await;
    let prove = "gatepost.prove(timestamptz, text, text, text, text)";
    world.run(&format!("alter function {prove} rename to elsewhere")).await;
    let end = once(agent(&world, Memory::default()).await).await;
    assert!(matches!(end, Err(RunError::NotConverged(_))), "{end:?}");
}

#[tokio::test]
async fn one_pass_can_be_stopped() {
    let world = World::new().await;
    let options = agent(&world, Memory::default()).await;
    let (say, _status) = watch::channel(Status::default());
    let (stop, stopped) = watch::channel(false);
    stop.send(true).unwrap();
    assert!(matches!(run_once(options, say, stopped).await, Err(RunError::Stopped)));
}

#[tokio::test]
async fn the_loop_ends_if_the_data_plane_thread_dies() {
    let world = World::new().await;
    let options = agent(&world, Memory { panics: true, ..Memory::default() }).await;
    let (say, _status) = watch::channel(Status::default());
    let (_stop, stopped) = watch::channel(false);
    let (_asks, questions) = mpsc::channel(1);
    let end = run(options, questions, say, stopped, || ()).await;
    assert!(matches!(end, Err(RunError::DataplaneGone)), "{end:?}");
}

#[tokio::test]
async fn one_pass_applies_everything_except_held_removals_and_reports_it() {
    let world = World::new().await;
    for number in 1..=12 {
        good_peer(&world, number).await;
    }
    let host = Memory::default();
    once(agent(&world, host.clone()).await).await.unwrap();
    let synced = "select count(*) from audit_logs where event_type = 'gateway.synced'";
    assert_eq!((host.state().peers.len(), world.count(synced).await), (12, 1));
    world.run("delete from wireguard_peers").await;
    good_peer(&world, 13).await;
    let end = once(agent(&world, host.clone()).await).await;
    assert!(
        matches!(&end, Err(RunError::NotConverged(why)) if why.contains("12 of 13 peers")),
        "{end:?}"
    );
    assert_eq!((host.state().peers.len(), world.count(synced).await), (13, 2));
}

/// The kernel keeps its state meanwhile, and the agent needs no restart.
/// A database that does not answer.
fn unreachable() -> Store {
    Store::connect(&ConnectOptions::new("postgres://g1@127.0.0.1:1/vpn?sslmode=disable")).unwrap()
}

#[tokio::test]
async fn block_made_while_the_list_was_unreadable_is_on_disk_once_the_list_is_corrected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blocked");
    std::fs::write(&path, "[{").unwrap();
    let file = BlockFile::new(path.clone());
    let mut options = options_with(unreachable(), Memory::default());
    options.machine.block_list = file.load_or_deny();
    options.block_file = file.clone();
    let (ask, asks) = mpsc::channel(1);
    let (say, _status) = watch::channel(Status::default());
    let (_stop, stopped) = watch::channel(false);
    let agent = tokio::spawn(run(options, asks, say, stopped, || {}));
    let key = private_key().public_key();
    let (answer, answered) = oneshot::channel();
    ask.send(Ask::Block { who: key.to_string(), answer }).await.unwrap();
    let answer = answered.await.unwrap().unwrap();
    assert!(answer.file.is_some(), "the earlier blocks are not known");
    std::fs::write(&path, "[]").unwrap();
    let (answer, _compared) = oneshot::channel();
    ask.send(Ask::Resync(answer)).await.unwrap();
    let saved = async {
        while file.load().unwrap().get(&Whom::Key(key)).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), saved).await.unwrap();
    agent.abort();
}

#[tokio::test]
async fn a_missing_column_makes_the_agent_not_ready_until_it_is_back() {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let host = Memory::default();
    let options = agent(&world, host.clone()).await;
    let mut agent = Running::start(options);
    agent.status.wait_for(|status| status.state.is_ready()).await.unwrap();
    let before = host.state();
    world.run("alter table devices rename approved_at to renamed").await;
    world.run("update devices set name = 'tablet'").await;
    let names_it = |status: &Status| match &status.state {
        State::NotReady { why } => why.contains("column devices.approved_at is missing"),
        _ => false,
    };
    agent.status.wait_for(names_it).await.unwrap();
    assert_eq!(host.state(), before);
    world.run("update devices set status = 'revoked', revoked_at = now()").await;
    world.run("alter table devices rename renamed to approved_at").await;
    let revoked = |status: &Status| status.state.is_ready() && status.peers.in_kernel == 0;
    agent.status.wait_for(revoked).await.unwrap();
    assert!(host.state().peers.is_empty());
    agent.stop().await;
}

/// At the next heartbeat, and not at the next resync.
#[tokio::test]
async fn a_revocation_while_triggers_were_off_is_enforced_soon() {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let host = Memory::default();
    let mut options = agent(&world, host.clone()).await;
    options.machine.timing.heartbeat = Duration::from_millis(200);
    let mut agent = Running::start(options);
    agent.status.wait_for(|status| status.state.is_ready()).await.unwrap();
    let revoke = "update devices set status = 'revoked', revoked_at = now()";
    world.run(&while_off("devices", revoke)).await;
    let revoked = |status: &Status| status.state.is_ready() && status.peers.in_kernel == 0;
    let enforced =
        tokio::time::timeout(Duration::from_secs(30), agent.status.wait_for(revoked)).await;
    enforced.unwrap().unwrap();
    assert!(host.state().peers.is_empty());
    // Off, and not on again: that is said at the same time.
    world.run("alter table devices disable trigger all").await;
    let said = |status: &Status| matches!(&status.state, State::Degraded { why } if why.contains("devices"));
    let degraded = tokio::time::timeout(Duration::from_secs(30), agent.status.wait_for(said)).await;
    degraded.unwrap().unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn await_sync_returns_when_a_revocation_is_in_the_kernel() {
    let world = World::new().await;
    let (reached, mut reaches) = mpsc::unbounded_channel();
    let (allow, leave) = std::sync::mpsc::channel();
    let gate = Some(Gate { reached, leave: Arc::new(Mutex::new(leave)) });
    let host = Memory { gate, ..Memory::default() };
    good_peer(&world, 1).await;
    let mut options = agent(&world, host.clone()).await;
    options.machine.timing.heartbeat = Duration::from_millis(200);
    let mut agent = Running::start(options);
    agent.status.wait_for(|status| status.state.is_ready()).await.unwrap();
    world.run("update devices set status = 'revoked', revoked_at = now()").await;
    reaches.recv().await.unwrap();
    let is_proven = async |timeout: &str| -> bool {
        let sql = format!("select is_proven from gatepost.await_sync(timeout => '{timeout}')");
        world.admin.query_one(&sql, &[]).await.unwrap().get(0)
    };
    assert!(!is_proven("500 ms").await, "the kernel still has the peer");
    allow.send(()).unwrap();
    assert!(is_proven("30 s").await);
    assert!(host.state().peers.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn await_sync_names_gateways_that_are_away_when_its_time_is_up() {
    let world = World::new().await;
    insert_gateway(&world.admin, "g0", "10.9.0.0/16").await;
    insert_gateway(&world.admin, "g2", "10.9.0.0/16").await;
    insert_gateway(&world.admin, "g3", "10.9.0.0/16").await;
    let later = "now() + interval '1 hour'";
    world
        .run(&format!(
            "update gateways set is_active = false where name = 'g2';
             update gateways set last_sync_at = {later} where name = 'g3'"
        ))
        .await;
    let before = world.admin.query_one("select clock_timestamp()", &[]).await.unwrap();
    let before: std::time::SystemTime = before.get(0);
    world.store.snapshot().await.unwrap();
    world.store.synced(std::time::SystemTime::now()).await.unwrap();
    let start = std::time::Instant::now();
    let sql = "select gateway, is_proven from gatepost.await_sync($1, '300 ms')";
    let rows = world.admin.query(sql, &[&before]).await.unwrap();
    assert!((300..20_000).contains(&start.elapsed().as_millis()));
    let said: Vec<(String, bool)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    // A time ahead of the clock is no proof.
    assert_eq!(said, [("g0".into(), false), ("g1".into(), true), ("g3".into(), false)]);
}

#[tokio::test]
async fn await_sync_waits_for_a_gateway_that_was_switched_off_while_its_agent_is_there() {
    let world = World::new().await;
    world.store.attach(true).await.unwrap();
    world.run("update gateways set is_active = false").await;
    let proven = async || -> Vec<bool> {
        let sql = "select is_proven from gatepost.await_sync(timeout => '0 s')";
        world.admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    assert_eq!(proven().await, [false], "its peers may be in the kernel still");
    world.run("update gatepost.attached set at = now() - interval '6 minutes'").await;
    assert_eq!(proven().await, [] as [bool; 0], "no agent is there to report");
}

#[tokio::test]
async fn await_sync_is_refused_where_it_would_wait_in_vain() {
    let world = World::new().await;
    let ask = "select * from gatepost.await_sync(timeout => '0 s')";
    for begin in [
        "begin; update gateways set listen_port = 7",
        "begin isolation level repeatable read",
        "begin isolation level serializable",
    ] {
        world.run(begin).await;
        let error = world.admin.batch_execute(ask).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("GP007"), "{begin}");
        world.run("rollback").await;
    }
    world.run(&format!("begin; select from gateways; {ask}; commit; {ask}")).await;
}

#[tokio::test]
async fn a_stop_waits_for_the_kernel_and_loses_no_revocation() {
    let world = World::new().await;
    good_peer(&world, 1).await;
    let (reached, mut reaches) = mpsc::unbounded_channel();
    let (allow, leave) = std::sync::mpsc::channel();
    let gate = Some(Gate { reached, leave: Arc::new(Mutex::new(leave)) });
    let host = Memory { gate, ..Memory::default() };
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().join("last-good"), &private_key());
    let options = Options { cache: Some(cache.clone()), ..agent(&world, host.clone()).await };
    let mut agent = Running::start(options);
    agent.status.wait_for(|status| status.state.is_ready()).await.unwrap();
    world.run("update devices set status = 'revoked', revoked_at = now()").await;
    reaches.recv().await.unwrap();
    agent.stop.send(true).unwrap();
    tokio::task::yield_now().await;
    allow.send(()).unwrap();
    agent.ends.await.unwrap().unwrap();
    assert!(host.state().peers.is_empty());
    let audited = "select count(*) from audit_logs where event_type = 'peer.revoked'";
    assert_eq!(world.count(audited).await, 1);
    let LastGood { changes, .. } = cache.load("g1").unwrap().unwrap();
    assert_eq!(changes.len(), 1, "a boot without the database would let the device in");
}
