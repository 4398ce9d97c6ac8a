//! Policies on real packets: ICMP, TCP and UDP, granted, denied, narrowed, wiped by somebody else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Client, GATEWAY_TUNNEL, LAN_OTHER, LAN_SERVER, Lab, eventually, policy_rows};

const PORT: u16 = 7000;
const NOTHING: [&str; 0] = [];

#[test]
fn only_what_a_policy_grants_passes() {
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
    assert_eq!(passed(&alice, LAN_SERVER), ["icmp", "tcp", "udp"]);
    assert_eq!(passed(&alice, LAN_OTHER), ["icmp", "tcp", "udp"]);
    assert_eq!(passed(&bob, LAN_SERVER), NOTHING, "the policy is another's");
    assert_eq!(passed(&alice, &bob.address), NOTHING, "no policy names the other peer");

    lab.database.exec(&policy_rows("not the server", "alice", &format!("{LAN_SERVER}/32")));
    lab.database
        .exec("update policies set effect = 'deny', priority = 50 where name = 'not the server'");
    eventually("the denial is applied", || !alice.reaches(LAN_SERVER));
    assert_eq!(passed(&alice, LAN_SERVER), NOTHING);
    assert_eq!(passed(&alice, LAN_OTHER), ["icmp", "tcp", "udp"]);

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
    assert!(out.contains(" denied; no other address may reach the same"), "{out}");
}

#[test]
fn a_narrowed_policy_and_a_revocation_cut_a_live_stream() {
    let lab = Lab::open();
    serve(&lab);
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", "10.20.0.0/24"));
    let _agent = lab.start();
    alice.connect();
    let cuts = [
        "update policy_destinations set destination = '10.20.0.128/25'",
        "update policies set is_active = false",
        "delete from policy_targets",
        &alice.revocation(),
    ];
    for cut in cuts {
        eventually("the LAN answers", || {
            alice.dial();
            alice.reaches(LAN_SERVER)
        });
        let stream = Stream::open(&alice, LAN_SERVER);
        stream.await_bytes();
        lab.database.exec(cut);
        stream.await_silence();
        assert!(!alice.reaches(LAN_SERVER), "after {cut}");
        lab.database.exec(
            "update policy_destinations set destination = '10.20.0.0/24';
             update policies set is_active = true;
             insert into policy_targets (policy_id, target_type, target_id)
                 select policies.id, 'user', users.id from policies, users
                 where not exists (select from policy_targets);
             update devices set status = 'active', revoked_at = null",
        );
    }
    let audited = "exists (select from audit_logs join policies on entity_id = policies.id
        where event_type = 'policy.applied' and metadata ? 'milliseconds')";
    eventually(audited, || lab.database.holds(audited));
}

#[test]
fn a_flushed_ruleset_is_put_back() {
    let lab = Lab::open();
    let alice = lab.client("alice");
    lab.database.exec(&alice.rows());
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_OTHER}/32")));
    let _agent = lab.start();
    alice.connect();
    eventually("the policy is applied", || alice.reaches(LAN_OTHER));
    let repaired = || lab.status()["sync"]["drift_repaired"].as_u64().unwrap();
    let before = repaired();
    lab.gateway.run("nft", &["flush", "ruleset"]);
    eventually("the drift is repaired", || repaired() > before);
    assert!(alice.reaches(LAN_OTHER));
    assert!(!alice.reaches(LAN_SERVER), "the firewall came back open");
    let audited = "exists (select from audit_logs where event_type = 'gateway.drift_repaired')";
    eventually(audited, || lab.database.holds(audited));
}

/// Which kinds of packets get through to an address of the LAN.
fn passed(client: &Client, address: &str) -> Vec<&'static str> {
    let kinds = [
        ("icmp", client.reaches(address)),
        ("tcp", client.tcp(address, PORT).is_ok()),
        ("udp", udp_answered(client, address)),
    ];
    kinds.into_iter().filter_map(|(kind, passed)| passed.then_some(kind)).collect()
}

fn udp_answered(client: &Client, address: &str) -> bool {
    let server: SocketAddr = format!("{address}:{PORT}").parse().unwrap();
    client.space.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
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
