//! Addresses of the interface.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::PROTOCOL;
use super::link::{self, decode};
use super::netlink::{Channel, NetlinkError, Request, gone_is_done};
use crate::model::Tag;

/// Reads the interface's addresses and whose each is. Kernels before 5.18 do not keep `IFA_PROTO`:
/// there every address is [`Tag::Foreign`], which is accepted and never removed.
pub(super) fn list(
    channel: &mut Channel,
    index: u32,
) -> Result<BTreeMap<IpNet, Tag>, NetlinkError> {
    let request = || {
        let mut message = AddressMessage::default();
        message.header.index = index;
        RouteNetlinkMessage::GetAddress(message)
    };
    channel.dump(request, |addresses: &mut BTreeMap<IpNet, Tag>, kind, payload| {
        if let RouteNetlinkMessage::NewAddress(message) = decode(kind, payload)?
            && message.header.index == index
        {
            addresses.extend(describe(&message));
        }
        Ok(())
    })
}

/// Adds an address that carries our number.
pub(super) fn add(channel: &mut Channel, index: u32, address: IpNet) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::NewAddress(message(index, address));
    channel.request(Request::with_flags(message, NLM_F_CREATE | NLM_F_EXCL))
}

/// Removes an address. One that is gone already is no error.
///
/// With the first IPv4 address of a network the kernel removes all others of it, also those that
/// somebody else added, and their routes, unless it is told to let the next take its place.
pub(super) fn remove(
    channel: &mut Channel,
    index: u32,
    address: IpNet,
) -> Result<(), NetlinkError> {
    if matches!(address, IpNet::V4(_)) {
        channel.request(Request::new(link::promote_secondaries(index)))?;
    }
    let message = RouteNetlinkMessage::DelAddress(message(index, address));
    gone_is_done(channel.request(Request::new(message)))
}

/// Puts one address in the place of another, in one datagram.
pub(super) fn replace(
    channel: &mut Channel,
    index: u32,
    from: IpNet,
    to: IpNet,
) -> Result<(), NetlinkError> {
    let remove = Request::new(RouteNetlinkMessage::DelAddress(message(index, from)));
    let add = RouteNetlinkMessage::NewAddress(message(index, to));
    let add = Request::with_flags(add, NLM_F_CREATE | NLM_F_EXCL);
    let mut verdicts = channel.transact([remove, add])?.into_iter();
    verdicts.next().map_or(Ok(()), gone_is_done)?;
    verdicts.collect()
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    // Nobody else can have the address on a tunnel: it is usable at once, without detection of
    // duplicates (RFC 4862, section 5.4).
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(AddressFlags::Nodad),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ];
    message
}

fn describe(message: &AddressMessage) -> Option<(IpNet, Tag)> {
    let (mut local, mut address, mut tag) = (None, None, Tag::Foreign);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(protocol) if u8::from(*protocol) == PROTOCOL => {
                tag = Tag::Ours;
            }
            _ => {}
        }
    }
    // On a point-to-point address IFA_ADDRESS is the other end; IPv6 may have no IFA_LOCAL.
    let address = local.or(address)?;
    Some((IpNet::new(address, message.header.prefix_len).ok()?, tag))
}
