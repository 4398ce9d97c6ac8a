use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{Gid, Group, Uid, User};

use gatepost::model::{DeviceId, PeerId, UserId, Whom};

use super::caller::{Caller, Denied};
use super::protocol::Request;
use super::{Client, ControlError, Server, Writers};
use crate::handles::{Ask, LoopHandle, channels};
use gatepost::reconcile::status::{
    DeniedEnd, DeniedPacket, Exact, Explanation, PeerState, PeerStatus, State, Status, Timestamp,
};
use gatepost::reconcile::{ExplainError, NothingHeldBack, WhoError};

fn peer(user: &str) -> PeerStatus {
    PeerStatus {
        state: PeerState::InKernel,
        peer_id: Some(PeerId(uuid::Uuid::nil())),
        user: user.to_owned(),
        user_id: Some(UserId(uuid::Uuid::nil())),
        device: "laptop".to_owned(),
        device_id: Some(DeviceId(uuid::Uuid::nil())),
        public_key: String::new(),
        addresses: vec!["10.8.0.7/32".parse().unwrap()],
        read_at: None,
        endpoint: None,
        last_handshake_at: Some(Timestamp(SystemTime::UNIX_EPOCH)),
        rx_bytes: 1,
        tx_bytes: 2,
        policies: vec![],
    }
}

/// A loop that answers every request and never syncs anything.
async fn answer_everything(mut end: LoopHandle) {
    while let Some(ask) = end.asks.recv().await {
        match ask {
            Ask::Peers { answer, .. } => drop(answer.send(vec![peer("anna"), peer("ben")])),
            Ask::Explain { who, destination, answer } => {
                let found = who == "anna";
                let explanation = Explanation {
                    allowed: true,
                    text: format!("{who} may reach {destination}"),
                    details: serde_json::json!({"verdict": "allow"}),
                };
                let candidates = vec!["cara".to_owned()];
                let unknown = ExplainError::UnknownPeer { who, candidates };
                drop(answer.send(if found { Ok(explanation) } else { Err(unknown) }));
            }
            Ask::Whom { who, answer } => {
                let candidates = vec!["anna".to_owned()];
                let known = Ok((Whom::User(UserId(uuid::Uuid::nil())), "anna".into()));
                let unknown = || WhoError::Unknown { who: who.clone(), candidates };
                drop(answer.send(if who.contains("anna") { known } else { Err(unknown()) }));
            }
            Ask::Reload(_) | Ask::Denied { .. } => {}
            Ask::Resync(answer) => drop(answer.send(Ok(()))),
            Ask::Block { who, answer } | Ask::Unblock { who, answer } => {
                let candidates = Vec::new();
                drop(answer.send(Err(WhoError::NotBlocked { who, candidates })));
            }
            Ask::Confirm { answer, .. } => drop(answer.send(Err(NothingHeldBack))),
        }
    }
}

/// Lets the user of this test change something, root or not.
fn may_write() -> Writers {
    let group = Group::from_gid(nix::unistd::getgid()).unwrap().unwrap();
    Writers::new(Some(&group.name))
}

async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test]
async fn each_request_gets_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/control.sock");
    let server = Server::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let (watcher, end, _stop) = channels(Status::default(), Instant::now());
    end.status.send_modify(|status| status.state = State::Ready);
    tokio::spawn(answer_everything(end));
    let serving = tokio::spawn(server.serve(watcher, may_write()));

    let socket = path.clone();
    blocking(move || {
        let client = Client::new(&socket);
        assert_eq!(client.status().unwrap().state, State::Ready);
        let mut users = Vec::new();
        client.peers(None, |peer| users.push(peer.user)).unwrap();
        assert_eq!(users, ["anna", "ben"]);
        assert_eq!(client.explain("anna", "10.0.0.1").unwrap().text, "anna may reach 10.0.0.1");
        let refused = client.explain("carl", "10.0.0.1").unwrap_err().to_string();
        assert!(
            refused.contains(r#"no peer of this gateway is "carl" (did you mean cara?)"#),
            "{refused}"
        );
        client.resync().unwrap();
        assert!(
            client
                .confirm(SystemTime::UNIX_EPOCH, None)
                .unwrap_err()
                .to_string()
                .ends_with("no removal is held back")
        );

        let mut raw = UnixStream::connect(&socket).unwrap();
        raw.write_all(b"{\"op\":\"dance\"}\n").unwrap();
        let mut reply = String::new();
        raw.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with(r#"{"error":"no such request: unknown variant `dance`"#));
    })
    .await;

    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "a stopped server takes its socket with it");
}

/// A packet of a device's that may not reach a server.
fn denied_packet(user: &str) -> DeniedPacket {
    let end = |address: [u8; 4], user: &str, device: &str| DeniedEnd {
        address: address.into(),
        user: user.into(),
        device: device.into(),
    };
    DeniedPacket {
        at: Timestamp(SystemTime::UNIX_EPOCH),
        from: end([10, 8, 0, 2], user, "laptop"),
        to: end([10, 20, 0, 5], "", ""),
        service: "tcp/443".into(),
        reason: "no policy".into(),
        policy: None,
    }
}

#[tokio::test]
async fn denied_packets_of_an_unknown_name_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let (watcher, end, _stop) = channels(Status::default(), Instant::now());
    watcher.denied.set_logs(true);
    watcher.denied.push(denied_packet("anna"));
    watcher.denied.push(denied_packet("former"));
    tokio::spawn(answer_everything(end));
    tokio::spawn(Server::bind(&path).unwrap().serve(watcher, may_write()));
    blocking(move || {
        let denied = |who: &str, follow| {
            let mut users = Vec::new();
            let each = |packet: DeniedPacket| {
                users.push(packet.from.user);
                true
            };
            Client::new(&path).denied(Some(who), follow, each).map(|()| users)
        };
        for follow in [false, true] {
            let slip = denied("ana", follow).unwrap_err().to_string();
            assert!(slip.contains(r#"is "ana" (did you mean anna?)"#), "{slip}");
        }
        assert_eq!(denied("anna", false).unwrap(), ["anna"]);
        assert_eq!(denied("an id of anna's", false).unwrap(), ["anna"]);
        assert_eq!(denied("former", false).unwrap(), ["former"], "its rows are gone");
    })
    .await;
}

#[tokio::test]
async fn stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    let refused = Client::new(&path).status().unwrap_err();
    assert!(matches!(refused, ControlError::NoAgent { .. }), "{refused}");

    let first = Server::bind(&path).unwrap();
    let second = Server::bind(&path).unwrap_err();
    assert!(matches!(second, ControlError::Taken { .. }), "{second}");
    assert!(path.exists(), "the second must not take the first one's socket away");
    drop(first);
    Server::bind(&path).unwrap();
}

#[tokio::test]
async fn requests_to_a_loop_that_ended_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let (watcher, end, _stop) = channels(Status::default(), Instant::now());
    drop(end);
    tokio::spawn(Server::bind(&path).unwrap().serve(watcher, may_write()));
    let refused = blocking(move || Client::new(&path).resync().unwrap_err().to_string()).await;
    assert!(refused.ends_with("the agent is stopping"), "{refused}");
}

#[tokio::test]
async fn silent_connections_keep_no_request_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let (watcher, mut end, _stop) = channels(Status::default(), Instant::now());
    let (reading, mut listed) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(ask) = end.asks.recv().await {
            let Ask::Peers { answer, .. } = ask else { unreachable!("nothing else is asked") };
            // More than the socket holds for a client that does not read.
            drop(answer.send(vec![peer("anna"); 5_000]));
            reading.send(()).unwrap();
        }
    });
    tokio::spawn(Server::bind(&path).unwrap().serve(watcher, may_write()));
    blocking(move || {
        let connect = || UnixStream::connect(&path).unwrap();
        let _silent: Vec<UnixStream> = (0..64).map(|_| connect()).collect();
        let _deaf: Vec<UnixStream> = (0..24)
            .map(|_| {
                let mut deaf = connect();
                deaf.write_all(b"{\"op\":\"peers\"}\n").unwrap();
                listed.blocking_recv().unwrap();
                deaf
            })
            .collect();
        let asked = Instant::now();
        Client::new(&path).status().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    })
    .await;
}

#[tokio::test]
async fn only_root_and_members_of_the_write_group_change_something() {
    let (nobody, group) = (User::from_name("nobody"), Group::from_gid(Gid::from_raw(0)));
    let (nobody, group) = (nobody.unwrap().unwrap(), group.unwrap().unwrap().name);
    let caller = |uid, gid| Caller::new(Uid::from_raw(uid), Gid::from_raw(gid), Some(7));
    let stranger = || caller(nobody.uid.as_raw(), nobody.gid.as_raw());
    let member = Writers::new(Some(&group));
    for writers in [&member, &Writers::default()] {
        writers.admit(caller(0, 0)).await.unwrap();
    }
    member.admit(caller(nobody.uid.as_raw(), 0)).await.unwrap();

    let denied = member.admit(stranger()).await.unwrap_err();
    assert!(matches!(denied, Denied::NoMember(..)), "{denied}");
    let said = denied.to_string();
    assert!(said.starts_with("user nobody (uid ") && said.contains("pid 7"), "{said}");
    assert!(said.contains(&format!("as a member of group {group}")), "{said}");
    let said = Writers::default().admit(stranger()).await.unwrap_err().to_string();
    assert!(said.contains("[control] write_group"), "{said}");
    let missing = Writers::new(Some("no-such-group"));
    let said = missing.admit(stranger()).await.unwrap_err().to_string();
    assert!(said.contains("create group no-such-group"), "{said}");
}

/// PostgreSQL's package makes user postgres such a member: of group ssl-cert.
#[tokio::test]
async fn member_by_a_supplementary_group_of_its_user_changes_something_whatever_its_process_has() {
    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let members = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (group, member) = (fields.next()?, fields.nth(2)?.split(',').next()?);
        let user = User::from_name(member).unwrap()?;
        let is_primary = Group::from_name(group).unwrap()?.gid == user.gid;
        (!is_primary && !user.uid.is_root()).then_some((group, user))
    });
    let found = members.into_iter().next();
    let (group, user) = found.expect("a user of this host has a supplementary group");
    let caller = Caller::new(user.uid, user.gid, Some(7));
    let admitted = Writers::new(Some(group)).admit(caller).await.unwrap();
    assert_eq!(admitted.fields().2, user.name);
}

#[test]
fn question_for_all_peers_is_that_of_an_older_client() {
    let older = r#"{"op":"peers"}"#;
    let request = Request::Peers { user: None };
    assert_eq!(serde_json::from_str::<Request>(older).unwrap(), request);
    assert_eq!(serde_json::to_string(&request).unwrap(), older);
}

#[test]
fn confirmation_of_an_older_client_lets_no_peer_in() {
    let older = r#"{"op":"confirm","until":"1970-01-01T00:00:00.000000Z"}"#;
    let until = SystemTime::UNIX_EPOCH;
    let request = Request::Confirm { until, let_in_until: None };
    assert_eq!(serde_json::from_str::<Request>(older).unwrap(), request);
    assert_eq!(serde_json::to_string(&request).unwrap(), older);
    let newer = Request::Confirm { until, let_in_until: Some(Exact(until)) };
    let text = serde_json::to_string(&newer).unwrap();
    assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), newer);
}
