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
use super::link::decode;
use super::netlink::{Channel, NetlinkError, Request, gone_is_done};
use crate::model::Tag;
use crate::plan::Step;

/// Reads the routes out of the interface, in the main table: those that carry our number, and those
/// that the kernel made to these networks of its addresses. The kernel does the filtering, so that a
/// host with a million routes of others answers as fast as any.
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
    let request = || {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = protocol;
        message.attributes = vec![RouteAttribute::Oif(index)];
        RouteNetlinkMessage::GetRoute(message)
    };
    let found = channel.dump(request, |routes: &mut Vec<IpNet>, kind, payload| {
        if let RouteNetlinkMessage::NewRoute(message) = decode(kind, payload)? {
            routes.extend(destination(&message, index, protocol));
        }
        Ok(())
    });
    match found {
        // A host that never had IPv6 has no table of its routes.
        Err(error) if error.refusal() == Some(Errno::ENOENT) => Ok(Vec::new()),
        found => found,
    }
}

/// Obeys `AddRoute` and `RemoveRoute` steps, many in flight, and returns what became of each.
///
/// A route of somebody else to the same prefix is never replaced: the kernel answers `EEXIST`.
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
        _ => Err(NetlinkError::Unsuited("no step of a route")),
    };
    let requests: Result<Vec<_>, _> = steps.iter().map(request).collect();
    match requests.and_then(|requests| channel.transact(requests)) {
        Ok(verdicts) => {
            let removes = |step: &Step| matches!(step, Step::RemoveRoute { .. });
            let settle =
                |(step, verdict)| if removes(step) { gone_is_done(verdict) } else { verdict };
            steps.iter().zip(verdicts).map(settle).collect()
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

/// Where a route of this protocol out of the interface leads.
fn destination(message: &RouteMessage, index: u32, protocol: RouteProtocol) -> Option<IpNet> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    // Kernels before 4.20 do not filter.
    let mut out = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => out = Some(*oif),
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = (*ip).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => destination = (*ip).into(),
            _ => {}
        }
    }
    let asked_for = message.header.protocol == protocol
        && message.header.table == RouteHeader::RT_TABLE_MAIN
        && message.header.kind == RouteType::Unicast
        && out == Some(index);
    asked_for.then(|| IpNet::new(destination, message.header.destination_prefix_length).ok())?
}
