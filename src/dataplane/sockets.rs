//! Destroys the gateway's own sockets to an address that gets another holder.
//!
//! A socket outlives the flow that the kernel forgot: a client on the gateway would go on with the next
//! holder of the address as if nothing had happened.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use super::netlink::{Channel, Encoded, Message, NetlinkError, Request};
use crate::plan::CutArea;

// include/uapi/linux/sock_diag.h, inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The states of sockets that have another side: all but `TCP_LISTEN`, and `TCP_TIME_WAIT`, which old
/// kernels do not destroy and which sends nothing of its own.
const CONNECTED: u32 = !(1 << 10 | 1 << 6);
/// `idiag_timer` of what is left of a socket that its program closed. Such may also be in another state.
const TIMER_OF_REMAINS: u8 = 3;
/// The attribute that holds the kernel's filter.
const REQUEST_BYTECODE: u16 = 1;
const BYTECODE_JUMP: u8 = 1;
/// Whether the other side's address lies within a prefix.
const BYTECODE_OTHER_SIDE: u8 = 8;
/// Sockets to more prefixes than this are listed whole: the filter is run for each socket.
const FILTERED_AT_MOST: usize = 64;
/// `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;
/// `struct inet_diag_msg`, in which the identity follows four bytes.
const MESSAGE_BYTES: usize = 72;

/// The result of destroying sockets to some prefixes.
#[derive(Debug, Default)]
pub(super) struct Destroyed {
    pub sockets: usize,
    /// Why there may be sockets left: the first refusal.
    pub refusal: Option<NetlinkError>,
}

impl Destroyed {
    /// Goes on after a refusal: what can be destroyed is.
    fn note(&mut self, destroyed: Result<(), NetlinkError>) {
        if let Err(error) = destroyed {
            self.refusal.get_or_insert(error);
        }
    }
}

/// Destroys the TCP and UDP sockets that are connected to an address of this area.
pub(super) fn destroy_sockets(area: &CutArea<'_>) -> Destroyed {
    destroy_over(|| Channel::open(NETLINK_SOCK_DIAG), area)
}

fn destroy_over(open: impl Fn() -> Result<Channel, NetlinkError>, area: &CutArea<'_>) -> Destroyed {
    let filter = filter(area.prefixes());
    let mut destroyed = Destroyed::default();
    for family in [AF_INET, AF_INET6] {
        for protocol in [TCP, UDP] {
            let done = open().and_then(|mut channel| {
                destroy(&mut channel, (family, protocol), &filter, area, &mut destroyed)
            });
            destroyed.note(done);
        }
    }
    destroyed
}

fn destroy(
    channel: &mut Channel,
    (family, protocol): (u8, u8),
    filter: &[u8],
    area: &CutArea<'_>,
    destroyed: &mut Destroyed,
) -> Result<(), NetlinkError> {
    let mut body = request((family, protocol), &[0; ID_BYTES]);
    body.extend_from_slice(filter);
    let list = Encoded { kind: SOCK_DIAG_BY_FAMILY, body: &body };
    let found = channel.dump(&list, |found: &mut Vec<Vec<u8>>, message| {
        if let Some((id, other_side)) = identity(family, message)? {
            found.extend(area.contains(other_side).then(|| request((family, protocol), id)));
        }
        Ok(())
    })?;
    let requests = found.iter().map(|body| Request::new(Encoded { kind: SOCK_DESTROY, body }));
    for ack in channel.transact(requests)? {
        match ack.as_ref().map_err(NetlinkError::refusal) {
            Ok(()) => destroyed.sockets += 1,
            // It was closed since it was listed.
            Err(Some(Errno::ENOENT)) => {}
            Err(_) => destroyed.note(ack),
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2`.
fn request((family, protocol): (u8, u8), id: &[u8]) -> Vec<u8> {
    [&[family, protocol, 0, 0], &CONNECTED.to_ne_bytes(), id].concat()
}

/// The attribute by which the kernel lists only sockets to these prefixes, if they are few: it saves the copy
/// of all others. `inet_diag_bc_run` in net/ipv4/inet_diag.c lists a socket if it comes out exactly at the
/// end of the code. An IPv4 prefix also finds IPv6 sockets to its mapped addresses.
fn filter(prefixes: &BTreeSet<IpNet>) -> Vec<u8> {
    if prefixes.len() > FILTERED_AT_MOST {
        return Vec::new();
    }
    const JUMP_BYTES: usize = 4;
    let conditions: Vec<Vec<u8>> = prefixes.iter().map(host_condition).collect();
    let mut left: usize = conditions.iter().map(|condition| condition.len() + JUMP_BYTES).sum();
    let mut code = Vec::with_capacity(left);
    for (number, condition) in conditions.iter().enumerate() {
        let is_last = number + 1 == conditions.len();
        // To the jump where it holds, else past it; past the end of the code where none is left.
        let past = condition.len() + JUMP_BYTES + if is_last { JUMP_BYTES } else { 0 };
        code.extend(operation(BYTECODE_OTHER_SIDE, condition.len(), past));
        code.extend_from_slice(&condition[JUMP_BYTES..]);
        left -= condition.len();
        code.extend(operation(BYTECODE_JUMP, JUMP_BYTES, left));
        left -= JUMP_BYTES;
    }
    let length = u16::try_from(4 + code.len()).unwrap_or(u16::MAX);
    [&length.to_ne_bytes()[..], &REQUEST_BYTECODE.to_ne_bytes(), &code].concat()
}

/// `struct inet_diag_bc_op`: where to go on if it holds and if it does not, from its own first byte.
fn operation(code: u8, holds: usize, fails: usize) -> [u8; 4] {
    let fails = u16::try_from(fails).unwrap_or(u16::MAX).to_ne_bytes();
    [code, u8::try_from(holds).unwrap_or(u8::MAX), fails[0], fails[1]]
}

/// Room for an operation, and its `struct inet_diag_hostcond` with any port.
fn host_condition(prefix: &IpNet) -> Vec<u8> {
    let (family, address) = match prefix {
        IpNet::V4(prefix) => (AF_INET, prefix.network().octets().to_vec()),
        IpNet::V6(prefix) => (AF_INET6, prefix.network().octets().to_vec()),
    };
    let any_port = (-1_i32).to_ne_bytes();
    [&[0; 4][..], &[family, prefix.prefix_len(), 0, 0], &any_port, &address].concat()
}

/// Returns the identity of a socket, and the address of its other side; `None`: its program closed it.
pub(super) fn identity<'a>(
    family: u8,
    message: &Message<'a>,
) -> Result<Option<(&'a [u8], IpAddr)>, NetlinkError> {
    const OTHER_SIDE: usize = 20;
    let (header, _) = message.split::<MESSAGE_BYTES>("SOCK_DIAG_BY_FAMILY")?;
    let [_, _, timer, ..] = *header;
    let id = &header[4..4 + ID_BYTES];
    let words: [u8; 16] = std::array::from_fn(|at| id[OTHER_SIDE + at]);
    let address = match family {
        AF_INET => IpAddr::from(Ipv4Addr::new(words[0], words[1], words[2], words[3])),
        _ => IpAddr::from(Ipv6Addr::from(words)).to_canonical(),
    };
    Ok((timer != TIMER_OF_REMAINS).then_some((id, address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other_side(family: u8, timer: u8, address: &[u8]) -> Option<IpAddr> {
        let mut payload = vec![0; MESSAGE_BYTES];
        payload[2] = timer;
        payload[24..24 + address.len()].copy_from_slice(address);
        let message = Message {
            kind: SOCK_DIAG_BY_FAMILY,
            flags: 0,
            sequence: 1,
            port: 0,
            payload: &payload,
        };
        identity(family, &message).unwrap().map(|(_, address)| address)
    }

    #[test]
    fn the_other_side_of_a_socket_is_read_in_both_families() {
        let v4: Ipv4Addr = "10.64.0.2".parse().unwrap();
        assert_eq!(other_side(AF_INET, 0, &v4.octets()), Some(v4.into()));
        let v6: Ipv6Addr = "fd64::2".parse().unwrap();
        assert_eq!(other_side(AF_INET6, 0, &v6.octets()), Some(v6.into()));
        assert_eq!(other_side(AF_INET6, 0, &v4.to_ipv6_mapped().octets()), Some(v4.into()));
        assert_eq!(other_side(AF_INET, TIMER_OF_REMAINS, &v4.octets()), None);
        let short = Message { kind: 20, flags: 0, sequence: 1, port: 0, payload: &[2, 1] };
        assert!(identity(AF_INET, &short).is_err());
    }

    #[test]
    fn the_kernel_filters_sockets_to_few_prefixes() {
        let prefixes: BTreeSet<IpNet> =
            ["10.64.0.2/32", "fd64::/64"].map(|prefix| prefix.parse().unwrap()).into();
        let code = &filter(&prefixes)[4..];
        // 16 bytes and a jump for the first, 28 and a jump for the second.
        assert_eq!(code.len(), 20 + 32);
        assert_eq!(code[..4], operation(BYTECODE_OTHER_SIDE, 16, 20));
        assert_eq!(code[16..20], operation(BYTECODE_JUMP, 4, 36));
        assert_eq!(code[20..24], operation(BYTECODE_OTHER_SIDE, 28, 36));
        assert_eq!(code[48..52], operation(BYTECODE_JUMP, 4, 4));
        let many = (0..=64).map(|number| format!("10.64.0.{number}/32").parse().unwrap());
        assert!(filter(&many.collect()).is_empty());
    }

    #[test]
    fn what_the_kernel_refuses_about_sockets_is_noted_and_stops_nothing() {
        const NO_SUCH_PROTOCOL: isize = 99;
        let prefixes = ["10.64.0.2/32".parse().unwrap()].into();
        let tried = std::cell::Cell::new(0);
        let open = || {
            tried.set(tried.get() + 1);
            Channel::open(NO_SUCH_PROTOCOL)
        };
        let destroyed = destroy_over(open, &CutArea::whole(&prefixes));
        assert_eq!((destroyed.sockets, tried.get()), (0, 4), "both protocols of both families");
        let refusal = destroyed.refusal.unwrap().to_string();
        assert!(refusal.contains("EPROTONOSUPPORT"), "{refusal}");
    }
}
