//! What each operation costs the database's processors, for the simulation.

use std::time::{Duration, SystemTime};

use gatepost::model::{DeviceId, GatewayId};
use gatepost::reconcile::status::Mode;
use gatepost::store::{
    AuditEntry, AuditEvent, AuditStatus, ConnectOptions, CreateRole, Cursor, Entity, Handshake,
    Held, Hello, MERGED_AT_MOST, Polled, Store, grant_bell,
};
use uuid::Uuid;

use super::fleet::Fleet;
use super::meter::Meter;

const COMMITS: usize = 500;
const READS: usize = 300;
/// Enough that no cache of the processor holds what all of them use.
const SESSIONS: usize = 200;
/// Of a pool, as docs/scale.md advises.
const POOLED_SESSIONS: usize = 8;
/// Marks of other gateways.
const MARKS: usize = 1_000;
const LISTENERS: usize = 50;
/// Changed devices of one delta.
const DEVICES: usize = 50;
const BATCH: usize = 1_000;

/// What operations cost where each gateway has a session of its own, and where all share a few.
#[derive(Debug, Clone, Copy)]
pub struct Prices {
    pub own_sessions: Costs,
    pub pool: Costs,
}

impl Prices {
    pub const fn of(&self, mode: Mode) -> Costs {
        match mode {
            Mode::Listen | Mode::Poll => self.own_sessions,
            Mode::Hints => self.pool,
        }
    }
}

/// Seconds of one processor.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// One changed device, marked.
    pub commit: f64,
    /// To wake one session that listens, for whatever channel.
    pub notify: f64,
    /// The question of an agent that polls, where nothing is new.
    pub poll: f64,
    /// More, for each mark that a look of the bell addresses.
    pub address: f64,
    /// A look of the bell that finds nothing.
    pub look: f64,
    /// A read of the changes that finds none.
    pub changes: f64,
    /// More, for each mark that is addressed to nobody and of another gateway.
    pub mark: f64,
    /// More, for each changed device of this gateway.
    pub device: f64,
    /// A read of the changes that finds one policy.
    pub policy: f64,
    /// A report of one, and to merge it.
    pub handshake: f64,
    /// The beat that writes `last_sync_at`, and to merge it.
    pub synced: f64,
    /// The two audit entries of a pass that revoked a peer, and to merge them.
    pub audit: f64,
    /// A snapshot, for each peer.
    pub snapshot_peer: f64,
}

/// Gateways whose sessions do an operation one after the other, as those of a fleet do: what a session that
/// has just slept finds in no cache costs several times the operation itself.
struct Sessions(Vec<(Store, Cursor)>);

impl Sessions {
    async fn open(fleet: &Fleet<'_>, count: usize) -> Self {
        let mut sessions = Vec::new();
        for number in 1..=count.min(fleet.gateways) {
            let store = fleet.store(number);
            let (_, cursor) = store.snapshot().await.unwrap();
            sessions.push((store, cursor));
        }
        Self(sessions)
    }

    /// The processor time of one operation, once each session knows it.
    async fn per(&self, meter: &Meter, operation: impl AsyncFn(&Store, &Cursor)) -> f64 {
        for (store, cursor) in &self.0 {
            operation(store, cursor).await;
        }
        let mut sessions = self.0.iter().cycle();
        per(meter, READS.max(self.0.len()), async || {
            let (store, cursor) = sessions.next().unwrap();
            operation(store, cursor).await;
        })
        .await
    }

    async fn changes(&self, meter: &Meter) -> f64 {
        self.per(meter, async |store, cursor| drop(store.changes(cursor).await.unwrap())).await
    }
}

/// Measures on a database of many gateways and on one of many peers, one operation at a time.
pub async fn measure(many: &Fleet<'_>, large: &Fleet<'_>) -> Prices {
    Prices {
        own_sessions: among(many, large, SESSIONS).await,
        pool: among(many, large, POOLED_SESSIONS).await,
    }
}

async fn among(many: &Fleet<'_>, large: &Fleet<'_>, sessions: usize) -> Costs {
    let meter = Meter::of(many.cluster);
    let (snapshot_peer, handshake) = of_large(large, &meter).await;
    many.forget_marks();
    let sessions = Sessions::open(many, sessions).await;
    let changes = sessions.changes(&meter).await;
    let polled = async |store: &Store, cursor: &Cursor| {
        assert!(matches!(store.poll(cursor).await.unwrap(), Polled::Quiet(..)));
    };
    let poll = sessions.per(&meter, polled).await;
    let synced = sessions
        .per(&meter, async |store, _| {
            assert!(store.synced(SystemTime::now()).await.unwrap());
            store.merge().await.unwrap();
        })
        .await;
    let audit = sessions
        .per(&meter, async |store, _| {
            assert!(store.audit(&audited()).await.error.is_none());
            store.merge().await.unwrap();
        })
        .await;

    // The marginal costs are those of work that one session goes on with.
    let (store, cursor) = &sessions.0[0];
    let reads = async |times: usize| {
        per(&meter, times, async || drop(store.changes(cursor).await.unwrap())).await
    };
    let alone = reads(READS).await;
    let commit = commits(many, &meter, MARKS, 2).await;
    let mark = ((reads(READS / 10).await - alone) / MARKS as f64).max(0.0);
    many.forget_marks();
    let own = format!(
        "update devices set status = 'revoked' where id in (
             select device_id from wireguard_peers p join gateways g on g.id = p.gateway_id
             where g.name = 'g1' limit {DEVICES})"
    );
    many.sql(&own);
    let device = ((reads(READS / 3).await - alone) / DEVICES as f64).max(0.0);
    many.forget_marks();
    many.sql("update policies set priority = priority + 1 where name = 'policy7'");
    let policy = sessions.changes(&meter).await;
    many.forget_marks();
    let (look, address) = look(many, &meter).await;
    let notify = notify(many, store, &meter, commit).await;
    many.forget_marks();
    Costs {
        commit,
        notify,
        poll,
        address,
        look,
        changes,
        mark,
        device,
        policy,
        handshake,
        synced,
        audit,
        snapshot_peer,
    }
}

/// What a pass that revoked one peer says of itself.
fn audited() -> [AuditEntry; 2] {
    let id = Uuid::nil();
    [
        (AuditEvent::PeerRevoked, Entity::Peer(id.into())),
        (AuditEvent::GatewaySynced, Entity::Gateway(GatewayId(id))),
    ]
    .map(|(event, entity)| AuditEntry {
        event,
        entity,
        device_id: None,
        ip_address: None,
        status: AuditStatus::Success,
        message: "brought up to date".into(),
        metadata: serde_json::json!({ "steps": 3, "milliseconds": 2 }),
    })
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
        for _ in 0..ids.len().div_ceil(MERGED_AT_MOST as usize) {
            store.merge().await.unwrap();
        }
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

/// A look that finds nothing, and for each mark that it addresses.
async fn look(fleet: &Fleet<'_>, meter: &Meter) -> (f64, f64) {
    const BELL: &str = "bench";
    let role = format!("{}_bell", fleet.database);
    grant_bell(&fleet.owner(), &role, &CreateRole::IfAbsent(None)).await.unwrap();
    let url = fleet.cluster.socket_url(&role, &fleet.database);
    let bell = Store::connect(&ConnectOptions::new(url)).unwrap();
    assert!(matches!(bell.hold_bell(BELL).await.unwrap(), Held::Here { .. }));
    bell.ring(BELL).await.unwrap();
    let look = per(meter, READS, async || drop(bell.ring(BELL).await.unwrap())).await;
    commits(fleet, meter, MARKS, 2).await;
    let addressing = per(meter, 1, async || drop(bell.ring(BELL).await.unwrap())).await;
    bell.leave_bell(BELL).await.unwrap();
    (look, ((addressing - look) / MARKS as f64).max(0.0))
}

async fn notify(fleet: &Fleet<'_>, store: &Store, meter: &Meter, commit: f64) -> f64 {
    let hello = store.hello().await.unwrap();
    // All of them log in as one gateway.
    fleet.sql(&format!("alter role {}_g1 connection limit -1", fleet.database));
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
