//! Flows that another program has put into a flowtable: the kernel lets nobody cut them.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use gatepost::dataplane::{Backend, DataplaneError};
use gatepost::plan::Step;

use crate::netns::Netns;
use crate::rig::{Gateway, add, interface, key};
use crate::runner::Test;

pub const KERNEL_TESTS: &[Test] = &[(
    "a_peer_with_a_flow_in_a_flowtable_goes_and_nobody_gets_its_address_before_the_flow_has_ended",
    offloaded,
)];

const HOLDER: &str = "10.9.0.2";
const SERVER: &str = "192.0.2.2";
const PATIENCE: Duration = Duration::from_secs(60);

const FLOWTABLE: &str = "table ip theirs {
    flowtable fast { hook ingress priority 0; devices = { left, right }; }
    chain forward { type filter hook forward priority 0; ip protocol udp flow add @fast; }
}
";

fn offloaded(backend: Backend) {
    let (netns, holder, server) = (Netns::new("Bg"), Netns::new("Bo"), Netns::new("Bs"));
    for (link, other, [here, there]) in
        [("left", &holder, ["10.9.0.1", HOLDER]), ("right", &server, ["192.0.2.1", SERVER])]
    {
        netns.plug(link, other);
        netns.exec(&format!("ip address add {here}/24 dev {link}"));
        other.exec(&format!("ip address add {there}/24 dev {link}"));
        other.exec(&format!("ip route add default via {here}"));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), FLOWTABLE).unwrap();
    netns.exec(&format!("nft -f {}", file.path().display()));
    netns.exec("sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_flowtable_udp_timeout=1");
    let service = server.enter(|| UdpSocket::bind((SERVER, 7000)).unwrap());
    let client = holder.enter(|| UdpSocket::bind((HOLDER, 7001)).unwrap());
    client.connect((SERVER, 7000)).unwrap();
    let exchange = || {
        client.send(b"x").unwrap();
        let (_, from) = service.recv_from(&mut [0; 9]).unwrap();
        service.send_to(b"y", from).unwrap();
        client.recv(&mut [0; 9]).unwrap();
    };
    netns.enter(|| {
        let mut gateway = Gateway::up(interface(), backend);
        gateway.apply_all(vec![add(1, &["10.9.0.2/32"])]);
        let began = Instant::now();
        while !is_offloaded() {
            assert!(began.elapsed() < PATIENCE, "the flow is not in the flowtable");
            exchange();
        }
        let cut = || Step::CutFlows { prefixes: ["10.9.0.2/32".parse().unwrap()].into() };
        let outcome = gateway.apply(vec![
            cut(),
            Step::RemovePeer { key: key(1) },
            add(2, &["10.9.0.2/32"]),
            add(3, &["10.9.0.3/32"]),
        ]);
        if outcome.offloaded.is_empty() {
            // Newer kernels let such a flow be cut like any other.
            assert_eq!((outcome.applied, outcome.flows_cut), (4, 1), "{outcome:?}");
            assert!(!is_offloaded());
            return;
        }
        let [refused] = &outcome.refused[..] else { panic!("{outcome:?}") };
        assert_eq!(refused.step, add(2, &["10.9.0.2/32"]));
        assert!(matches!(*refused.error, DataplaneError::Offloaded), "{refused:?}");
        assert_eq!(outcome.offloaded, ["10.9.0.2/32".parse().unwrap()].into());
        assert_eq!(gateway.observed.peers.keys().collect::<Vec<_>>(), [&key(3)]);
        gateway.check();
        // Nothing is sent any more.
        while is_offloaded() {
            assert!(began.elapsed() < PATIENCE, "the flow does not end");
            std::thread::sleep(Duration::from_millis(100));
        }
        gateway.apply_all(vec![cut(), add(2, &["10.9.0.2/32"])]);
    });
}

/// Whether a flow of this thread's namespace is in a flowtable.
fn is_offloaded() -> bool {
    let listed = Command::new("conntrack").arg("-L").output().expect("the program conntrack");
    String::from_utf8_lossy(&listed.stdout).contains("[OFFLOAD]")
}
