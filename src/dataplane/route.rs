//! Routes into the tunnel, in the main table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::PROTOCOL;
use super::netlink::{Channel, Message, NetlinkError, Request, gone_is_done};
use crate::model::Tag;
use crate::plan::Step;

// include/uapi/linux/rtnetlink.h
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_OIF: u16 = 4;

/// Reads the routes out of the interface, in the main table: those that carry our protocol
/// number, and those that the kernel made to these networks of its addresses. The kernel filters, so
/// that a host with a million other routes answers as fast as any.
pub(super) fn list(
    channel: &mut Channel,
    index: u32,
    networks: &BTreeSet<IpNet>,
) -> Result<BTreeMap<IpNet, Tag>, NetlinkError> {
    let mut routes = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let made = dump(channel, index, family, RouteProtocol::Kernel)?;
        let made = made.into_iter().filter(|prefix| networks.contains(prefix));
        routes.extend(made.map(|prefix| (prefix, Tag::Foreign)));
        let ours = dump(channel, index, family, RouteProtocol::Other(PROTOCOL))?;
        routes.extend(ours.into_iter().map(|prefix| (prefix, Tag::Ours)));
    }
    Ok(routes)
}

fn dump(
    channel: &mut Channel,
    index: u32,
    family: AddressFamily,
    protocol: RouteProtocol,
) -> Result<Vec<IpNet>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.protocol = protocol;
    request.attributes = vec![RouteAttribute::Oif(index)];
    let request = RouteNetlinkMessage::GetRoute(request);
    let found = channel.dump(&request, |routes: &mut Vec<IpNet>, message| {
        routes.extend(destination(message, index, protocol)?);
        Ok(())
    });
    match found {
        // A host that never had IPv6 has no table of IPv6 routes.
        Err(error) if error.refusal() == Some(Errno::ENOENT) => Ok(Vec::new()),
        found => found,
    }
}

/// Applies `AddRoute` and `RemoveRoute` steps, many in one datagram, and returns what became of each.
///
/// A route of another program to the same prefix is never replaced: the kernel answers `EEXIST`.
pub(super) fn write(
    channel: &mut Channel,
    index: u32,
    steps: &[Step],
) -> Vec<Result<(), NetlinkError>> {
    let request = |step: &Step| match step {
        Step::AddRoute { prefix } => {
            let add = RouteNetlinkMessage::NewRoute(message(index, *prefix));
            Ok(Request::with_flags(add, NLM_F_CREATE | NLM_F_EXCL))
        }
        Step::RemoveRoute { prefix } => {
            Ok(Request::new(RouteNetlinkMessage::DelRoute(message(index, *prefix))))
        }
        _ => Err(NetlinkError::Unsuited("the step changes no route")),
    };
    let requests: Result<Vec<_>, _> = steps.iter().map(request).collect();
    match requests.and_then(|requests| channel.transact(requests)) {
        Ok(acks) => {
            let removes = |step: &Step| matches!(step, Step::RemoveRoute { .. });
            let result = |(step, ack)| if removes(step) { gone_is_done(ack) } else { ack };
            steps.iter().zip(acks).map(result).collect()
        }
        Err(error) => steps.iter().map(|_| Err(error.clone())).collect(),
    }
}

fn message(index: u32, prefix: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = match prefix {
        IpNet::V4(prefix) => {
            message.header.address_family = AddressFamily::Inet;
            // Reached directly, without a next hop.
            message.header.scope = RouteScope::Link;
            RouteAddress::Inet(prefix.network())
        }
        IpNet::V6(prefix) => {
            message.header.address_family = AddressFamily::Inet6;
            RouteAddress::Inet6(prefix.network())
        }
    };
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Destination(destination), RouteAttribute::Oif(index)];
    message
}

/// The prefix of a route, if it has this protocol and leads out of the interface. Kernels before 4.20
/// do not filter.
pub(super) fn destination(
    message: &Message<'_>,
    index: u32,
    protocol: RouteProtocol,
) -> Result<Option<IpNet>, NetlinkError> {
    // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type
    let (header, attributes) = message.split::<12>("RTM_NEWROUTE")?;
    let [family, prefix_len, _, _, table, protocol_found, _, kind, ..] = *header;
    let out = attributes.find(ROUTE_OIF)?.map(|out| out.u32()).transpose()?;
    let asked_for = protocol_found == u8::from(protocol)
        && table == RouteHeader::RT_TABLE_MAIN
        && kind == u8::from(RouteType::Unicast)
        && out == Some(index);
    if !asked_for {
        return Ok(None);
    }
    let found = attributes.find(ROUTE_DESTINATION)?;
    let address: IpAddr = match (AddressFamily::from(family), found) {
        (AddressFamily::Inet, None) => Ipv4Addr::UNSPECIFIED.into(),
        (AddressFamily::Inet, Some(address)) => address.fixed::<4>()?.into(),
        (AddressFamily::Inet6, None) => Ipv6Addr::UNSPECIFIED.into(),
        (AddressFamily::Inet6, Some(address)) => address.fixed::<16>()?.into(),
        _ => return Ok(None),
    };
    IpNet::new(address, prefix_len).map(Some).map_err(|_| attributes.malformed("a prefix"))
}
