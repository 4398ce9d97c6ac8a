//! What each operation costs the database's processors, for the simulation.

use std::time::{Duration, SystemTime};

use gatepost::model::{DeviceId, GatewayId};
use gatepost::store::{Handshake, Hello, Polled, Store};
use uuid::Uuid;

use super::fleet::Fleet;
use super::meter::Meter;

const COMMITS: usize = 500;
const READS: usize = 300;
/// Marks of other gateways.
const MARKS: usize = 1_000;
const LISTENERS: usize = 50;
/// Changed devices of one delta.
const DEVICES: usize = 50;
const BATCH: usize = 1_000;

/// Seconds of one processor.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// One changed device, marked.
    pub commit: f64,
    /// To wake one session that listens, for whatever channel.
    pub notify: f64,
    /// The question of an agent that polls, where nothing is new.
    pub poll: f64,
    /// To address one mark for all who poll.
    pub address: f64,
    /// A read of the changes that finds none.
    pub changes: f64,
    /// More, for each mark that is addressed to nobody and of another gateway.
    pub mark: f64,
    /// More, for each changed device of this gateway.
    pub device: f64,
    /// A read of the changes that finds one policy.
    pub policy: f64,
    pub handshake: f64,
    /// The beat that writes `last_sync_at`.
    pub synced: f64,
    /// A snapshot, for each peer.
    pub snapshot_peer: f64,
}

/// Measures on a database of many gateways and on one of many peers, one operation at a time.
pub async fn measure(many: &Fleet<'_>, large: &Fleet<'_>) -> Costs {
    let meter = Meter::of(many.cluster);
    let (snapshot_peer, handshake) = of_large(large, &meter).await;
    many.forget_marks();
    let store = many.store(1);
    let (_, cursor) = store.snapshot().await.unwrap();
    let reads = async |times: usize| {
        per(&meter, times, async || drop(store.changes(&cursor).await.unwrap())).await
    };
    let polls = async |times: usize| {
        per(&meter, times, async || {
            assert!(matches!(store.poll(&cursor).await.unwrap(), Polled::Quiet(..)));
        })
        .await
    };
    reads(READS).await;
    let changes = reads(READS).await;
    polls(READS).await;
    let poll = polls(READS).await;
    let synced = per(&meter, READS, async || {
        assert!(store.synced(SystemTime::now()).await.unwrap());
    })
    .await;

    let commit = commits(many, &meter, MARKS, 2).await;
    let mark = ((reads(READS / 10).await - changes) / MARKS as f64).max(0.0);
    let address = (polls(1).await - poll) / MARKS as f64;
    assert!(address > 0.0, "the first to poll addresses the marks");
    many.forget_marks();
    let own = format!(
        "update devices set status = 'revoked' where id in (
             select device_id from wireguard_peers p join gateways g on g.id = p.gateway_id
             where g.name = 'g1' limit {DEVICES})"
    );
    many.sql(&own);
    let device = ((reads(READS / 3).await - changes) / DEVICES as f64).max(0.0);
    many.forget_marks();
    many.sql("update policies set priority = priority + 1 where name = 'policy7'");
    let policy = reads(READS / 3).await;
    many.forget_marks();
    let notify = notify(many, &store, &meter, commit).await;
    many.forget_marks();
    Costs {
        commit,
        notify,
        poll,
        address,
        changes,
        mark,
        device,
        policy,
        handshake,
        synced,
        snapshot_peer,
    }
}

/// A snapshot for each peer, and a report for each handshake.
async fn of_large(large: &Fleet<'_>, meter: &Meter) -> (f64, f64) {
    let store = large.store(1);
    drop(store.snapshot().await.unwrap());
    let snapshot = per(meter, 3, async || drop(store.snapshot().await.unwrap())).await;
    let ids = large.sql(&format!("select id from devices order by random() limit {}", 10 * BATCH));
    let ids: Vec<DeviceId> = ids.lines().map(|id| DeviceId(Uuid::parse_str(id).unwrap())).collect();
    let mut seen_at = SystemTime::now() - Duration::from_secs(600);
    let report = per(meter, 5, async || {
        seen_at += Duration::from_secs(60);
        let handshake = |id: &DeviceId| Handshake {
            device_id: *id,
            first_at: seen_at,
            seen_at,
            connected_at: None,
        };
        let handshakes: Vec<Handshake> = ids.iter().map(handshake).collect();
        drop(store.report(&handshakes).await.unwrap());
    })
    .await;
    (snapshot / large.peers as f64, report / ids.len() as f64)
}

/// So many commits of one device each, of gateways from the given one on.
async fn commits(fleet: &Fleet<'_>, meter: &Meter, commits: usize, first_gateway: usize) -> f64 {
    let admin = fleet.admin().await;
    let ids = fleet.sql(&format!(
        "select device_id from wireguard_peers p join gateways g on g.id = p.gateway_id
         where substr(g.name, 2)::integer >= {first_gateway} limit {commits}"
    ));
    let update = "update devices set status = 'revoked' where id = $1::text::uuid";
    let update = admin.prepare(update).await.unwrap();
    let mut ids = ids.lines();
    per(meter, commits, async || {
        admin.execute(&update, &[&ids.next().unwrap()]).await.unwrap();
    })
    .await
}

async fn notify(fleet: &Fleet<'_>, store: &Store, meter: &Meter, commit: f64) -> f64 {
    let hello = store.hello().await.unwrap();
    let mut listeners = Vec::new();
    for number in 0..LISTENERS {
        let gateway_id = GatewayId(Uuid::from_u128(number as u128));
        listeners.push(store.listen(&Hello { gateway_id, ..hello.clone() }).await.unwrap());
    }
    let with = commits(fleet, meter, COMMITS, 2).await;
    drop(listeners);
    ((with - commit) / LISTENERS as f64).max(0.0)
}

/// The processor time of one of so many operations.
async fn per(meter: &Meter, times: usize, mut operation: impl AsyncFnMut()) -> f64 {
    let before = meter.used();
    for _ in 0..times {
        operation().await;
    }
    meter.since(&before).as_secs_f64() / times as f64
}
