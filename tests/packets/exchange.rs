//! Sends probes and watches every end of the network for them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use gatepost::model::policy::Verdict;

use crate::lab::{Lab, PEERS, Place, gateway_addresses};
use crate::packet::{FIRST_CLIENT_PORT, MAX_BYTES, Packet, Protocol, Turn};
use crate::probe::{Probe, Reach, SERVICE_PORTS, always_allowed};
use crate::tap::{Tap, await_any};
use crate::tunnel::Tunnel;

/// How many probes are in flight at a time: no queue on the way is shorter.
const WINDOW: usize = 128;
/// How long anything may take before the test fails. An emulated processor is twenty times slower.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this long what was allowed and not answered is sent again: a packet that is lost on the way,
/// as in a handshake's queue, was not judged. What is denied is denied each time.
const AGAIN_AFTER: Duration = Duration::from_secs(3);
/// How often the tunnels look at their clocks at least.
const TICK: Duration = Duration::from_millis(250);

/// Every probe that was sent in a lab, and how far it got. A late packet counts for the set that it
/// was sent in.
pub struct Exchange {
    tunnels: Vec<Tunnel>,
    lan: Tap,
    /// The gateway's own datagram services. Its kernel answers everything else.
    services: Vec<UdpSocket>,
    probes: Vec<Probe>,
    /// No client's port is used twice: every probe is a flow of its own.
    next_ports: BTreeMap<(IpAddr, Protocol), u16>,
    /// Probes that were seen where they must never arrive.
    strays: Vec<String>,
}

impl Exchange {
    /// Call it on a thread in the gateway's namespace, when the gateway has its addresses.
    pub fn open(lab: &Lab) -> Self {
        let serve = |address: IpAddr, port: u16| {
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let services = gateway_addresses().into_iter();
        let services = services.flat_map(|at| SERVICE_PORTS.map(|port| serve(at, port))).collect();
        Self {
            tunnels: (0..PEERS).map(|peer| lab.tunnel(peer)).collect(),
            lan: lab.tap(),
            services,
            probes: Vec::new(),
            next_ports: BTreeMap::new(),
            strays: Vec::new(),
        }
    }

    /// Sends probes; returns when every one of them has been judged, and all that are allowed were
    /// answered, or are overdue.
    pub fn judge(&mut self, probes: Vec<Probe>) -> &[Probe] {
        let first = self.probes.len();
        for window in probes.chunks(WINDOW) {
            let sent = self.probes.len();
            for probe in window {
                self.send(probe.clone());
            }
            // A tunnel keeps the order: when this one is answered, all before it were judged.
            let last: Vec<usize> = (0..PEERS)
                .map(Place::Peer)
                .chain([Place::Lan])
                .map(|from| self.send(always_allowed(from)))
                .collect();
            self.await_answers(sent, &last);
        }
        &self.probes[first..]
    }

    /// Every probe that was ever sent.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    pub fn strays(&self) -> &[String] {
        &self.strays
    }

    fn send(&mut self, mut probe: Probe) -> usize {
        let number = self.probes.len();
        let (address, protocol) = (probe.request.client.0, probe.request.protocol);
        let port = self.next_ports.entry((address, protocol)).or_insert(FIRST_CLIENT_PORT);
        probe.request.number = number as u32;
        probe.request.client.1 = *port;
        *port += 1;
        self.put(probe.from, &probe.request);
        self.probes.push(probe);
        number
    }

    fn put(&mut self, from: Place, packet: &Packet) {
        let bytes = packet.encode();
        match from {
            Place::Peer(peer) => self.tunnels[peer].send(&bytes),
            Place::Lan => self.lan.send(&bytes),
            Place::Gateway => panic!("the gateway speaks for itself"),
        }
    }

    /// Waits for the answers to all that are allowed since `sent`, the last ones among them.
    fn await_answers(&mut self, sent: usize, last: &[usize]) {
        let deadline = Instant::now() + PATIENCE;
        let mut again = Instant::now() + AGAIN_AFTER;
        let unanswered = |probe: &Probe| probe.reach != Reach::Answered;
        loop {
            self.look(deadline);
            let open: Vec<Probe> = self.probes[sent..]
                .iter()
                .filter(|probe| probe.expected == Verdict::Allow && unanswered(probe))
                .cloned()
                .collect();
            if open.is_empty() {
                return;
            }
            if Instant::now() >= again {
                again += AGAIN_AFTER;
                open.iter().for_each(|probe| self.put(probe.from, &probe.request));
            }
            if Instant::now() >= deadline {
                let silent = last.iter().map(|at| &self.probes[*at]).find(|at| unanswered(at));
                assert!(silent.is_none(), "the gateway must answer: {silent:?}");
                return;
            }
        }
    }

    /// Waits until something is seen anywhere, and takes in all that is there.
    fn look(&mut self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now()).min(TICK);
        let ends = self.tunnels.iter().map(AsFd::as_fd).chain([self.lan.as_fd()]);
        let ends = ends.chain(self.services.iter().map(AsFd::as_fd));
        await_any(ends, left);
        for peer in 0..self.tunnels.len() {
            self.tunnels[peer].keep();
            while let Some(bytes) = self.tunnels[peer].receive() {
                self.see(Place::Peer(peer), &bytes);
            }
        }
        while let Some(bytes) = self.lan.receive() {
            self.see(Place::Lan, &bytes);
        }
        for at in 0..self.services.len() {
            let mut payload = [0; MAX_BYTES];
            while let Ok((len, client)) = self.services[at].recv_from(&mut payload) {
                self.serve(at, &payload[..len], client);
            }
        }
    }

    /// Takes note of a packet at an end of the network, and answers a request.
    fn see(&mut self, place: Place, bytes: &[u8]) {
        let Some(packet) = Packet::decode(bytes) else { return };
        let Some(probe) = self.probes.get_mut(packet.number as usize) else { return };
        let sent = &probe.request;
        let fits = packet.is_with_service_of(sent);
        match packet.turn {
            Turn::Request if place == probe.to && fits => {
                probe.reach = probe.reach.max(Reach::Arrived);
                self.put(place, &packet.answered());
            }
            Turn::Answer if place == probe.from && fits && packet.client == sent.client => {
                probe.reach = Reach::Answered;
            }
            // The tap sees its own packets.
            Turn::Request if place == Place::Lan && place == probe.from => {}
            Turn::Answer if place == Place::Lan && place == probe.to => {}
            _ => self.strays.push(format!("at {place:?}: {packet:?} of {probe:?}")),
        }
    }

    /// A datagram at a service of the gateway itself.
    fn serve(&mut self, at: usize, payload: &[u8], client: SocketAddr) {
        let number = payload.try_into().map(u32::from_be_bytes).unwrap();
        let here = self.services[at].local_addr().unwrap();
        let probe = &mut self.probes[number as usize];
        let wanted = (probe.request.protocol, probe.request.service);
        if wanted != (Protocol::Udp, (here.ip(), here.port())) {
            return self.strays.push(format!("at {here}: from {client}, of {probe:?}"));
        }
        probe.reach = probe.reach.max(Reach::Arrived);
        self.services[at].send_to(payload, client).unwrap();
    }
}
