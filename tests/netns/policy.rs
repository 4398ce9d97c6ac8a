//! Policies on real packets: ICMP, TCP and UDP, granted, denied, narrowed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{
    Client, Ears, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, LAN_SERVER6, Lab, Ways, eventually,
    policy_rows, way,
};

const PORT: u16 = 7000;
const NOTHING: [&str; 0] = [];

#[test]
fn only_packets_that_a_policy_allows_pass() {
    let lab = Lab::open();
    serve(&lab);
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    lab.database.exec(&alice.rows());
    lab.database.exec(&bob.rows());
    let _agent = lab.start();
    alice.connect();
    bob.connect();
    assert_eq!(passed(&alice, LAN_SERVER), NOTHING, "without a policy");

    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    eventually("the policy is applied", || alice.reaches(LAN_SERVER));
    must_pass(&alice, LAN_SERVER);
    must_pass(&alice, LAN_OTHER);
    assert_eq!(passed(&bob, LAN_SERVER), NOTHING, "the policy is another's");
    assert_eq!(passed(&alice, &bob.address), NOTHING, "no policy names the other peer");

    lab.database.exec(&policy_rows("not the server", "alice", &format!("{LAN_SERVER}/32")));
    lab.database
        .exec("update policies set effect = 'deny', priority = 50 where name = 'not the server'");
    eventually("the denial is applied", || !alice.reaches(LAN_SERVER));
    assert_eq!(passed(&alice, LAN_SERVER), NOTHING);
    must_pass(&alice, LAN_OTHER);

    let explained = |destination| lab.gatepost(&["explain", "alice", destination]);
    assert_eq!(explained(LAN_OTHER).0, 0);
    let (code, out, _) = explained(LAN_SERVER);
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("not the server") && out.contains("office"), "{out}");

    assert!(explained(GATEWAY_TUNNEL).1.contains("the gateway itself: a ping is answered"));

    let denied = || {
        let (_, out, _) = lab.gatepost(&["explain", "alice", LAN_SERVER, "--json"]);
        let answers: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(answers[0]["kernel_allows"], false, "{out}");
        answers[0]["counters"]["denied_packets"].as_u64().unwrap()
    };
    let before = denied();
    assert!(!alice.reaches(LAN_SERVER));
    assert!(denied() > before, "what was denied is counted");
    assert!(out.contains(" denied; no other address shares this profile"), "{out}");
}

/// The policy applies to Alice through a group. Every cut ends her streams in both directions.
#[test]
fn a_narrowed_policy_and_a_revocation_cut_a_live_stream() {
    const WIDE: &str = "delete from policy_destinations;
        insert into policy_destinations (policy_id, destination)
            select id, destination from policies,
                (values (cidr '10.20.0.0/24'), (cidr 'fd20::/64')) as wide (destination);";
    const NARROW: &str = "update policy_destinations set destination = '10.20.0.128/25'
            where family(destination) = 4;
        update policy_destinations set destination = 'fd20::200/128'
            where family(destination) = 6";
    const MEMBER: &str = "insert into group_memberships (group_id, user_id)
        select groups.id, users.id from groups, users
            where not exists (select from group_memberships);";
    const AIMED: &str = "insert into policy_targets (policy_id, target_type, target_id)
        select policies.id, 'group', groups.id from policies, groups
            where not exists (select from policy_targets);";
    let lab = Lab::open();
    serve(&lab);
    let ears = Ears::open(&[(&lab.lan, LAN_SERVER), (&lab.lan, LAN_SERVER6)]);
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&alice.announcement(&alice.address6));
    lab.database.exec("insert into policies (name) values ('office')");
    lab.database.exec("insert into groups (name) values ('staff')");
    let restore = format!(
        "{WIDE} {MEMBER} {AIMED}
         update policies set is_active = true;
         update groups set deleted_at = null;
         update devices set status = 'active', revoked_at = null"
    );
    lab.database.exec(&restore);
    let _agent = lab.start();
    let cuts = [
        NARROW,
        "update policies set is_active = false",
        "delete from policy_targets",
        "delete from group_memberships",
        "update groups set deleted_at = now()",
        &alice.revocation(),
    ];
    let ways: Ways = [(&alice.address, LAN_SERVER), (&alice.address6, LAN_SERVER6)]
        .iter()
        .flat_map(|(from, to)| way("alice", from, to))
        .collect();
    for cut in cuts {
        eventually("the LAN answers", || {
            alice.dial();
            alice.reaches(LAN_SERVER) && alice.reaches(LAN_SERVER6)
        });
        let stream = Stream::open(&alice, LAN_SERVER);
        let sources = [alice.address.as_str(), &alice.address6];
        let flood = ears.flood(&[(&alice, &sources)], &[LAN_SERVER, LAN_SERVER6], ways.clone());
        stream.await_bytes();
        flood.await_arrivals(&ways, 10);
        lab.database.exec(cut);
        stream.await_silence();
        flood.await_silence(&ways);
        assert!(!alice.reaches(LAN_SERVER) && !alice.reaches(LAN_SERVER6), "after {cut}");
        lab.database.exec(&restore);
    }
    let audited = "exists (select from audit_logs join policies on entity_id = policies.id
        where event_type = 'policy.applied' and metadata ? 'milliseconds')";
    eventually(audited, || lab.database.holds(audited));
}

/// All kinds of packets get through to an address of the LAN.
#[track_caller]
fn must_pass(client: &Client, address: &str) {
    client.must_reach(address, "a policy allows it");
    eventually("a connection is made", || client.tcp(address, PORT).is_ok());
    assert!(udp_answered(client, address, Duration::from_secs(10)), "{address}");
}

/// Which kinds of packets get through to an address that nothing should get to.
fn passed(client: &Client, address: &str) -> Vec<&'static str> {
    let kinds = [
        ("icmp", client.reaches(address)),
        ("tcp", client.tcp(address, PORT).is_ok()),
        ("udp", udp_answered(client, address, Duration::from_secs(1))),
    ];
    kinds.into_iter().filter_map(|(kind, passed)| passed.then_some(kind)).collect()
}

fn udp_answered(client: &Client, address: &str, within: Duration) -> bool {
    let server: SocketAddr = format!("{address}:{PORT}").parse().unwrap();
    client.space.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(within)).unwrap();
        socket.connect(server).unwrap();
        socket.send(b"ping").is_ok() && socket.recv(&mut [0; 16]).is_ok()
    })
}

/// The LAN's servers: TCP writes for as long as anybody reads, UDP echoes.
fn serve(lab: &Lab) {
    for address in [LAN_SERVER, LAN_OTHER] {
        let (tcp, udp) = lab.lan.within(|| {
            (TcpListener::bind((address, PORT)).unwrap(), UdpSocket::bind((address, PORT)).unwrap())
        });
        thread::spawn(move || {
            for client in tcp.incoming().flatten() {
                thread::spawn(move || write_for_ever(client));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..length], from);
            }
        });
    }
}

fn write_for_ever(mut client: std::net::TcpStream) {
    while client.write_all(b"tick\n").is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// A TCP stream from the LAN and how much of it has come.
struct Stream {
    bytes: Arc<AtomicU64>,
}

impl Stream {
    fn open(client: &Client, address: &str) -> Self {
        let mut stream = client.tcp(address, PORT).unwrap();
        let bytes = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                count.fetch_add(length as u64, Ordering::SeqCst);
            }
        });
        Self { bytes }
    }

    fn await_bytes(&self) {
        eventually("the stream flows", || self.bytes.load(Ordering::SeqCst) >= 100);
    }

    /// Waits until nothing has come for a second.
    fn await_silence(&self) {
        let mut last = (self.bytes.load(Ordering::SeqCst), Instant::now());
        eventually("the stream stops", || {
            let bytes = self.bytes.load(Ordering::SeqCst);
            if bytes != last.0 {
                last = (bytes, Instant::now());
            }
            last.1.elapsed() > Duration::from_secs(1)
        });
    }
}
