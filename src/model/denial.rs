//! A packet that the firewall denied, read from its own header.

use std::fmt;
use std::net::IpAddr;

/// The sender and the destination of a denied packet. A peer may have written anything into it but the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Denial {
    pub from: IpAddr,
    pub to: IpAddr,
    pub service: Service,
    /// It opens a TCP connection.
    pub opens: bool,
}

/// The service that a packet was for. Prints as `tcp/443`, `icmp/8` or `gre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// A protocol with ports; the port is the destination's.
    Port { protocol: u8, port: u16 },
    /// The type of a message of ICMP or `ICMPv6`.
    Icmp { protocol: u8, kind: u8 },
    /// A protocol without ports, or a fragment that does not have them.
    Protocol(u8),
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

impl Denial {
    /// Reads the head of an IP packet. `None`: it is none, or its addresses are cut off.
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        let (from, to, Upper { protocol, head }) = match packet.first()? >> 4 {
            4 => (array::<4>(packet, 12)?.into(), array::<4>(packet, 16)?.into(), upper4(packet)?),
            6 => (array::<16>(packet, 8)?.into(), array::<16>(packet, 24)?.into(), upper6(packet)?),
            _ => return None,
        };
        let service = service(protocol, head).unwrap_or(Service::Protocol(protocol));
        let opens = protocol == TCP && head.and_then(|head| head.get(13)).is_some_and(is_syn);
        Some(Self { from, to, service, opens })
    }
}

/// SYN without ACK.
const fn is_syn(flags: &u8) -> bool {
    *flags & 0x12 == 0x02
}

/// The protocol above IP.
struct Upper<'a> {
    protocol: u8,
    /// `None`: a later fragment has no head.
    head: Option<&'a [u8]>,
}

fn upper4(packet: &[u8]) -> Option<Upper<'_>> {
    let header_bytes = usize::from(packet[0] & 0xf) * 4;
    let is_first = u16::from_be_bytes(array(packet, 6)?) & 0x1fff == 0;
    let head = is_first.then(|| packet.get(header_bytes..)).flatten();
    Some(Upper { protocol: *packet.get(9)?, head })
}

/// Goes over the extension headers. What is cut off counts as a protocol without ports.
fn upper6(packet: &[u8]) -> Option<Upper<'_>> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let mut protocol = *packet.get(6)?;
    let mut rest = packet.get(40..)?;
    loop {
        let extension_bytes = match (protocol, rest) {
            (HOP_BY_HOP | ROUTING | DESTINATION, [_, words, ..]) => (usize::from(*words) + 1) * 8,
            (AUTHENTICATION, [_, words, ..]) => (usize::from(*words) + 2) * 4,
            (FRAGMENT, [next, _, high, low, ..]) => {
                if u16::from_be_bytes([*high, *low]) & 0xfff8 != 0 {
                    return Some(Upper { protocol: *next, head: None });
                }
                8
            }
            _ => return Some(Upper { protocol, head: Some(rest) }),
        };
        protocol = rest[0];
        let Some(next) = rest.get(extension_bytes..) else {
            return Some(Upper { protocol, head: None });
        };
        rest = next;
    }
}

fn service(protocol: u8, head: Option<&[u8]>) -> Option<Service> {
    match protocol {
        TCP | UDP | DCCP | SCTP | UDP_LITE => {
            Some(Service::Port { protocol, port: u16::from_be_bytes(array(head?, 2)?) })
        }
        ICMP | ICMP6 => Some(Service::Icmp { protocol, kind: *head?.first()? }),
        _ => None,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, detail) = match *self {
            Self::Port { protocol, port } => (protocol, Some(port)),
            Self::Icmp { protocol, kind } => (protocol, Some(u16::from(kind))),
            Self::Protocol(protocol) => (protocol, None),
        };
        match protocol {
            ICMP => f.write_str("icmp"),
            4 => f.write_str("ipip"),
            TCP => f.write_str("tcp"),
            UDP => f.write_str("udp"),
            DCCP => f.write_str("dccp"),
            41 => f.write_str("ipv6"),
            47 => f.write_str("gre"),
            50 => f.write_str("esp"),
            51 => f.write_str("ah"),
            ICMP6 => f.write_str("icmpv6"),
            SCTP => f.write_str("sctp"),
            UDP_LITE => f.write_str("udplite"),
            other => write!(f, "protocol {other}"),
        }?;
        detail.map_or(Ok(()), |detail| write!(f, "/{detail}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet4(protocol: u8, fragment: u16, above: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x46, 0, 0, 40, 0, 0];
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 8, 0, 2, 10, 20, 0, 5]);
        packet.extend([1, 1, 1, 1]); // an option
        packet.extend(above);
        packet
    }

    fn packet6(next: u8, above: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        packet.extend(above);
        packet
    }

    fn text(packet: &[u8]) -> String {
        let denial = Denial::of_packet(packet).unwrap();
        format!("{} {} {}", denial.from, denial.to, denial.service)
    }

    #[test]
    fn packet_is_read_up_to_its_port() {
        let tcp = [0xc0, 0, 1, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02];
        assert_eq!(text(&packet4(TCP, 0, &tcp)), "10.8.0.2 10.20.0.5 tcp/443");
        assert!(Denial::of_packet(&packet4(TCP, 0, &tcp)).unwrap().opens);
        assert_eq!(text(&packet4(ICMP, 0, &[8, 0])), "10.8.0.2 10.20.0.5 icmp/8");
        assert_eq!(text(&packet4(47, 0, &[])), "10.8.0.2 10.20.0.5 gre");
        assert_eq!(text(&packet4(253, 0, &[])), "10.8.0.2 10.20.0.5 protocol 253");
        assert_eq!(text(&packet6(UDP, &[0, 1, 0, 53])), "fd00::2 fd00::9 udp/53");
    }

    #[test]
    fn extension_headers_are_gone_over_and_later_fragments_have_no_port() {
        let udp = [0, 1, 0, 53];
        let options = [&[43, 0, 0, 0, 0, 0, 0, 0][..], &[UDP, 1], &[0; 14], &udp].concat();
        assert_eq!(text(&packet6(0, &options)), "fd00::2 fd00::9 udp/53");
        let first = [&[UDP, 0, 0, 1, 0, 0, 0, 7][..], &udp].concat();
        assert_eq!(text(&packet6(44, &first)), "fd00::2 fd00::9 udp/53");
        let later = [&[UDP, 0, 0, 8, 0, 0, 0, 7][..], &udp].concat();
        assert_eq!(text(&packet6(44, &later)), "fd00::2 fd00::9 udp");
        assert_eq!(text(&packet4(UDP, 7, &udp)), "10.8.0.2 10.20.0.5 udp");
    }

    #[test]
    fn no_packet_is_too_short_or_too_odd_to_be_read() {
        let wholes = [packet4(TCP, 0, &[0; 20]), packet6(0, &[60, 200, 0, 0, 0, 0, 0, 0])];
        for whole in wholes {
            for len in 0..whole.len() {
                let _ = Denial::of_packet(&whole[..len]);
            }
        }
        assert_eq!(Denial::of_packet(&[0; 40]), None, "version 0");
        assert_eq!(Denial::of_packet(&packet6(UDP, &[])[..39]), None);
    }
}
