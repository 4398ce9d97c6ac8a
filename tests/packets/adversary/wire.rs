//! The bytes of packets that no honest stack sends.

use std::net::IpAddr;

/// Fills the payload, again and again, so that every fragment of a packet tells its number.
const MARK: &[u8; 8] = b"gatepost";
const MARK_BYTES: usize = MARK.len() + 4;
const HOPS: u8 = 64;

pub const ICMP: u8 = 1;
pub const IP_IN_IP: u8 = 4;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const IP6_IN_IP: u8 = 41;
pub const ICMP6: u8 = 58;
pub const NO_NEXT_HEADER: u8 = 59;
/// For experiments (RFC 3692).
pub const OTHER: u8 = 253;

/// A payload of about so many bytes that tells this number.
pub fn payload(number: u32, bytes: usize) -> Vec<u8> {
    let mark = [&MARK[..], &number.to_be_bytes()].concat();
    mark.repeat(bytes.div_ceil(MARK_BYTES).max(1))
}

/// The number that a packet tells, wherever in it.
pub fn number_in(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(MARK.len()).position(|window| window == MARK)?;
    let number = bytes.get(at + MARK.len()..at + MARK_BYTES)?;
    number.try_into().ok().map(u32::from_be_bytes)
}

/// What follows the addresses of a packet.
#[derive(Debug, Clone)]
pub struct Body {
    /// Its IP protocol.
    pub protocol: u8,
    pub bytes: Vec<u8>,
}

impl Body {
    pub fn udp(ends: [(IpAddr, u16); 2], payload: &[u8]) -> Self {
        let [from, to] = ends;
        let length = u16::try_from(8 + payload.len()).unwrap();
        let header = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
        Self { protocol: UDP, bytes: [header, payload.to_vec()].concat() }.summed(ends, 6)
    }

    pub fn tcp(ends: [(IpAddr, u16); 2], flags: u8, payload: &[u8]) -> Self {
        const WORDS: u8 = 5 << 4;
        let [from, to] = ends;
        let mut bytes = [from.1, to.1].map(u16::to_be_bytes).concat();
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, WORDS, flags, 4, 0, 0, 0, 0, 0]);
        bytes.extend(payload);
        Self { protocol: TCP, bytes }.summed(ends, 16)
    }

    /// ICMP of the family of the addresses. `rest`: the four bytes behind the checksum.
    pub fn icmp(
        ends: [(IpAddr, u16); 2],
        kind: u8,
        code: u8,
        rest: [u8; 4],
        payload: &[u8],
    ) -> Self {
        let bytes = [&[kind, code, 0, 0], &rest[..], payload].concat();
        let protocol = if ends[0].0.is_ipv4() { ICMP } else { ICMP6 };
        Self { protocol, bytes }.summed(ends, 2)
    }

    /// Writes the checksum, which stands at this place.
    fn summed(mut self, [from, to]: [(IpAddr, u16); 2], at: usize) -> Self {
        let mut summed = Vec::new();
        if self.protocol != ICMP {
            summed.extend([octets(from.0), octets(to.0)].concat());
            summed.extend(u32::try_from(self.bytes.len()).unwrap().to_be_bytes());
            summed.extend([0, 0, 0, self.protocol]);
        }
        summed.extend(&self.bytes);
        self.bytes[at..at + 2].copy_from_slice(&checksum(&summed).to_be_bytes());
        self
    }

    /// Puts extension headers of IPv6 before it: of each its number and its bytes from the second on.
    pub fn behind(self, headers: &[(u8, &[u8])]) -> Self {
        headers.iter().rev().fold(self, |body, (number, rest)| Self {
            protocol: *number,
            bytes: [&[body.protocol], *rest, &body.bytes].concat(),
        })
    }
}

/// A packet from one address to another. `options` are those of IPv4, a multiple of four bytes.
pub fn packet(from: IpAddr, to: IpAddr, options: &[u8], body: &Body) -> Vec<u8> {
    [ip(from, to, options, body.protocol, 0, body.bytes.len()), body.bytes.clone()].concat()
}

/// The header of a packet; in IPv4 with this offset of a fragment, flags included.
fn ip(from: IpAddr, to: IpAddr, options: &[u8], protocol: u8, offset: u16, len: usize) -> Vec<u8> {
    const ID: u16 = 0x6770;
    let mut header = match from {
        IpAddr::V4(_) => {
            let words = u8::try_from(5 + options.len() / 4).unwrap();
            let total = u16::try_from(usize::from(words) * 4 + len).unwrap();
            let mut header = vec![0x40 | words, 0];
            header.extend([total, ID, offset].map(u16::to_be_bytes).concat());
            header.extend([HOPS, protocol, 0, 0]);
            header
        }
        IpAddr::V6(_) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(u16::try_from(len).unwrap().to_be_bytes());
            header.extend([protocol, HOPS]);
            header
        }
    };
    header.extend([octets(from), octets(to)].concat());
    if from.is_ipv4() {
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    header
}

/// One fragment of a body: these of its bytes; `last`: none follows. `id` is what it has in common
/// with the others.
pub fn fragment(
    from: IpAddr,
    to: IpAddr,
    body: &Body,
    part: std::ops::Range<usize>,
    last: bool,
    id: u16,
) -> Vec<u8> {
    const FRAGMENT_HEADER: u8 = 44;
    let bytes = &body.bytes[part.clone()];
    let units = u16::try_from(part.start / 8).unwrap();
    if from.is_ipv4() {
        let more = if last { 0 } else { 0x2000 };
        let mut packet = ip(from, to, &[], body.protocol, units | more, bytes.len());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        return [&packet, bytes].concat();
    }
    let offset = (units << 3) | u16::from(!last);
    let mut header = vec![body.protocol, 0];
    header.extend(offset.to_be_bytes());
    header.extend(u32::from(id).to_be_bytes());
    let header = [header, bytes.to_vec()].concat();
    [ip(from, to, &[], FRAGMENT_HEADER, 0, header.len()), header].concat()
}

/// The destination port of a whole TCP or UDP packet, or of a first fragment.
pub fn port_in(packet: &[u8]) -> Option<u16> {
    let (protocol, header) = match packet.first()? >> 4 {
        4 => {
            let offset = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x1fff;
            (*packet.get(9).filter(|_| offset == 0)?, usize::from(packet[0] & 0xf) * 4)
        }
        _ => (*packet.get(6)?, 40),
    };
    let port = packet.get(header + 2..header + 4)?.try_into().ok()?;
    matches!(protocol, TCP | UDP).then(|| u16::from_be_bytes(port))
}

/// The sender's address and port of a whole TCP or UDP packet.
pub fn source_in(packet: &[u8]) -> Option<(IpAddr, u16)> {
    let [address, _] = addresses_in(packet)?;
    let (protocol, header) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, usize::from(packet[0] & 0xf) * 4),
        _ => (*packet.get(6)?, 40),
    };
    let port = packet.get(header..header + 2)?.try_into().ok()?;
    matches!(protocol, TCP | UDP).then(|| (address, u16::from_be_bytes(port)))
}

/// The addresses in a packet's header.
pub fn addresses_in(packet: &[u8]) -> Option<[IpAddr; 2]> {
    let address4 = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
    let address6 = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
    match packet.first()? >> 4 {
        4 => Some([address4(12)?, address4(16)?]),
        _ => Some([address6(8)?, address6(24)?]),
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
