//! All ends of the network, and the ledger of what came where.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, setsockopt,
    socket, sockopt,
};

use super::attack::{Shot, lan_sources};
use super::permit::{Claim, End, Flow, Rules, is_diverted};
use super::wire::{Body, addresses_in, number_in, packet, payload, port_in, source_in};
use crate::lab::{self, Lab, PEERS, Place, gateway_addresses};
use crate::packet::{MAX_BYTES, Protocol};
use crate::probe::SERVICE_PORTS;
use crate::tap::{Tap, await_any};
use crate::tunnel::Tunnel;

/// How long anything may take before the test fails. An emulated processor is twenty times slower.
const PATIENCE: Duration = Duration::from_secs(60);
/// A ping may be lost in a handshake's queue.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(50);
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// One that was sent.
struct Sent {
    claim: Claim,
    flow: Option<usize>,
    /// Of every moment in which it may have been judged.
    rules: Vec<Arc<Rules>>,
    came_back: bool,
}

pub struct Scene {
    tunnels: Vec<Tunnel>,
    lan: Tap,
    /// What the gateway's kernel takes in, by protocol and family.
    taken_in: Vec<File>,
    /// The gateway's services, and sockets of its own that open flows.
    sockets: BTreeMap<End, UdpSocket>,
    sent: Vec<Sent>,
    pub flows: Vec<Flow>,
    /// What came where nothing allows it.
    leaks: Vec<String>,
    /// How many packets of each kind came where they may.
    pub came: BTreeMap<&'static str, usize>,
}

impl Scene {
    /// Call it on a thread in the gateway's namespace, when the gateway has its addresses.
    pub fn open(lab: &Lab) -> Self {
        let services =
            gateway_addresses().into_iter().flat_map(|at| SERVICE_PORTS.map(|port| (at, port)));
        let sockets = services.map(|end| (end, bind(end))).collect();
        let (v4, v6) = (AddressFamily::Inet, AddressFamily::Inet6);
        let taken_in = [
            (v4, SockProtocol::Icmp),
            (v6, SockProtocol::IcmpV6),
            (v4, SockProtocol::Tcp),
            (v6, SockProtocol::Tcp),
            (v4, SockProtocol::Udp),
            (v6, SockProtocol::Udp),
        ];
        Self {
            tunnels: (0..PEERS).map(|peer| lab.tunnel(peer)).collect(),
            lan: lab.tap(),
            taken_in: taken_in.map(|(family, protocol)| raw(family, protocol)).into(),
            sockets,
            sent: Vec::new(),
            flows: Vec::new(),
            leaks: Vec::new(),
            came: BTreeMap::new(),
        }
    }

    /// A peer that was let in again begins anew.
    pub fn renew(&mut self, lab: &Lab, peer: usize) {
        self.tunnels[peer] = lab.tunnel(peer);
    }

    pub fn next_number(&self) -> u32 {
        self.sent.len() as u32
    }

    pub fn count(&self) -> usize {
        self.sent.len()
    }

    pub fn leaks(&self) -> &[String] {
        &self.leaks
    }

    /// A port of the gateway that the kernel chose, for a flow that it opens.
    pub fn chosen_port(&mut self, address: IpAddr) -> End {
        let socket = bind((address, 0));
        let end = socket.local_addr().unwrap();
        self.sockets.insert((end.ip(), end.port()), socket);
        (end.ip(), end.port())
    }

    /// Sends it; it may be judged by any of these rules.
    pub fn send(&mut self, shot: Shot, rules: &[Arc<Rules>]) {
        for bytes in &shot.packets {
            match shot.claim.from {
                Place::Peer(peer) => self.tunnels[peer].send(bytes),
                Place::Lan => self.lan.send(bytes),
                Place::Gateway => panic!("the gateway speaks for itself"),
            }
        }
        self.note(shot.claim, shot.flow, rules);
    }

    /// The gateway's end of a flow sends a datagram.
    pub fn send_from_gateway(&mut self, flow: usize, rules: &[Arc<Rules>]) {
        let Flow { client, service, protocol, .. } = self.flows[flow];
        let ends =
            if self.sockets.contains_key(&client) { [client, service] } else { [service, client] };
        let Some(socket) = self.sockets.get(&ends[0]).filter(|_| protocol == Protocol::Udp) else {
            return;
        };
        // Our own firewall lets a sender know at once.
        let _ = socket.send_to(&payload(self.next_number(), 1), ends[1]);
        let mut claim = Claim::new("of the gateway", Place::Gateway, protocol, ends);
        claim.is_of_flow = true;
        self.note(claim, Some(flow), rules);
    }

    fn note(&mut self, claim: Claim, flow: Option<usize>, rules: &[Arc<Rules>]) {
        self.sent.push(Sent { claim, flow, rules: rules.to_vec(), came_back: false });
    }

    /// Returns when everything that these senders sent has been judged: what is sent after it in the
    /// same tunnel, or by the same cable, came back.
    pub fn await_judgement(&mut self, senders: &[Place], rules: &[Arc<Rules>]) {
        let first = self.sent.len();
        let pings: Vec<(Place, Vec<u8>)> =
            senders.iter().map(|from| (*from, self.ping(*from, rules))).collect();
        let deadline = Instant::now() + PATIENCE;
        let mut again = Instant::now();
        loop {
            let open: Vec<usize> =
                (0..pings.len()).filter(|at| !self.sent[first + at].came_back).collect();
            if open.is_empty() {
                return self.look(Duration::ZERO);
            }
            if Instant::now() >= again {
                again = Instant::now() + AGAIN_AFTER;
                for at in &open {
                    match pings[*at].0 {
                        Place::Peer(peer) => self.tunnels[peer].send(&pings[*at].1),
                        _ => self.lan.send(&pings[*at].1),
                    }
                }
            }
            assert!(Instant::now() < deadline, "the gateway must answer: {:?}", pings[open[0]].0);
            self.look(TICK);
        }
    }

    /// Takes note of a ping that is always answered, and makes its bytes.
    fn ping(&mut self, from: Place, rules: &[Arc<Rules>]) -> Vec<u8> {
        const ECHO_REQUEST: u8 = 8;
        let [tunnel, _, lan, _] = gateway_addresses()[..] else { panic!("four addresses") };
        let (source, to) = match from {
            Place::Peer(peer) => (lab::sources(peer)[0], tunnel),
            _ => (lan_sources()[0], lan),
        };
        let number = self.next_number();
        let ends = [(source, 0), (to, 0)];
        let body = Body::icmp(ends, ECHO_REQUEST, 0, number.to_be_bytes(), &payload(number, 1));
        self.note(Claim::new("ping", from, Protocol::Icmp, ends), None, rules);
        packet(source, to, &[], &body)
    }

    /// Waits until something is seen anywhere, and takes in all that is there.
    fn look(&mut self, at_most: Duration) {
        let ends = self.tunnels.iter().map(AsFd::as_fd).chain([self.lan.as_fd()]);
        let ends = ends.chain(self.taken_in.iter().map(AsFd::as_fd));
        await_any(ends, at_most);
        for peer in 0..self.tunnels.len() {
            self.tunnels[peer].keep();
            while let Some(bytes) = self.tunnels[peer].receive() {
                self.see(Place::Peer(peer), &bytes);
            }
        }
        while let Some(bytes) = self.lan.receive() {
            self.see(Place::Lan, &bytes);
        }
        for at in 0..self.taken_in.len() {
            let mut bytes = [0; 2 * MAX_BYTES];
            loop {
                match self.taken_in[at].read(&mut bytes) {
                    Ok(len) => self.see(Place::Gateway, &bytes[..len]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        // Answers to what the gateway's sockets sent, and errors about it.
        for socket in self.sockets.values() {
            let mut bytes = [0; MAX_BYTES];
            while !matches!(socket.recv(&mut bytes), Err(error) if error.kind() == ErrorKind::WouldBlock)
            {
            }
        }
    }

    fn see(&mut self, place: Place, bytes: &[u8]) {
        let Some(number) = number_in(bytes) else { return };
        let Some(sent) = self.sent.get_mut(number as usize) else { return };
        if place == sent.claim.from {
            sent.came_back = true;
            return;
        }
        // What the gateway itself answers goes by the host's routes: a known limit.
        let is_answer = addresses_in(bytes).is_some_and(|[from, to]| {
            let is_routed_away =
                place == Place::Lan && to == sent.claim.ends[0].0 && is_diverted(to);
            gateway_addresses().contains(&from) && is_routed_away
        });
        if is_answer {
            return;
        }
        let port = port_in(bytes);
        if !sent.rules.iter().any(|rules| rules.permit(&sent.claim, place, port)) {
            let head = &bytes[..bytes.len().min(96)];
            self.leaks.push(format!("{number} came to {place:?}: {:?}\n  {head:02x?}", sent.claim));
            return;
        }
        *self.came.entry(sent.claim.kind).or_default() += 1;
        let forward = sent
            .flow
            .filter(|at| self.flows.get(*at).is_some_and(|flow| flow.client == sent.claim.ends[0]));
        if let Some(at) = forward.filter(|_| place == Place::Lan) {
            let outside = source_in(bytes).filter(|outside| *outside != self.flows[at].client);
            self.flows[at].outside = outside;
        }
    }
}

fn bind(end: End) -> UdpSocket {
    let socket = UdpSocket::bind(end).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Receives every packet of this protocol that the kernel of this namespace takes in.
fn raw(family: AddressFamily, protocol: SockProtocol) -> File {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Raw, flags, protocol).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).unwrap();
    File::from(socket)
}

/// Lets the kernel forget every tracked flow of this namespace.
pub fn forget_flows() {
    const DELETE: u16 = 0x102;
    const REQUEST: u16 = 0x1;
    let netfilter = SockProtocol::NetlinkNetFilter;
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter).unwrap();
    let mut request = 20u32.to_ne_bytes().to_vec();
    request.extend([DELETE, REQUEST].map(u16::to_ne_bytes).concat());
    request.extend([0; 12]);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &request, &kernel, MsgFlags::empty()).unwrap();
}
