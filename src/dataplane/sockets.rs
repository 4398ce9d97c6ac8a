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

// include/uapi/linux/sock_diag.h, inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The states of sockets that have another side: all but `TCP_LISTEN`.
const CONNECTED: u32 = !(1 << 10);
/// `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;
/// `struct inet_diag_msg`, in which the identity follows four bytes.
const MESSAGE_BYTES: usize = 72;

/// What became of the sockets that were found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Destroyed {
    pub sockets: usize,
    /// How many are left because this kernel cannot destroy sockets.
    pub left: usize,
}

/// Destroys the TCP and UDP sockets that are connected to an address of these prefixes.
///
/// # Errors
/// The sockets cannot be listed, or one could not be destroyed. A kernel that lists or destroys none at
/// all is no error.
pub(super) fn destroy_sockets(prefixes: &BTreeSet<IpNet>) -> Result<Destroyed, NetlinkError> {
    let lengths: BTreeSet<u8> = prefixes.iter().map(IpNet::prefix_len).collect();
    let concerned = |address: IpAddr| {
        lengths.iter().any(|length| {
            IpNet::new(address, *length).is_ok_and(|prefix| prefixes.contains(&prefix.trunc()))
        })
    };
    let mut channel = Channel::open(NETLINK_SOCK_DIAG)?;
    let mut destroyed = Destroyed::default();
    for family in [AF_INET, AF_INET6] {
        for protocol in [TCP, UDP] {
            destroy(&mut channel, (family, protocol), &concerned, &mut destroyed)?;
        }
    }
    Ok(destroyed)
}

fn destroy(
    channel: &mut Channel,
    (family, protocol): (u8, u8),
    concerned: &impl Fn(IpAddr) -> bool,
    destroyed: &mut Destroyed,
) -> Result<(), NetlinkError> {
    let all = request((family, protocol), &[0; ID_BYTES]);
    let list = Encoded { kind: SOCK_DIAG_BY_FAMILY, body: &all };
    let listed = channel.dump(&list, |found: &mut Vec<Vec<u8>>, message| {
        let (id, other_side) = identity(family, message)?;
        found.extend(concerned(other_side).then(|| request((family, protocol), id)));
        Ok(())
    });
    let found = match listed {
        Err(error) if error.refusal().is_some_and(is_unheard_of) => return Ok(()),
        listed => listed?,
    };
    let requests = found.iter().map(|body| Request::new(Encoded { kind: SOCK_DESTROY, body }));
    for ack in channel.transact(requests)? {
        match ack.as_ref().map_err(NetlinkError::refusal) {
            Ok(()) => destroyed.sockets += 1,
            // It was closed since it was listed.
            Err(Some(Errno::ENOENT)) => {}
            Err(Some(Errno::EOPNOTSUPP)) => destroyed.left += 1,
            Err(_) => return ack,
        }
    }
    Ok(())
}

/// This kernel lists no sockets of that kind.
const fn is_unheard_of(refusal: Errno) -> bool {
    matches!(refusal, Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP)
}

/// `struct inet_diag_req_v2`.
fn request((family, protocol): (u8, u8), id: &[u8]) -> Vec<u8> {
    [&[family, protocol, 0, 0], &CONNECTED.to_ne_bytes(), id].concat()
}

/// What identifies a socket, and the address of its other side.
fn identity<'a>(family: u8, message: &Message<'a>) -> Result<(&'a [u8], IpAddr), NetlinkError> {
    const OTHER_SIDE: usize = 20;
    let (header, _) = message.split::<MESSAGE_BYTES>("SOCK_DIAG_BY_FAMILY")?;
    let id = &header[4..4 + ID_BYTES];
    let words: [u8; 16] = std::array::from_fn(|at| id[OTHER_SIDE + at]);
    let address = match family {
        AF_INET => IpAddr::from(Ipv4Addr::new(words[0], words[1], words[2], words[3])),
        _ => IpAddr::from(Ipv6Addr::from(words)).to_canonical(),
    };
    Ok((id, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other_side(family: u8, address: &[u8]) -> Result<IpAddr, String> {
        let mut payload = vec![0; MESSAGE_BYTES];
        payload[24..24 + address.len()].copy_from_slice(address);
        let message = Message {
            kind: SOCK_DIAG_BY_FAMILY,
            flags: 0,
            sequence: 1,
            port: 0,
            payload: &payload,
        };
        identity(family, &message).map(|(_, address)| address).map_err(|error| error.to_string())
    }

    #[test]
    fn the_other_side_of_a_socket_is_read_in_both_families() {
        let v4: Ipv4Addr = "10.64.0.2".parse().unwrap();
        assert_eq!(other_side(AF_INET, &v4.octets()), Ok(v4.into()));
        let v6: Ipv6Addr = "fd64::2".parse().unwrap();
        assert_eq!(other_side(AF_INET6, &v6.octets()), Ok(v6.into()));
        assert_eq!(other_side(AF_INET6, &v4.to_ipv6_mapped().octets()), Ok(v4.into()));
        let short = Message { kind: 20, flags: 0, sequence: 1, port: 0, payload: &[2, 1] };
        assert!(identity(AF_INET, &short).is_err());
    }
}
