//! The change feed and the reports of one gateway with many peers: each statement and each read
//! beside the bare one.

use std::time::{Duration, Instant, SystemTime};

use gatepost::model::DeviceId;
use gatepost::store::{Cursor, Handshake, Read};
use uuid::Uuid;

use super::figures::{Bar, Row, grouped, median, timed, words};
use super::fleet::{Fleet, silence, unsilence};

const REPORTED: usize = 10_000;
const DELTAS: [usize; 3] = [1, 100, 1_000];
const ROUNDS: usize = 5;

/// The rows of the peers as a program would read them that knows nothing of us.
pub const BARE_QUERY: &str = "select w.id, d.id, u.id, d.name, u.username, w.public_key, w.assigned_ip,
         w.preshared_key_ciphertext, w.allowed_ips, w.dns_servers, d.status, d.revoked_at, d.approved_at, i.status
     from wireguard_peers w join devices d on d.id = w.device_id join users u on u.id = d.user_id
     left join ip_allocations i on i.gateway_id = w.gateway_id and i.address = w.assigned_ip
     where w.deleted_at is null";

pub async fn measure(fleet: &Fleet<'_>) {
    bulk_update(fleet);
    policy_for_everybody(fleet).await;
    membership(fleet).await;
    idle(fleet).await;
    for devices in DELTAS {
        delta(fleet, devices).await;
    }
    report(fleet).await;
}

/// One statement that changes every device, with our triggers and without.
fn bulk_update(fleet: &Fleet<'_>) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..3 {
        for (times, triggers) in [(&mut without, "off"), (&mut with, "on")] {
            let switch = if triggers == "on" { unsilence } else { silence };
            fleet.sql(&switch("devices"));
            fleet.sql("vacuum full devices");
            fleet.sql("checkpoint");
            let status = format!("{round} {triggers}");
            times.push(timed(|| fleet.sql(&format!("update devices set status = '{status}'"))));
        }
    }
    fleet.forget_marks();
    fleet.sql("vacuum full analyze devices");
    let what = "one update of all devices";
    beside(what, fleet.size(), median(&with), median(&without), "untriggered", Some(1.5));
}

/// A policy given to a group of all users.
async fn policy_for_everybody(fleet: &Fleet<'_>) {
    let give = "insert into policy_targets (policy_id, target_type, target_id)
        select p.id, 'group', g.id from policies p, groups g
        where p.name = 'policy7' and g.name = 'everybody'";
    let take = "delete from policy_targets where target_id = (select id from groups where name = 'everybody')";
    let switch = [silence("policy_targets"), unsilence("policy_targets")];
    let read = statement(fleet, "policy given to a group", give, take, switch, Some(1)).await;
    let users = fleet.sql("select count(*) from users").parse().unwrap();
    let size = format!("{} users", grouped(users));
    plain("delta of a policy given to a group", size, read, Bar::None);
}

async fn membership(fleet: &Fleet<'_>) {
    let join = "insert into group_memberships (group_id, user_id)
        select g.id, u.id from groups g, users u
        where g.name = 'group400' and u.username = 'user1'";
    let leave = "delete from group_memberships where group_id = (select id from groups where name = 'group400')
        and user_id = (select id from users where username = 'user1')";
    let switch = [silence("group_memberships"), unsilence("group_memberships")];
    let read = statement(fleet, "one user enters a group", join, leave, switch, Some(1)).await;
    plain("delta of one user who entered a group", fleet.size(), read, Bar::None);
}

/// Prints what a statement costs its writer; returns what its delta costs the agent.
async fn statement(
    fleet: &Fleet<'_>,
    what: &str,
    doing: &str,
    undoing: &str,
    [off, on]: [String; 2],
    marks: Option<usize>,
) -> Duration {
    let store = fleet.store(1);
    let admin = fleet.admin().await;
    let (mut with, mut without, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let (_, mut cursor) = store.snapshot().await.unwrap();
    for _ in 0..ROUNDS {
        for (times, triggers) in [(&mut without, &off), (&mut with, &on)] {
            admin.batch_execute(triggers).await.unwrap();
            admin.batch_execute("truncate gatepost.change").await.unwrap();
            let started = Instant::now();
            admin.batch_execute(doing).await.unwrap();
            times.push(started.elapsed());
            let found = fleet.sql("select count(*) from gatepost.change");
            let found: usize = found.parse().unwrap();
            assert!(triggers == &off || marks.is_none_or(|marks| marks == found), "{found} marks");
            if triggers == &on {
                reads.push(changed(&store, &mut cursor).await);
            }
            admin.batch_execute(undoing).await.unwrap();
        }
        cursor = store.snapshot().await.unwrap().1;
    }
    let marks = marks.map_or_else(String::new, |marks| format!("{marks} mark"));
    beside(what, marks, median(&with), median(&without), "untriggered", None);
    median(&reads)
}

/// Asks for changes where there are some.
async fn changed(store: &gatepost::store::Store, cursor: &mut Cursor) -> Duration {
    let started = Instant::now();
    let read = store.changes(cursor).await.unwrap();
    let took = started.elapsed();
    let Read::Changed(_, next) = read else { panic!("{read:?}") };
    *cursor = next;
    took
}

async fn idle(fleet: &Fleet<'_>) {
    let store = fleet.store(1);
    let (_, cursor) = store.snapshot().await.unwrap();
    let mut times = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        let read = store.changes(&cursor).await.unwrap();
        times.push(started.elapsed());
        assert!(matches!(read, Read::Nothing(..)), "{read:?}");
    }
    let admin = fleet.admin().await;
    let mut bare = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        admin.batch_execute("begin; select pg_current_snapshot(); commit").await.unwrap();
        bare.push(started.elapsed());
    }
    beside(
        "question for changes, none",
        fleet.size(),
        median(&times),
        median(&bare),
        "an empty transaction",
        None,
    );
}

/// So many devices changed in one statement, read by the agent.
async fn delta(fleet: &Fleet<'_>, devices: usize) {
    let store = fleet.store(1);
    let admin = fleet.admin().await;
    let some = format!("select id from devices order by id limit {devices}");
    let bare_query = format!("{BARE_QUERY} and w.device_id in ({some})");
    let (_, mut cursor) = store.snapshot().await.unwrap();
    let (mut reads, mut bare) = (Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        let status = if round.is_multiple_of(2) { "revoked" } else { "active" };
        let update = format!("update devices set status = '{status}' where id in ({some})");
        admin.batch_execute(&update).await.unwrap();
        reads.push(changed(&store, &mut cursor).await);
        let started = Instant::now();
        let rows = admin.simple_query(&bare_query).await.unwrap();
        bare.push(started.elapsed());
        assert!(rows.len() >= devices);
    }
    let size = format!("{} of {}", grouped(devices), grouped(fleet.peers));
    beside(
        "delta of changed devices",
        size,
        median(&reads),
        median(&bare),
        "the bare query by id",
        None,
    );
}

/// The handshakes of many devices in one report.
async fn report(fleet: &Fleet<'_>) {
    let ids = fleet.sql(&format!("select id from devices limit {REPORTED}"));
    let seen_at = SystemTime::now();
    let device = |id: &str| Handshake {
        device_id: DeviceId(Uuid::parse_str(id).unwrap()),
        first_at: seen_at,
        seen_at,
        connected_at: None,
    };
    let handshakes: Vec<Handshake> = ids.lines().map(device).collect();
    let store = fleet.store(1);
    let mut times = Vec::new();
    for earlier_secs in (0..ROUNDS as u64).rev() {
        let earlier = Duration::from_secs(earlier_secs);
        let moved: Vec<Handshake> = handshakes
            .iter()
            .map(|one| Handshake { seen_at: one.seen_at - earlier, ..*one })
            .collect();
        let started = Instant::now();
        let reported = store.report(&moved).await.unwrap();
        times.push(started.elapsed());
        assert!(reported.skipped.is_empty());
    }
    let took = median(&times);
    let size = format!("{} of {}", grouped(REPORTED), grouped(fleet.peers));
    let bar = Bar::Other("< 0.5 s", took < Duration::from_millis(500));
    plain("report of handshakes", size, took, bar);
}

pub fn plain(what: &str, size: String, took: Duration, bar: Bar) {
    Row { what, size, ours: words(took), beside: String::new(), ratio: None, bar }.print();
}

/// A time beside another of the same run.
pub fn beside(
    what: &str,
    size: String,
    ours: Duration,
    other: Duration,
    of: &str,
    most: Option<f64>,
) {
    let ratio = Some(ours.as_secs_f64() / other.as_secs_f64());
    let bar = most.map_or(Bar::None, Bar::Ratio);
    let beside = format!("{} {of}", words(other));
    Row { what, size, ours: words(ours), beside, ratio, bar }.print();
}
