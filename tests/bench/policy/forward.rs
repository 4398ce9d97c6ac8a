//! What a forwarded packet costs the gateway: without a firewall, with plain connection tracking,
//! and with our table at two sizes.
//!
//! A thread on one processor sends; all that happens to a packet until it is delivered happens in
//! that call, so the time of the call is the packet's cost, sending and delivery included. Each
//! shape has its own namespaces, and they take turns.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use gatepost::dataplane::nft::Nft;
use gatepost::model::{FirewallBase, IpFamily, MarkBit, Masquerade, RoutingRule, RuleAction};
use gatepost::plan::gate;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use super::figures::{median, quantile, timed};
use super::full::{RANGES, host, world};
use super::netns::Netns;
use super::table::{WG, base, load};

const PEERS: u32 = 100_000;
const PROFILES: u32 = 1_000;
/// Two packets that cross: one from the peer, one toward it.
const PAIRS_A_TURN: usize = 10_000;
/// As many as the default limit of open files lets be.
const FLOWS: u32 = 100;

/// What stands between peers and LAN.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Nothing,
    /// What most gateways run, and what ours is measured against.
    Plain,
    /// The rules of version 0.1.0, with as many peers.
    Former {
        peers: u32,
        profiles: u32,
    },
    Ours {
        peers: u32,
        profiles: u32,
    },
    /// The same with the routing rules of the gate.
    OursWithGate {
        peers: u32,
        profiles: u32,
    },
    /// Between two other links, beside plain connection tracking.
    Foreign(Beside),
}

/// What there is of ours beside packets that do not concern us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// The table of version 0.1.0.
    Former,
    Table,
    TableAndGate,
}

const SHAPES: [Shape; 11] = [
    Shape::Nothing,
    Shape::Plain,
    Shape::Former { peers: PROFILES, profiles: PROFILES },
    Shape::Ours { peers: PROFILES, profiles: PROFILES },
    Shape::OursWithGate { peers: PROFILES, profiles: PROFILES },
    Shape::Ours { peers: PEERS, profiles: PROFILES },
    Shape::Ours { peers: PEERS, profiles: PEERS },
    Shape::Foreign(Beside::Nothing),
    Shape::Foreign(Beside::Former),
    Shape::Foreign(Beside::Table),
    Shape::Foreign(Beside::TableAndGate),
];

/// Which shapes are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    All,
    /// Those of packets that do not concern us.
    Foreign,
    /// Those with few peers, which are loaded fast.
    Former,
}

impl Asked {
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "foreign" => Some(Self::Foreign),
            "former" => Some(Self::Former),
            _ => None,
        }
    }
}

/// Measures these shapes.
pub fn measure(asked: Asked) {
    let is_asked = |shape: &Shape| match asked {
        Asked::All => true,
        Asked::Foreign => matches!(shape, Shape::Foreign(_)),
        Asked::Former => !matches!(shape, Shape::Ours { peers: PEERS, .. }),
    };
    let rounds = std::env::var("GATEPOST_BENCH_ROUNDS").map_or(9, |rounds| rounds.parse().unwrap());
    let lines: Vec<Line> = SHAPES.into_iter().filter(is_asked).map(Line::open).collect();
    let mut first_cpu = CpuSet::new();
    first_cpu.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first_cpu).unwrap();
    let before: Vec<u64> = lines.iter().map(Line::forwarded).collect();
    let mut costs = vec![Vec::new(); lines.len()];
    for _ in 0..rounds {
        for (line, costs) in lines.iter().zip(&mut costs) {
            costs.push(line.send());
        }
    }
    for (line, before) in lines.iter().zip(before) {
        let sent = (rounds * PAIRS_A_TURN * 2) as u64;
        assert_eq!(line.forwarded() - before, sent, "{:?} forwards what is sent", line.shape);
    }
    print(&lines.iter().map(|line| line.shape).collect::<Vec<_>>(), &costs, rounds);
}

fn print(shapes: &[Shape], costs: &[Vec<Duration>], rounds: usize) {
    println!(
        "\ncost of a forwarded packet, UDP, {FLOWS} flows, half of the packets each way, {rounds} rounds of {} packets",
        PAIRS_A_TURN * 2
    );
    println!("{:<58} {:>9} {:>9} {:>9} {:>9}", "", "median", "lowest", "ratio", "more");
    for (shape, times) in shapes.iter().zip(costs) {
        let without = shapes.iter().position(|other| other.is_plain_beside(*shape)).unwrap();
        let turns = times.iter().zip(&costs[without]);
        let more =
            turns.clone().map(|(ours, plain)| ours.as_nanos() as i64 - plain.as_nanos() as i64);
        let mut more: Vec<i64> = more.collect();
        more.sort_unstable();
        let mut ratios: Vec<f64> =
            turns.map(|(ours, plain)| ours.as_secs_f64() / plain.as_secs_f64()).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        println!(
            "{:<58} {:>6} ns {:>6} ns {:>7.2} x {:>+6} ns",
            shape.words(),
            median(times).as_nanos(),
            quantile(times, 0).as_nanos(),
            ratios[ratios.len() / 2],
            more[more.len() / 2]
        );
    }
}

impl Shape {
    fn words(self) -> String {
        match self {
            Self::Nothing => "no firewall, no connection tracking".to_owned(),
            Self::Plain => "connection tracking and `ct state established accept`".to_owned(),
            Self::Former { peers, profiles } => {
                format!("gatepost 0.1.0, {peers} peers, {profiles} profiles of {RANGES}")
            }
            Self::Ours { peers, profiles } => {
                format!("gatepost, {peers} peers, {profiles} profiles of {RANGES}")
            }
            Self::OursWithGate { peers, profiles } => {
                format!("gatepost and its gate, {peers} peers, {profiles} profiles")
            }
            Self::Foreign(Beside::Nothing) => "between other links: connection tracking".to_owned(),
            Self::Foreign(Beside::Former) => {
                "between other links, beside gatepost 0.1.0".to_owned()
            }
            Self::Foreign(Beside::Table) => "between other links, beside gatepost".to_owned(),
            Self::Foreign(Beside::TableAndGate) => {
                "between other links, beside gatepost and its gate".to_owned()
            }
        }
    }

    /// Whether this is what the cost of another shape is compared with.
    const fn is_plain_beside(self, other: Self) -> bool {
        match other {
            Self::Foreign(_) => matches!(self, Self::Foreign(Beside::Nothing)),
            _ => matches!(self, Self::Plain),
        }
    }

    /// The link toward those who are peers in the other shapes.
    const fn near_link(self) -> &'static str {
        match self {
            Self::Foreign(_) => "lan1",
            _ => WG,
        }
    }

    /// Puts it into the gateway, whose namespace this thread is in.
    fn load(self, gateway: &Netns) {
        match self {
            Self::Nothing => {}
            Self::Plain => self.load_plain(gateway),
            Self::Foreign(beside) => {
                self.load_plain(gateway);
                match beside {
                    Beside::Nothing => {}
                    Beside::Former => load_former(gateway, PROFILES, PROFILES),
                    Beside::Table => load_ours(gateway, (PROFILES, PROFILES), None),
                    Beside::TableAndGate => {
                        load_ours(gateway, (PROFILES, PROFILES), Some(MarkBit::default()));
                    }
                }
            }
            Self::Former { peers, profiles } => load_former(gateway, peers, profiles),
            Self::Ours { peers, profiles } => load_ours(gateway, (peers, profiles), None),
            Self::OursWithGate { peers, profiles } => {
                load_ours(gateway, (peers, profiles), Some(MarkBit::default()));
            }
        }
    }

    fn load_plain(self, gateway: &Netns) {
        let near = self.near_link();
        gateway.load(&format!(
            "table inet plain {{ chain forward {{
                 type filter hook forward priority filter; policy drop
                 ct state established,related accept
                 iifname {near} accept
             }}
             }}"
        ));
    }
}

/// As in the other shapes, nothing is translated.
fn load_ours(gateway: &Netns, (peers, profiles): (u32, u32), gate: Option<MarkBit>) {
    let base = FirewallBase { masquerade: Masquerade::None, gate, ..base() };
    Nft::open().unwrap().apply(&load(&base, &world(peers, profiles)), None).unwrap();
    let rules = gate.map(|mark| gate::rules(&base.interface, base.networks.gated(), mark));
    for rule in rules.into_iter().flatten() {
        gateway.run(&rule_command(&rule));
    }
}

/// The chains of `tests/nft/former.nft` before the same maps and profiles. Its profiles accept themselves.
fn load_former(gateway: &Netns, peers: u32, profiles: u32) {
    load_ours(gateway, (peers, profiles), None);
    let former = include_str!("../../nft/former.nft");
    let chain = |name: &str| {
        let (_, rest) = former.split_once(&format!("  chain {name} {{\n")).unwrap();
        let rules = rest.split_once("\n  }").unwrap().0.lines();
        let rules = rules
            .filter(|rule| !rule.contains("hook"))
            .map(|rule| format!("add rule inet gatepost {name} {}\n", rule.trim()));
        format!("flush chain inet gatepost {name}\n") + &rules.collect::<String>()
    };
    gateway.load(&format!(
        "{}{}{}{}flush chain inet gatepost passed\nadd rule inet gatepost passed accept
         flush chain inet gatepost arrivals\nflush chain inet gatepost output
         delete chain inet gatepost arrivals\ndelete chain inet gatepost output\n",
        chain("forward"),
        chain("input"),
        chain("judge"),
        chain("inbound"),
    ));
}

/// What `ip` adds this rule by.
fn rule_command(rule: &RoutingRule) -> String {
    let family = if rule.family == IpFamily::V4 { "-4" } else { "-6" };
    let to = rule.to.map_or(String::new(), |to| format!("to {to}"));
    let iif = rule.iif.as_ref().map_or(String::new(), |iif| format!("iif {iif}"));
    let mark = rule.mark.map_or(String::new(), |(value, mask)| format!("fwmark {value}/{mask}"));
    let action = match rule.action {
        RuleAction::Goto(priority) => format!("goto {priority}"),
        RuleAction::Nop => "nop".to_owned(),
        _ => "blackhole".to_owned(),
    };
    format!("ip {family} rule add priority {} {to} {iif} {mark} {action}", rule.priority)
}

/// Peers, a gateway, a LAN, and the flows between them.
struct Line {
    shape: Shape,
    gateway: Netns,
    /// A flow's socket at the peer, and the one in the LAN.
    flows: Vec<(UdpSocket, UdpSocket)>,
    _ends: [Netns; 2],
}

impl Line {
    fn open(shape: Shape) -> Self {
        let [peers, gateway, lan] = std::array::from_fn(|_| Netns::new());
        let near = shape.near_link();
        gateway.run(&format!(
            "ip link add {near} type veth peer name v0 netns {}
             ip link add lan0 type veth peer name v0 netns {}
             sysctl -qw net.ipv4.ip_forward=1
             for name in all default {near} lan0; do sysctl -qw net.ipv4.conf.$name.rp_filter=0; done
             ip addr add 192.0.2.1/30 dev {near} && ip link set {near} up
             ip addr add 192.0.2.5/30 dev lan0 && ip link set lan0 up",
            peers.path(),
            lan.path()
        ));
        // Each end has all addresses of its side.
        for (end, address, next, sides) in [
            (&peers, "192.0.2.2", "192.0.2.1", "10.0.0.0/8"),
            (&lan, "192.0.2.6", "192.0.2.5", "11.0.0.0/8 12.0.0.0/6 16.0.0.0/4 32.0.0.0/4"),
        ] {
            end.run(&format!(
                "for name in all default v0; do sysctl -qw net.ipv4.conf.$name.rp_filter=0; done
                 ip addr add {address}/30 dev v0 && ip link set v0 up
                 ip route add default via {next}
                 for side in {sides}; do ip route add local $side dev lo; done"
            ));
            gateway.run(&format!("for side in {sides}; do ip route add $side via {address}; done"));
        }
        let flows = (0..FLOWS).map(|number| {
            let peer = shape.peer(number);
            flow(&peers, &lan, peer, shape.allowed(peer))
        });
        let flows = flows.collect();
        let line = Self { shape, gateway, flows, _ends: [peers, lan] };
        within(&line.gateway, || shape.load(&line.gateway));
        line.greet();
        line
    }

    /// One packet each way in each flow, which must arrive. What comes later is not read: that
    /// fills the sockets, and delivery costs the same each time.
    fn greet(&self) {
        for (peer, far) in &self.flows {
            for (from, to) in [(peer, far), (far, peer)] {
                from.send(b"?").unwrap();
                to.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                to.recv(&mut [0]).unwrap_or_else(|error| panic!("{:?}: {error}", self.shape));
            }
        }
        self.send();
    }

    /// The cost of one packet.
    fn send(&self) -> Duration {
        let payload = [0; 64];
        let flows = self.flows.iter().cycle().take(PAIRS_A_TURN);
        let took = timed(|| {
            for (peer, far) in flows {
                peer.send(&payload).unwrap();
                far.send(&payload).unwrap();
            }
        });
        took / u32::try_from(PAIRS_A_TURN * 2).unwrap()
    }

    /// How many packets the gateway has forwarded.
    fn forwarded(&self) -> u64 {
        let snmp = within(&self.gateway, || {
            std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()
        });
        let mut ip = snmp.lines().filter(|line| line.starts_with("Ip:"));
        let (names, values) = (ip.next().unwrap(), ip.next().unwrap());
        let mut fields = names.split(' ').zip(values.split(' '));
        fields.find(|(name, _)| *name == "ForwDatagrams").unwrap().1.parse().unwrap()
    }
}

impl Shape {
    /// The peers of the flows are spread over all there are, each with another profile.
    fn peer(self, flow: u32) -> u32 {
        let peers = match self {
            Self::Former { peers, .. }
            | Self::Ours { peers, .. }
            | Self::OursWithGate { peers, .. } => peers,
            Self::Nothing | Self::Plain | Self::Foreign(_) => PEERS,
        };
        flow * (peers / FLOWS + 1) % peers
    }

    /// An address in one of the ranges of the peer's profile.
    fn allowed(self, peer: u32) -> Ipv4Addr {
        let profiles = match self {
            Self::Former { profiles, .. }
            | Self::Ours { profiles, .. }
            | Self::OursWithGate { profiles, .. } => profiles,
            Self::Nothing | Self::Plain | Self::Foreign(_) => PROFILES,
        };
        let range = (peer % profiles) * RANGES + peer % RANGES;
        Ipv4Addr::from((11 << 24) + (range << 9) + 7)
    }
}

/// Between a peer and an address that its profile allows.
fn flow(peers: &Netns, lan: &Netns, peer: u32, far: Ipv4Addr) -> (UdpSocket, UdpSocket) {
    let bound = |netns: &Netns, address: std::net::IpAddr| {
        let socket = within(netns, || UdpSocket::bind((address, 9)).unwrap());
        setsockopt(&socket, sockopt::RcvBuf, &0).unwrap();
        socket
    };
    let (near, far) = (bound(peers, host(peer).addr()), bound(lan, far.into()));
    near.connect(far.local_addr().unwrap()).unwrap();
    far.connect(near.local_addr().unwrap()).unwrap();
    (near, far)
}

/// Does something on a thread in that namespace.
fn within<T: Send>(netns: &Netns, action: impl FnOnce() -> T + Send) -> T {
    let acting = || {
        netns.enter();
        action()
    };
    std::thread::scope(|scope| scope.spawn(acting).join().unwrap())
}
