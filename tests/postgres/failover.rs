//! A failover to a standby that lagged behind, which takes acknowledged commits back.

use std::time::Duration;

use gatepost::reconcile::status::Status;
use gatepost::reconcile::{Cache, Options, Withdrawals, run_once};
use gatepost::store::{ConnectOptions, Store};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::agent::{Memory, agent, good_peer, options_with, private_key};
use crate::fault::row;
use crate::postgres::Cluster;
use crate::running::{PATIENCE, Running};
use crate::world::{World, connect};

/// `guard.lost_history`
const HOLD: Duration = Duration::from_secs(30);

async fn eventually(cluster: &Cluster, what: &str) {
    let start = Instant::now();
    while cluster.psql("postgres", what) != "t" {
        assert!(start.elapsed() < PATIENCE, "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whose last commits the standby does not have, and never will.
async fn lag_behind(primary: &Cluster, standby: &Cluster) {
    let written = primary.psql("postgres", "select pg_current_wal_insert_lsn()");
    eventually(standby, &format!("select pg_last_wal_replay_lsn() >= '{written}'")).await;
    standby.psql("postgres", "alter system set primary_conninfo = ''");
    standby.psql("postgres", "select pg_reload_conf()");
    eventually(standby, "select not exists (select from pg_stat_wal_receiver)").await;
}

fn shows_loss(status: &Status) -> bool {
    status.warnings.iter().any(|warning| warning.contains("lost the revocation of user-1/"))
}

/// A gateway with two peers, and a standby of its database.
struct Scene {
    world: World,
    standby: Cluster,
    folder: tempfile::TempDir,
    /// Of both servers.
    url: String,
}

impl Scene {
    async fn open() -> Self {
        let world = World::alone().await;
        for number in 1..=2 {
            good_peer(&world, number).await;
        }
        let primary = world.cluster();
        let standby = primary.standby();
        let url = format!(
            "user={} dbname={} host={},{} port={},{} target_session_attrs=read-write",
            world.role,
            world.database,
            primary.dir.display(),
            standby.dir.display(),
            primary.port,
            standby.port
        );
        drop(agent(&world, Memory::default()).await);
        Self { world, standby, folder: tempfile::tempdir().unwrap(), url }
    }

    fn options(&self, host: &Memory) -> Options<Memory> {
        let store = Store::connect(&ConnectOptions::new(&self.url)).unwrap();
        let mut options = options_with(store, host.clone());
        options.machine.timing.heartbeat = Duration::from_millis(500);
        options.machine.lost_history = HOLD;
        let cache = Cache::new(self.folder.path().join("last-good"), &private_key());
        options.machine.withdrawals = Withdrawals::load_beside(&cache);
        options.cache = Some(cache);
        options
    }

    /// An agent that has carried out a revocation of which the standby will never know.
    async fn revoked(&self, host: &Memory) -> Running {
        let mut runs = Running::start(self.options(host));
        let serves =
            |status: &Status, peers| status.state.is_ready() && status.peers.in_kernel == peers;
        runs.waits_for("ready", |status| serves(status, 2)).await;
        lag_behind(self.world.cluster(), &self.standby).await;
        let revoke =
            "update devices set status = 'revoked', revoked_at = now() where name = 'user-1'";
        self.world.run(revoke).await;
        runs.waits_for("revoked", |status| serves(status, 1)).await;
        runs
    }

    /// Returns a session with the new primary, and when it became that.
    async fn fail_over(&self) -> (Client, Instant) {
        self.world.cluster().pg_ctl(&["-m", "immediate", "stop"]);
        let promoted_at = Instant::now();
        self.standby.pg_ctl(&["promote"]);
        let admin = connect(&self.standby.socket_url("postgres", &self.world.database)).await;
        let active = "select status = 'active' from devices where name = 'user-1'";
        let active = admin.query_one(active, &[]).await.unwrap().get::<_, bool>(0);
        assert!(active, "nothing was lost");
        (admin, promoted_at)
    }
}

/// Waits until the lost revocation is followed, and sees that this was not before its time.
async fn is_followed(runs: &mut Running, (admin, promoted_at): &(Client, Instant)) {
    // What the database admits and the kernel lacks is not proven.
    runs.waits_for("said", |status| shows_loss(status) && status.database.connected).await;
    assert!(!runs.status.borrow().state.is_ready(), "{:?}", runs.status.borrow());
    runs.waits_for("followed", |status| status.peers.in_kernel == 2 && !shows_loss(status)).await;
    runs.waits_for("ready", |status| status.state.is_ready()).await;
    assert!(promoted_at.elapsed() >= HOLD, "{:?}", promoted_at.elapsed());
    let audited = "select count(*) from audit_logs where event_type = 'gateway.history_lost'";
    assert_eq!(admin.query_one(audited, &[]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_a_failover_loses_holds_until_its_time_and_over_a_restart() {
    let (scene, host) = (Scene::open().await, Memory::default());
    let mut runs = scene.revoked(&host).await;
    let failed_over = scene.fail_over().await;
    runs.waits_for("said", shows_loss).await;
    assert_eq!(host.state().peers.len(), 1);
    runs.stop().await;

    // A single pass, which keeps nothing, knows of it too.
    let (say, _status) = watch::channel(Status::default());
    let (_stop, stopped) = watch::channel(false);
    let ended = run_once(Options { cache: None, ..scene.options(&host) }, say, stopped).await;
    let not_converged = ended.unwrap_err().to_string();
    assert!(not_converged.contains("lost the revocation of user-1/"), "{not_converged}");
    assert_eq!(host.state().peers.len(), 1);

    let mut runs = Running::start(scene.options(&host));
    is_followed(&mut runs, &failed_over).await;
    runs.stop().await;
    let what = "standby promoted without the last transactions, one of them a revocation";
    row(what, "the lost revocation holds for guard.lost_history, and that is said", None);
}

/// The host boots meanwhile: only its disk remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_is_lost_while_the_host_reboots_holds_until_its_time() {
    let (scene, host) = (Scene::open().await, Memory::default());
    scene.revoked(&host).await.stop().await;
    let failed_over = scene.fail_over().await;
    let booted = Memory::default();
    let mut runs = Running::start(scene.options(&booted));
    runs.waits_for("said", |status| shows_loss(status) && status.peers.in_kernel == 1).await;
    assert!(booted.state().peers.keys().eq(host.state().peers.keys()));
    is_followed(&mut runs, &failed_over).await;
    runs.stop().await;
    let what = "standby promoted without a revocation while the gateway's host reboots";
    row(what, "the lost revocation holds for guard.lost_history, and that is said", None);
}

/// As after a crash of the server: another epoch, and no commit is lost.
#[tokio::test]
async fn a_mark_is_lost_only_if_it_is_gone_unpruned_and_without_a_later_one() {
    use gatepost::model::MarkId;
    use gatepost::store::{AskedMark, Read};
    let world = World::new().await;
    let ann = world.peer(world.gateway, "ann").await;
    let cursor = world.cursor().await;
    world.run("update devices set status = 'revoked'").await;
    let Read::Changed(rows, _) = world.read(&cursor).await else { panic!("no change") };
    let [mark] = &rows.marks[..] else { panic!("{:?}", rows.marks) };
    assert_eq!((&*mark.kind, mark.listed()), ("device", Some(&[ann.device][..])));
    let mark = &mark.of(Some(ann.device));
    let asked = |mark: &MarkId| AskedMark {
        mark: mark.clone(),
        device_id: ann.device.into(),
        user_id: ann.user.into(),
        read_at: rows.taken_at,
    };
    let answer = async |epoch: &str, marks: &[AskedMark]| {
        world.store.lost_marks(epoch, marks).await.unwrap()
    };
    let lost = async |marks: &[AskedMark]| answer(&cursor.epoch, marks).await.unwrap();
    assert_eq!(answer("another server's", &[asked(mark)]).await, None);
    // Another transaction has its id.
    let other = MarkId { id: Some(ann.user), ..mark.clone() };
    assert_eq!(lost(&[asked(mark), asked(&other)]).await, [1]);
    let unlisted = MarkId { id: None, ..mark.clone() };
    assert_eq!(lost(&[asked(&unlisted)]).await, [] as [usize; 0]);
    world.run("delete from gatepost.change").await;
    assert_eq!(lost(&[asked(mark)]).await, [0]);
    world.run(&format!("update gatepost.state set floor = '{}'", mark.xid + 1)).await;
    assert_eq!(lost(&[asked(mark)]).await, [] as [usize; 0], "pruned");
    world.run("update gatepost.state set floor = '0'").await;
    world.run("update users set username = 'anna'").await;
    assert_eq!(lost(&[asked(mark)]).await, [] as [usize; 0], "a later mark about the user");
}
