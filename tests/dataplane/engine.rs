//! The userspace device beside the kernel's: sessions that changes leave alone, its port, its end, and
//! who may talk to it.

use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use defguard_wireguard_rs::{Userspace, WGApi, WireguardInterfaceApi};
use gatepost::dataplane::{Backend, BackendInUse, Dataplane};
use gatepost::model::{InterfaceName, PresharedKey, PublicKey};
use gatepost::plan::Step;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::device::{end, pid};
use crate::netns::Netns;
use crate::rig::{Gateway, PORT, add, interface, key, peer, prefixes, private_key, with_gateway};
use crate::runner::Test;
use crate::tunnel::Client;

pub const TESTS: &[Test] = &[
    ("no_change_of_a_peer_ends_its_session", sessions),
    ("a_port_that_changes_and_changes_back_carries_the_session_on", port),
    ("a_device_ends_with_its_link_and_frees_its_port", deleted),
    ("a_device_ends_when_its_link_goes_with_another_namespace", moved),
    ("a_session_of_a_device_that_ended_is_opened_by_the_gateway", reopened),
    ("a_device_starts_without_ipv6", without_ipv6),
    ("a_device_of_the_same_name_in_another_namespace_is_left_alone", namesakes),
    ("a_stranger_who_connects_reads_nothing", stranger_connects),
    ("a_stranger_who_has_the_name_gets_no_byte", stranger_has_the_name),
    ("a_device_of_the_last_version_is_kept", last_version),
];

/// The user that the strangers of these tests are.
const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(30);

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn client_key() -> PublicKey {
    private_key(2).public_key()
}

/// A gateway with a client that has a session.
pub fn with_session(test: impl FnOnce(&Netns, &mut Gateway, &Client) + Send) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), Backend::Userspace);
        let peer = peer(&["10.7.0.2/32", "fd07::2/128"]);
        gateway.apply_all(vec![Step::AddPeer { key: client_key(), peer }]);
        let client = Client::new(Backend::Userspace, &netns);
        eventually("the client has a session", || client.reaches("10.7.0.1"));
        test(&netns, &mut gateway, &client);
    });
}

/// When the client's last handshake was, as `wg` reads it from the gateway.
fn handshake(netns: &Netns, name: &InterfaceName) -> u64 {
    let shown = netns.exec(&format!("wg show {name} latest-handshakes"));
    let line = shown.lines().find(|line| line.starts_with(&client_key().to_string()));
    line.unwrap().split('\t').nth(1).unwrap().parse().unwrap()
}

fn sessions(_: Backend) {
    with_session(|netns, gateway, client| {
        let (name, key) = (gateway.name.clone(), client_key());
        let first = handshake(netns, &name);
        let same_session = |what: &str| {
            assert!(client.reaches("10.7.0.1"), "no packet passes after {what}");
            assert_eq!(handshake(netns, &name), first, "another session after {what}");
        };
        let steps = [
            Step::SetPresharedKey { key, preshared_key: PresharedKey::from_bytes([9; 32]).ok() },
            Step::SetPresharedKey { key, preshared_key: None },
            Step::SetKeepalive { key, keepalive_secs: 25 },
            Step::WidenPeer { key, allowed_ips: prefixes(&["192.168.5.0/24"]) },
            Step::NarrowPeer { key, allowed_ips: prefixes(&["10.7.0.2/32", "fd07::2/128"]) },
            // As after a reading that missed it.
            Step::AddPeer { key, peer: peer(&["10.7.0.2/32"]) },
            add(7, &["10.7.0.7/32"]),
            Step::RemovePeer { key: crate::rig::key(7) },
            Step::SetFwmark { fwmark: 7 },
            Step::SetPrivateKey { private_key: private_key(1) },
        ];
        for step in steps {
            let what = step.to_string();
            let outcome = gateway.apply(vec![step]);
            assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
            same_session(&what);
        }
        for change in [
            "persistent-keepalive 5",
            "allowed-ips 10.7.0.2/32,192.168.9.0/24",
            "preshared-key /dev/null",
            "allowed-ips 10.7.0.2/32 persistent-keepalive off",
        ] {
            netns.exec(&format!("wg set {name} peer {key} {change}"));
            same_session(change);
        }
    });
}

fn port(_: Backend) {
    with_session(|netns, gateway, client| {
        let first = handshake(netns, &gateway.name);
        gateway.apply_all(vec![Step::SetListenPort { port: PORT + 1 }]);
        drop(UdpSocket::bind(("0.0.0.0", PORT)).expect("the first port is free"));
        gateway.apply_all(vec![Step::SetListenPort { port: PORT }]);
        eventually("packets pass again", || client.reaches("10.7.0.1"));
        assert_eq!(handshake(netns, &gateway.name), first, "another session");
    });
}

fn port_is_free() -> bool {
    UdpSocket::bind(("0.0.0.0", PORT)).is_ok() && UdpSocket::bind(("::", PORT)).is_ok()
}

fn deleted(_: Backend) {
    with_session(|netns, gateway, _| {
        assert!(!port_is_free());
        let device = pid(&gateway.name);
        netns.exec(&format!("ip link del {}", gateway.name));
        eventually("the process ends", || kill(device, None).is_err());
        assert!(port_is_free());
        gateway.observed = gateway.host.observe().unwrap().state;
        gateway.apply_all(gateway.steps_up());
    });
}

fn moved(_: Backend) {
    with_gateway(Backend::Userspace, |netns, gateway| {
        let device = pid(&gateway.name);
        let other = Netns::new("Bo");
        netns.exec(&format!("ip link set {} netns {}", gateway.name, other.name()));
        drop(other);
        eventually("the process ends", || kill(device, None).is_err());
        assert!(port_is_free());
    });
}

/// The client sends nothing: the gateway knows where it was.
fn reopened(_: Backend) {
    with_session(|netns, gateway, client| {
        gateway.host.observe().unwrap();
        end(gateway, |gateway| kill(pid(&gateway.name), Signal::SIGKILL).unwrap());
        gateway.observed = gateway.host.observe().unwrap().state;
        let mut steps = gateway.steps_up();
        steps.push(Step::AddPeer { key: client_key(), peer: peer(&["10.7.0.2/32"]) });
        gateway.apply_all(steps);
        let name = gateway.name.clone();
        eventually("the gateway opens a session", || handshake(netns, &name) > 0);
        assert!(client.reaches("10.7.0.1"));
    });
}

fn without_ipv6(_: Backend) {
    const SYS_SOCKET: i64 = if cfg!(target_arch = "aarch64") { 198 } else { 41 };
    const AF_INET6: u64 = 10;
    const EAFNOSUPPORT: u32 = 97;
    let netns = Netns::new("Bg");
    netns.enter(|| {
        // As a kernel says that was booted with ipv6.disable=1. It holds for this thread and for the
        // device that it starts.
        let family =
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, AF_INET6).unwrap();
        let rules = [(SYS_SOCKET, vec![SeccompRule::new(vec![family]).unwrap()])];
        let filter = SeccompFilter::new(
            rules.into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(EAFNOSUPPORT),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        let refused = UdpSocket::bind("[::]:0").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(97), "{refused}");
        let mut gateway = Gateway::open(interface(), Backend::Userspace);
        let v6 =
            |step: &Step| matches!(step, Step::AddAddress { address } if address.addr().is_ipv6());
        let steps = gateway.steps_up().into_iter().filter(|step| !v6(step));
        let steps: Vec<Step> = steps
            .chain([Step::AddPeer { key: client_key(), peer: peer(&["10.7.0.2/32"]) }])
            .collect();
        gateway.apply_all(steps);
        let client = Client::new(Backend::Userspace, &netns);
        eventually("packets pass", || client.reaches("10.7.0.1"));
    });
}

fn namesakes(_: Backend) {
    with_session(|netns, gateway, client| {
        let name = gateway.name.clone();
        let key_before = netns.exec(&format!("wg show {name} public-key"));
        let other = Netns::new("Bo");
        other.enter(|| {
            let mut namesake = Gateway::open(name.clone(), Backend::Userspace);
            let mut steps = namesake.steps_up();
            steps.retain(|step| !matches!(step, Step::SetPrivateKey { .. }));
            steps.insert(2, Step::SetPrivateKey { private_key: private_key(5) });
            steps.push(add(9, &["10.7.0.9/32"]));
            let count = steps.len();
            let outcome = namesake.apply(steps);
            assert_eq!((outcome.applied, outcome.refused.len()), (count, 0), "{outcome:?}");
            let state = namesake.host.observe().unwrap().state;
            let link = state.interface.unwrap();
            assert_eq!(link.public_key, Some(private_key(5).public_key()));
            assert_eq!(state.peers.keys().collect::<Vec<_>>(), [&key(9)]);
        });
        gateway.check();
        assert_eq!(netns.exec(&format!("wg show {name} public-key")), key_before);
        assert!(client.reaches("10.7.0.1"));
    });
}

/// A program of another user, on the calling thread's namespace.
fn as_nobody(perl: &str) -> Child {
    let mut command = Command::new("perl");
    command.args(["-MSocket", "-e", perl]).uid(NOBODY).gid(NOBODY);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn stranger_connects(_: Backend) {
    with_gateway(Backend::Userspace, |_, gateway| {
        let script = |name: &InterfaceName| {
            format!(
                r#"$SIG{{PIPE}} = "IGNORE"; socket(S, PF_UNIX, SOCK_STREAM, 0);
                   connect(S, pack_sockaddr_un("\0gatepost/{name}")) or die "no device: $!";
                   syswrite(S, "get=1\n\n"); sysread(S, $said, 9000); print "read:$said";"#
            )
        };
        let said = as_nobody(&script(&gateway.name)).wait_with_output().unwrap();
        assert!(said.status.success(), "{said:?}");
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "read:");
        gateway.check();
    });
}

fn stranger_has_the_name(_: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let name = interface();
        let mut stranger = as_nobody(&format!(
            r#"$| = 1; socket(S, PF_UNIX, SOCK_STREAM, 0);
               bind(S, pack_sockaddr_un("\0gatepost/{name}")) or die "bind: $!";
               listen(S, 9); print "ready\n";
               while (accept(C, S)) {{ $said = ""; sysread(C, $said, 9000); print "got:$said\n"; }}"#
        ));
        let mut output = stranger.stdout.take().unwrap();
        let mut ready = [0; 6];
        output.read_exact(&mut ready).unwrap();
        let mut gateway = Gateway::open(name, Backend::Userspace);
        let outcome = gateway.apply(gateway.steps_up());
        assert_eq!(outcome.applied, 0, "{outcome:?}");
        let reason = outcome.refused[0].error.to_string();
        assert!(reason.contains("of user 65534"), "{reason}");
        let mut heard = [0; 5];
        output.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"got:\n", "the agent told a stranger something");
        kill(Pid::from_raw(stranger.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
        stranger.wait().unwrap();
        let mut heard = String::new();
        output.read_to_string(&mut heard).unwrap();
        assert!(heard.lines().all(|line| line == "got:"), "{heard}");
        // With the stranger gone, the gateway comes up.
        gateway.apply_all(gateway.steps_up());
    });
}

/// What the last version ran as `gatepost device`, in the words of the same library.
pub fn serve_as_last_version(name: &str) {
    let name = name.to_owned();
    // Its thread blocks the signals that end the process.
    std::thread::spawn(move || {
        let mut device = WGApi::<Userspace>::new(name).unwrap();
        device.create_interface().unwrap();
        println!("ready");
        loop {
            std::thread::park();
        }
    });
    loop {
        std::thread::park();
    }
}

/// An upgrade meets a device that the last version started: it goes on, with its session.
fn last_version(_: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let name = interface();
        let exe = std::env::current_exe().unwrap();
        let mut device = Command::new(exe)
            .args(["device-of-the-last-version", name.as_str()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        device.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let mut gateway = Gateway::open(name, Backend::Userspace);
        gateway.observed = gateway.host.observe().unwrap().state;
        assert_eq!(gateway.host.observe().unwrap().backend, Some(BackendInUse::Userspace));
        let gateway_id = crate::rig::gateway_id();
        let mut steps = gateway.steps_up();
        steps[0] = Step::ClaimLink { gateway_id };
        steps.push(Step::AddPeer { key: client_key(), peer: peer(&["10.7.0.2/32"]) });
        gateway.apply_all(steps);
        let client = Client::new(Backend::Userspace, &netns);
        eventually("the client has a session", || client.reaches("10.7.0.1"));
        let first = handshake(&netns, &gateway.name);
        // An agent that starts now finds all as it is, and another peer can be added and changed.
        let mut next = Gateway::open(gateway.name.clone(), Backend::Userspace);
        next.observed = next.host.observe().unwrap().state;
        assert_eq!(
            crate::rig::ours(next.observed.clone()),
            crate::rig::ours(gateway.observed.clone())
        );
        next.apply_all(vec![add(9, &["10.7.0.9/32"])]);
        next.apply_all(vec![
            Step::WidenPeer { key: key(9), allowed_ips: prefixes(&["10.9.0.0/24"]) },
            Step::RemovePeer { key: key(9) },
        ]);
        assert!(client.reaches("10.7.0.1"));
        assert!(handshake(&netns, &next.name).abs_diff(first) <= 2, "another session");
        assert!(device.try_wait().unwrap().is_none(), "the device ended");
        drop((next, gateway));
        device.wait().unwrap();
    });
}
