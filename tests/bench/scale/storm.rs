//! Many changes at once, met by one whole agent: what it does, and how soon its kernel is right.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use gatepost::reconcile::SyncMode;

use super::bouncer::Bouncer;
use super::crowd::{Crowd, Member};
use super::feed::plain;
use super::figures::{Bar, Row, grouped, median, quantile, words};
use super::fleet::Fleet;

const MOST: usize = 10_000;
const SESSIONS: usize = 4;
const SINGLES: usize = 20;
/// How long the agent may take to be done.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the agent reaches the database.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Direct(SyncMode),
    /// Through PgBouncer in transaction mode, `sync.mode = "auto"`.
    Bouncer,
}

pub async fn measure(fleet: &Fleet<'_>, way: Way) {
    let bouncer = (way == Way::Bouncer).then(|| Bouncer::start(fleet, 1));
    let (url, mode) = match (&bouncer, way) {
        (Some(bouncer), _) => (bouncer.url(fleet, 1), SyncMode::Auto),
        (None, Way::Direct(mode)) => (fleet.url(1), mode),
        (None, Way::Bouncer) => unreachable!("it was started"),
    };
    let mut crowd = Crowd::attach([Member::new(url, mode)]).await;
    let via = if bouncer.is_some() { ", through PgBouncer" } else { "" };
    let size = format!("{}, {}{via}", fleet.size(), crowd.mode());
    singles(fleet, &mut crowd, &size).await;
    revoked(fleet, &mut crowd, &size).await;
    storm(fleet, &mut crowd, &size).await;
    crowd.detach().await;
    fleet.forget_marks();
}

/// One revocation after another, each seen in the kernel before the next.
async fn singles(fleet: &Fleet<'_>, crowd: &mut Crowd, size: &str) {
    let admin = fleet.admin().await;
    let devices = fleet.sql(&format!("select id from devices order by id desc limit {SINGLES}"));
    let mut pause = fastrand::Rng::with_seed(7);
    let mut times = Vec::new();
    for id in devices.lines() {
        let revoke = format!("update devices set status = 'revoked' where id = '{id}'");
        admin.batch_execute(&revoke).await.unwrap();
        let committed = Instant::now();
        let written = obeyed(crowd, 1).await;
        times.push(written.saturating_duration_since(committed));
        // Not in step with the agent's timers.
        tokio::time::sleep(Duration::from_millis(pause.u64(..200))).await;
    }
    let ours = format!("median {}, p99 {}", words(median(&times)), words(quantile(&times, 99)));
    let what = "commit to kernel, one revocation";
    Row { what, size: size.to_owned(), ours, beside: String::new(), ratio: None, bar: Bar::None }
        .print();
    admit(fleet, crowd, SINGLES).await;
}

async fn revoked(fleet: &Fleet<'_>, crowd: &mut Crowd, size: &str) {
    let revoked = many(fleet);
    let some = format!("select id from devices order by id limit {revoked}");
    let admin = fleet.admin().await;
    admin
        .batch_execute(&format!("update devices set status = 'revoked' where id in ({some})"))
        .await
        .unwrap();
    let committed = Instant::now();
    let written = obeyed(crowd, revoked).await;
    let took = written.saturating_duration_since(committed);
    let what = format!("{} revoked at once, commit to the last in the kernel", grouped(revoked));
    plain(&what, size.to_owned(), took, Bar::None);
    admit(fleet, crowd, revoked).await;
}

/// As many commits in a second as the machine makes, each of one device. They do not wait for the
/// disk, which is slower than that where writers also notify.
async fn storm(fleet: &Fleet<'_>, crowd: &mut Crowd, size: &str) {
    let passes = |crowd: &Crowd| crowd.agents[0].status.borrow().sync.passes;
    let sessions = join_all((0..SESSIONS).map(|_| fleet.admin())).await;
    fleet.sql("create table stormed as select id, row_number() over (order by id) as n from devices; create unique index on stormed (n); analyze stormed");
    let before = passes(crowd);
    let started = Instant::now();
    let commits = many(fleet);
    let share = commits / SESSIONS;
    let each = sessions.iter().enumerate().map(|(number, session)| {
        let (first, last) = (number * share + 1, (number + 1) * share);
        let text = format!(
            "do $$ begin for k in {first}..{last} loop
                 update devices set status = 'revoked' where id = (select id from stormed where n = k);
                 commit;
             end loop; end $$"
        );
        async move {
            // By itself: a block that commits may stand in no transaction.
            session.batch_execute("set synchronous_commit = off").await.unwrap();
            session.batch_execute(&text).await.unwrap();
        }
    });
    join_all(each).await;
    let committed = Instant::now();
    let mut plans_after = 0;
    let mut removed = 0;
    let mut last = committed;
    while removed < commits {
        let write = tokio::time::timeout(PATIENCE, crowd.writes.recv()).await;
        let write = write.expect("every revocation reaches the kernel").unwrap();
        removed += write.peers.len();
        plans_after += usize::from(write.at > committed);
        last = write.at;
    }
    let passes = passes(crowd) - before;
    settle(crowd).await;
    let what = format!("storm of {} commits", grouped(commits));
    let took = committed - started;
    let ours = format!(
        "{} in {}; {passes} passes, {plans_after} of them after the last commit; {} from it to the kernel",
        grouped(commits),
        words(took),
        words(last.saturating_duration_since(committed)),
    );
    let bar = Bar::Other("at most 2 passes after the last commit", plans_after <= 2);
    Row { what: &what, size: size.to_owned(), ours, beside: String::new(), ratio: None, bar }
        .print();
    fleet.sql("drop table stormed");
}

/// Few enough for the guard, which holds back the removal of half of the peers.
fn many(fleet: &Fleet<'_>) -> usize {
    MOST.min(fleet.peers / 4)
}

/// Lets all devices in again, and waits until they are.
async fn admit(fleet: &Fleet<'_>, crowd: &mut Crowd, devices: usize) {
    fleet.sql("update devices set status = 'active' where status <> 'active'");
    obeyed(crowd, devices).await;
    settle(crowd).await;
}

/// When the kernel has obeyed so many changes of peers.
async fn obeyed(crowd: &mut Crowd, peers: usize) -> Instant {
    let mut done = 0;
    loop {
        let write = tokio::time::timeout(PATIENCE, crowd.writes.recv()).await;
        let write = write.unwrap_or_else(|_| panic!("{done} of {peers} reached the kernel"));
        let write = write.unwrap();
        done += write.peers.len();
        if done >= peers {
            return write.at;
        }
    }
}

/// Until the agent has proven what it wrote.
async fn settle(crowd: &mut Crowd) {
    let status = &mut crowd.agents[0].status;
    let now = std::time::SystemTime::now();
    let proven = status.wait_for(|status| {
        status.peers.desired == status.peers.in_kernel
            && status.sync.last_sync_at.is_some_and(|at| at.0 >= now)
    });
    tokio::time::timeout(PATIENCE, proven).await.expect("the agent proves it").unwrap();
}
