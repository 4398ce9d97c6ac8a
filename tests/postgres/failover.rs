//! A failover to a standby that lagged behind, which takes acknowledged commits back.

use std::time::Duration;

use gatepost::reconcile::status::Status;
use gatepost::reconcile::{Cache, Options, Withdrawals, run_once};
use gatepost::store::{ConnectOptions, Store};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::{Memory, agent, good_peer, options_with, private_key};
use crate::fault::row;
use crate::postgres::Cluster;
use crate::running::{PATIENCE, Running};
use crate::world::{World, connect};

/// `guard.lost_history`
const HOLD: Duration = Duration::from_secs(10);

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_a_failover_loses_holds_until_its_time_and_over_a_restart() {
    let world = World::alone().await;
    for number in 1..=2 {
        good_peer(&world, number).await;
    }
    let primary = world.cluster();
    let standby = primary.standby();
    let (host, folder) = (Memory::default(), tempfile::tempdir().unwrap());
    let url = format!(
        "user={} dbname={} host={},{} port={},{} target_session_attrs=read-write",
        world.role,
        world.database,
        primary.dir.display(),
        standby.dir.display(),
        primary.port,
        standby.port
    );
    drop(agent(&world, host.clone()).await);
    let options = || {
        let store = Store::connect(&ConnectOptions::new(&url)).unwrap();
        let mut options = options_with(store, host.clone());
        options.machine.timing.heartbeat = Duration::from_millis(500);
        options.machine.lost_history = HOLD;
        let cache = folder.path().join("last-good");
        options.machine.withdrawals = Withdrawals::load_beside(&cache);
        options.cache = Some(Cache::new(cache, &private_key()));
        options
    };
    let mut runs = Running::start(options());
    runs.waits_for("ready", |status| status.state.is_ready() && status.peers.in_kernel == 2).await;
    lag_behind(primary, &standby).await;
    let revoke = "update devices set status = 'revoked', revoked_at = now() where name = 'user-1'";
    world.run(revoke).await;
    runs.waits_for("revoked", |status| status.state.is_ready() && status.peers.in_kernel == 1)
        .await;

    primary.pg_ctl(&["-m", "immediate", "stop"]);
    let promoted_at = Instant::now();
    standby.pg_ctl(&["promote"]);
    let admin = connect(&standby.socket_url("postgres", &world.database)).await;
    let active = "select status = 'active' from devices where name = 'user-1'";
    assert!(admin.query_one(active, &[]).await.unwrap().get::<_, bool>(0), "nothing was lost");
    runs.waits_for("said", shows_loss).await;
    assert_eq!(host.state().peers.len(), 1);
    runs.stop().await;

    // A single pass, which keeps nothing, knows of it too.
    let (say, _status) = watch::channel(Status::default());
    let (_stop, stopped) = watch::channel(false);
    let ended = run_once(Options { cache: None, ..options() }, say, stopped).await;
    let not_converged = ended.unwrap_err().to_string();
    assert!(not_converged.contains("lost the revocation of user-1/"), "{not_converged}");
    assert_eq!(host.state().peers.len(), 1);

    let mut runs = Running::start(options());
    // What the database admits and the kernel lacks is not proven.
    runs.waits_for("said", |status| shows_loss(status) && status.database.connected).await;
    assert!(!runs.status.borrow().state.is_ready(), "{:?}", runs.status.borrow());
    runs.waits_for("followed", |status| status.peers.in_kernel == 2 && !shows_loss(status)).await;
    runs.waits_for("ready", |status| status.state.is_ready()).await;
    assert!(promoted_at.elapsed() >= HOLD, "{:?}", promoted_at.elapsed());
    let audited = "select count(*) from audit_logs where event_type = 'gateway.history_lost'";
    assert_eq!(admin.query_one(audited, &[]).await.unwrap().get::<_, i64>(0), 1);
    runs.stop().await;
    let what = "standby promoted without the last transactions, one of them a revocation";
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
    let lost = async |marks: &[AskedMark]| world.store.lost_marks(marks).await.unwrap();
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
