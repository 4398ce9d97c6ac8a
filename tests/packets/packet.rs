//! The packets that are sent: each carries its number, and an answer carries the same.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TcpSlice, TransportSlice,
};

/// A client's ports begin here, so that a lesser port is the service's.
pub const FIRST_CLIENT_PORT: u16 = 1024;
/// The length of the longest packet.
pub const MAX_BYTES: usize = 1500;
const HOPS: u8 = 64;
const TCP_WINDOW_BYTES: u16 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Icmp,
    Tcp,
    Udp,
}

pub const PROTOCOLS: [Protocol; 3] = [Protocol::Icmp, Protocol::Tcp, Protocol::Udp];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// An echo request, a SYN, a datagram to a service.
    Request,
    /// An echo reply, a SYN-ACK or a reset, a datagram from a service.
    Answer,
}

/// One packet, IPv4 or IPv6 as its addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub protocol: Protocol,
    pub turn: Turn,
    pub number: u32,
    pub client: (IpAddr, u16),
    /// ICMP has no ports: the value is unused.
    pub service: (IpAddr, u16),
}

impl Packet {
    /// The other side's answer.
    pub fn answered(self) -> Self {
        Self { turn: Turn::Answer, ..self }
    }

    /// Whether it is with the service that this request is for.
    pub fn is_with_service_of(&self, request: &Self) -> bool {
        let ports = self.protocol == Protocol::Icmp || self.service.1 == request.service.1;
        self.protocol == request.protocol && self.service.0 == request.service.0 && ports
    }

    pub fn is_ipv4(&self) -> bool {
        self.service.0.is_ipv4()
    }

    /// The bytes from the IP header on.
    pub fn encode(&self) -> Vec<u8> {
        let (from, to) = match self.turn {
            Turn::Request => (self.client, self.service),
            Turn::Answer => (self.service, self.client),
        };
        let ip = match (from.0, to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), HOPS)
            }
            _ => panic!("{self:?} mixes families"),
        };
        let id = self.client.1;
        let number = self.number.to_be_bytes();
        let mut bytes = Vec::new();
        match (self.protocol, self.turn, self.is_ipv4()) {
            (Protocol::Udp, _, _) => ip.udp(from.1, to.1).write(&mut bytes, &number),
            (Protocol::Tcp, Turn::Request, _) => {
                ip.tcp(from.1, to.1, self.number, TCP_WINDOW_BYTES).syn().write(&mut bytes, &[])
            }
            (Protocol::Tcp, Turn::Answer, _) => {
                let answer = ip.tcp(from.1, to.1, 0, TCP_WINDOW_BYTES).syn();
                answer.ack(self.number + 1).write(&mut bytes, &[])
            }
            (Protocol::Icmp, Turn::Request, true) => {
                ip.icmpv4_echo_request(id, 0).write(&mut bytes, &number)
            }
            (Protocol::Icmp, Turn::Answer, true) => {
                ip.icmpv4_echo_reply(id, 0).write(&mut bytes, &number)
            }
            (Protocol::Icmp, Turn::Request, false) => {
                ip.icmpv6_echo_request(id, 0).write(&mut bytes, &number)
            }
            (Protocol::Icmp, Turn::Answer, false) => {
                ip.icmpv6_echo_reply(id, 0).write(&mut bytes, &number)
            }
        }
        .unwrap();
        bytes
    }

    /// Reads a packet; `None`: not one of these, an ICMP error for example.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ip(bytes).ok()?;
        let (from, to): (IpAddr, IpAddr) = match sliced.net? {
            NetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            NetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            NetSlice::Arp(_) => return None,
        };
        let (protocol, turn, number, ports) = match sliced.transport? {
            TransportSlice::Udp(udp) => {
                let ports = (udp.source_port(), udp.destination_port());
                let turn = if ports.1 < FIRST_CLIENT_PORT { Turn::Request } else { Turn::Answer };
                (Protocol::Udp, turn, number(udp.payload())?, ports)
            }
            TransportSlice::Tcp(tcp) => tcp_facts(&tcp),
            TransportSlice::Icmpv4(icmp) => {
                let (turn, id) = match icmp.icmp_type() {
                    Icmpv4Type::EchoRequest(echo) => (Turn::Request, echo.id),
                    Icmpv4Type::EchoReply(echo) => (Turn::Answer, echo.id),
                    _ => return None,
                };
                (Protocol::Icmp, turn, number(icmp.payload())?, (id, id))
            }
            TransportSlice::Icmpv6(icmp) => {
                let (turn, id) = match icmp.icmp_type() {
                    Icmpv6Type::EchoRequest(echo) => (Turn::Request, echo.id),
                    Icmpv6Type::EchoReply(echo) => (Turn::Answer, echo.id),
                    _ => return None,
                };
                (Protocol::Icmp, turn, number(icmp.payload())?, (id, id))
            }
            TransportSlice::Igmp(_) => return None,
        };
        let (client, service) = match turn {
            Turn::Request => ((from, ports.0), (to, ports.1)),
            Turn::Answer => ((to, ports.1), (from, ports.0)),
        };
        Some(Self { protocol, turn, number, client, service })
    }
}

fn tcp_facts(tcp: &TcpSlice<'_>) -> (Protocol, Turn, u32, (u16, u16)) {
    let ports = (tcp.source_port(), tcp.destination_port());
    if tcp.ack() {
        let number = tcp.acknowledgment_number().wrapping_sub(1);
        (Protocol::Tcp, Turn::Answer, number, ports)
    } else {
        (Protocol::Tcp, Turn::Request, tcp.sequence_number(), ports)
    }
}

fn number(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}
