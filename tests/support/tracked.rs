//! Tracked flows made by netlink: many of them in a moment, and no packet is sent.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CT_NEW: u16 = 0x100;
const NESTED: u16 = 0x8000;
/// `NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL`
const CREATE: u16 = 0x601;
const FLOW_BYTES: usize = 256;
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// A UDP flow: who opened it, who answers, in which zone.
#[derive(Clone, Copy)]
pub struct Flow {
    pub from: IpAddr,
    pub to: IpAddr,
    pub port: u16,
    pub zone: u16,
}

impl Flow {
    pub fn new(from: &str, to: &str, port: u16) -> Self {
        Self { from: from.parse().unwrap(), to: to.parse().unwrap(), port, zone: 0 }
    }
}

/// Flows of other addresses, eight each.
pub fn others(count: u32) -> impl Iterator<Item = Flow> {
    (0..count).map(|number| Flow {
        from: Ipv4Addr::from(0x0a80_0000 + number / 8).into(),
        to: Ipv4Addr::from(0xac10_0000 + number % 50_000).into(),
        port: 1_024 + (number % 8) as u16,
        zone: 0,
    })
}

/// Makes flows in the network namespace of this thread.
pub fn track(flows: impl Iterator<Item = Flow>) {
    let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(family, SockType::Raw, flags, protocol).unwrap();
    let mut datagram = Vec::with_capacity(128 * 1024);
    for flow in flows {
        message(&mut datagram, flow);
        if datagram.len() + FLOW_BYTES > datagram.capacity() {
            send(&socket, &datagram);
            datagram.clear();
        }
    }
    send(&socket, &datagram);
}

fn send(socket: &OwnedFd, datagram: &[u8]) {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), datagram, &kernel, MsgFlags::empty()).unwrap();
}

pub fn tracked() -> u32 {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    count.trim().parse().unwrap()
}

fn message(out: &mut Vec<u8>, Flow { from, to, port, zone }: Flow) {
    let start = out.len();
    out.extend([0; 16]);
    out.extend([if from.is_ipv4() { 2 } else { 10 }, 0, 0, 0]);
    for (kind, from, to, from_port, to_port) in [(1, from, to, port, 443), (2, to, from, 443, port)]
    {
        nest(out, kind, |out| {
            nest(out, 1, |out| {
                let (source, destination) = if from.is_ipv4() { (1, 2) } else { (3, 4) };
                attribute(out, source, &octets(from));
                attribute(out, destination, &octets(to));
            });
            nest(out, 2, |out| {
                attribute(out, 1, &[17]);
                attribute(out, 2, &u16::to_be_bytes(from_port));
                attribute(out, 3, &u16::to_be_bytes(to_port));
            });
        });
    }
    // It is confirmed, was replied to, makes room for no other, and lasts ten minutes.
    attribute(out, 3, &14u32.to_be_bytes());
    attribute(out, 7, &600u32.to_be_bytes());
    if zone != 0 {
        attribute(out, 18, &zone.to_be_bytes());
    }
    let len = u32::try_from(out.len() - start).unwrap();
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    out[start + 4..start + 6].copy_from_slice(&CT_NEW.to_ne_bytes());
    out[start + 6..start + 8].copy_from_slice(&CREATE.to_ne_bytes());
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    attribute(out, kind | NESTED, &[]);
    fill(out);
    let len = u16::try_from(out.len() - start).unwrap();
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

/// The limit of tracked flows, one for all namespaces, changed while this lives.
pub struct Max {
    before: u32,
    now: u32,
}

impl Max {
    /// Raises it to so many, unless it allows more.
    pub fn at_least(count: u32) -> Self {
        Self::change(|before| before.max(count))
    }

    /// Lowers it to so many, and no lower than twice what the machine itself has.
    pub fn at_most(count: u32) -> Self {
        let of_machine = 2 * tracked();
        Self::change(|before| before.min(count.max(of_machine)))
    }

    pub const fn flows(&self) -> u32 {
        self.now
    }

    fn change(to: impl FnOnce(u32) -> u32) -> Self {
        let before = std::fs::read_to_string(MAX).unwrap().trim().parse().unwrap();
        let now = to(before);
        std::fs::write(MAX, now.to_string()).unwrap();
        Self { before, now }
    }
}

impl Drop for Max {
    fn drop(&mut self) {
        let _ = std::fs::write(MAX, self.before.to_string());
    }
}
