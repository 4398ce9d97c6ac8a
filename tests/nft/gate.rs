//! The gate: while our table is gone, no forwarded packet of a peer passes.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use gatepost::dataplane::nft::Nft;
use gatepost::dataplane::{
    Backend, Dataplane, Host, HostEvent, HostSettings, Monitor, SharedObserved,
};
use gatepost::model::{FirewallBase, GateObstacle, MarkBit, Networks, ObservedState, RoutingRule};
use gatepost::plan::{Plan, Step, gate};
use ipnet::IpNet;
use std::collections::BTreeSet;

use super::netns::Netns;
use super::network::{GATEWAY4, LAN4, LAN6, Network, Stream, bind, connect, pings, serve, within};
use super::packets::{nothing, world};
use super::table::{WG, base, load, profile};

const ALICE4: &str = "10.64.0.2";
const ALICE6: &str = "fd64::2";
const BOB4: &str = "10.64.0.3";
const BOB6: &str = "fd64::3";
const PORT: u16 = 9000;
const FLUSHES: usize = 5;
const EACH: usize = 25;
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(200);

/// A host that adds and removes rules, in the namespace of this thread.
fn host() -> Host<Nft> {
    let settings = HostSettings {
        interface: WG.parse().unwrap(),
        backend: Backend::Kernel,
        device_exe: "/nowhere".into(),
    };
    Host::open(settings, Nft::open().unwrap()).unwrap()
}

fn apply(host: &mut Host<Nft>, step: Step) {
    let observed = SharedObserved::from(ObservedState::default());
    let outcome = host.apply(&Plan::new(vec![step]), &observed);
    assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
}

fn rules(networks: &Networks) -> BTreeSet<RoutingRule> {
    gate::rules(&WG.parse().unwrap(), networks.gated(), MarkBit::default())
}

/// Hears datagrams of one flood.
struct Ear(UdpSocket);

impl Ear {
    fn open(netns: &Netns, address: &str) -> Self {
        Self(bind(netns, address, PORT))
    }

    /// How many have come, where so many should: those are awaited for long, others are not.
    fn heard(&self, expected: usize) -> usize {
        let comes = |patience| {
            self.0.set_read_timeout(Some(patience)).unwrap();
            self.0.recv(&mut [0; 16]).is_ok()
        };
        let came = (0..expected).take_while(|_| comes(PATIENCE)).count();
        came + std::iter::repeat(SILENCE).take_while(|silence| comes(*silence)).count()
    }
}

/// Sends from a socket of its own, so that the flow is new.
fn send(from: &Netns, to: &str) {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    within(from, || {
        let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        for _ in 0..EACH {
            // What is denied may be answered with an error.
            let _ = socket.send_to(b"denied", to);
        }
    });
}

/// Peers to the LAN, the LAN to a peer, and peers to each other.
fn flood(network: &Network, from_lan: &[&str]) {
    for to in [LAN4, LAN6, BOB4, BOB6] {
        send(&network.alice, to);
    }
    for to in from_lan {
        send(&network.lan, to);
    }
}

#[test]
fn no_forwarded_packet_passes_while_the_table_is_flushed() {
    nothing_passes_while_the_table_is_flushed(base().networks, &[ALICE4]);
}

#[test]
fn no_forwarded_packet_passes_while_the_table_is_flushed_with_a_pool_of_ipv6() {
    let pool = "fd64::/64".parse().unwrap();
    nothing_passes_while_the_table_is_flushed(Networks::new(pool, [].iter()), &[ALICE6]);
}

#[test]
fn no_forwarded_packet_of_either_family_passes_while_the_table_is_flushed() {
    let other: IpNet = "fd64::/64".parse().unwrap();
    let networks = base().networks.with_others([other].into_iter());
    nothing_passes_while_the_table_is_flushed(networks, &[ALICE4, ALICE6]);
}

fn nothing_passes_while_the_table_is_flushed(networks: Networks, alice: &[&str]) {
    let mut network = Network::new();
    let mut ears = vec![
        Ear::open(&network.lan, LAN4),
        Ear::open(&network.lan, LAN6),
        Ear::open(&network.bob, BOB4),
        Ear::open(&network.bob, BOB6),
    ];
    ears.extend(alice.iter().map(|address| Ear::open(&network.alice, address)));
    let heard = |expected| ears.iter().map(|ear| ear.heard(expected)).collect::<Vec<_>>();
    let base = FirewallBase { networks, ..base() };
    let rules = || rules(&base.networks);
    let table = load(&base, &world(nothing(), nothing()));
    flood(&network, alice);
    assert_eq!(heard(EACH), vec![EACH; ears.len()], "without a table everything passes");
    let mut host = host();
    network.gateway.run("sysctl -qw net.ipv4.conf.all.src_valid_mark=1");
    for rp_filter in [0, 1, 2] {
        network.gateway.run(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter}"));
        network.nft.apply(&table, None).unwrap();
        apply(&mut host, Step::AddRules { rules: rules() });
        for _ in 0..FLUSHES {
            network.nft.apply(&table, None).unwrap();
            flood(&network, alice);
            network.gateway.run("nft flush ruleset");
            flood(&network, alice);
        }
        assert_eq!(heard(0), vec![0; ears.len()], "rp_filter {rp_filter}");
        apply(&mut host, Step::RemoveRules { rules: rules() });
        flood(&network, alice);
        assert_eq!(
            heard(EACH),
            vec![EACH; ears.len()],
            "rp_filter {rp_filter}: the gate was not taken away"
        );
    }
}

#[test]
fn gate_lets_everything_pass_that_the_table_allows() {
    let mut network = Network::new();
    let reach = profile(&["172.16.1.0/24", "fd10::/64", "10.64.0.0/24"], &[]);
    network.nft.apply(&load(&base(), &world(reach, nothing())), None).unwrap();
    serve(&network.lan, 80);
    serve(&network.bob, 80);
    let mut host = host();
    let rules = || rules(&base().networks);
    network.gateway.run("sysctl -qw net.ipv4.conf.all.src_valid_mark=1");
    let before = network.gateway.run("ip rule; ip -6 rule");
    for rp_filter in [0, 1, 2] {
        network.gateway.run(&format!("sysctl -qw net.ipv4.conf.all.rp_filter={rp_filter}"));
        let mut streams = [LAN4, LAN6, BOB4].map(|to| connect(&network.alice, to, 80).unwrap());
        apply(&mut host, Step::AddRules { rules: rules() });
        assert_eq!(host.observe().unwrap().state.routing.rules.intersection(&rules()).count(), 5);
        assert!(streams.iter_mut().all(Stream::echoes), "rp_filter {rp_filter}: a flow was cut");
        for to in [LAN4, LAN6, BOB4] {
            assert!(
                connect(&network.alice, to, 80).unwrap().echoes(),
                "rp_filter {rp_filter}: {to}"
            );
        }
        assert!(pings(&network.alice, GATEWAY4) && pings(&network.gateway, BOB4));
        assert!(pings(&network.gateway, LAN4), "rp_filter {rp_filter}");
        // Adding what is there, and removing what is gone, is no error.
        apply(&mut host, Step::AddRules { rules: rules() });
        apply(&mut host, Step::RemoveRules { rules: rules() });
        apply(&mut host, Step::RemoveRules { rules: rules() });
        assert!(streams.iter_mut().all(Stream::echoes), "rp_filter {rp_filter}");
    }
    assert_eq!(network.gateway.run("ip rule; ip -6 rule"), before, "rules were left behind");
    let marks = network.gateway.run("nft list chain inet gatepost from_peers");
    assert!(marks.contains("meta mark set meta mark | 0x00001000"), "{marks}");
}

/// The kernel takes the hooks of a flushed table away one after the other, in this order, and packets pass
/// meanwhile. Where the one that judges goes before the one that marks, the gate takes unjudged packets for judged ones.
#[test]
fn packets_are_not_marked_any_more_when_they_are_not_judged_any_more() {
    let mut network = Network::new();
    network.nft.apply(&load(&base(), &world(nothing(), nothing())), None).unwrap();
    let listing = network.gateway.run("nft list table inet gatepost");
    let place = |chain: &str| listing.find(&format!("chain {chain} {{")).unwrap();
    assert!(place("arrivals") < place("forward"), "{listing}");
}

/// What decides whether the gate may be in force is true of the kernel.
#[test]
fn what_the_gate_depends_on_is_read() {
    let netns = Netns::new();
    netns.enter();
    let mut host = host();
    let mut routing = || host.observe().unwrap().state.routing;
    let sysctl = |text: &str| netns.run(&format!("sysctl -qw net.ipv4.conf.{text}"));
    sysctl("all.rp_filter=0");
    sysctl("default.rp_filter=0");
    sysctl("all.src_valid_mark=0");
    netns.run("ip link add dummy0 type bridge");
    assert_eq!(gate::obstacle(&routing(), MarkBit::default()), None);
    sysctl("default.rp_filter=1");
    assert!(!routing().checks_sources, "no link has it yet");
    sysctl("dummy0.rp_filter=2");
    assert!(routing().checks_sources);
    sysctl("all.src_valid_mark=1");
    assert!(!routing().checks_sources);
    netns.run("ip rule add table local priority 100 && ip rule del priority 0");
    assert_eq!(gate::obstacle(&routing(), MarkBit::default()), Some(GateObstacle::LocalRuleMoved));
    netns.run("ip rule add table local priority 0");
    assert_eq!(gate::obstacle(&routing(), MarkBit::default()), None);
    netns.run("ip rule add fwmark 1 table 7 priority 100");
    let why = gate::obstacle(&routing(), MarkBit::default()).unwrap().to_string();
    assert!(why.contains("\"IPv4 100: fwmark 0x1\""), "{why}");
}

/// The kernel announces no change of it.
#[tokio::test(flavor = "current_thread")]
async fn marks_that_no_longer_count_are_noticed_at_once() {
    let netns = Netns::new();
    netns.enter();
    let sysctl = |value: u8| {
        netns.run(&format!("sysctl -qw net.ipv4.conf.all.src_valid_mark={value}"));
    };
    sysctl(1);
    let mut monitor = Monitor::open(WG.parse().unwrap(), None, 0).unwrap();
    for value in [0, 1, 0] {
        sysctl(value);
        let event = tokio::time::timeout(PATIENCE, monitor.next()).await;
        assert_eq!(event.expect("an event").unwrap(), HostEvent::Rule, "{value}");
    }
}
