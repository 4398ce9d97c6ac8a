//! The decoders of what the kernel and userspace devices send.

use std::time::SystemTime;

use netlink_packet_route::route::RouteProtocol;
use nix::libc::{AF_INET, AF_INET6};

use super::conntrack::deletion;
use super::device::Request;
use super::monitor::Filter;
use super::netlink::{Message, NetlinkError, messages};
use super::wireguard::{self, DeviceDump};
use super::{PROTOCOL, address, deny_log, link, nft, route, rule, sockets};
use crate::decoder::{Decoder, Outcome};
use crate::model::{InterfaceName, IpFamily};
use crate::plan::CutArea;

/// The link that the inputs are about.
const LINK_INDEX: u32 = 4;
const LINK_NAME: &str = "wg0";

pub const DECODERS: [Decoder; 9] = [
    Decoder::new("link", |bytes| each(bytes, |message| link::Link::read(message).map(drop))),
    Decoder::new("address", |bytes| {
        each(bytes, |message| {
            address::network(message);
            address::read(message, LINK_INDEX).map(drop)
        })
    }),
    Decoder::new("routing", |bytes| each(bytes, routing)),
    Decoder::new("host-event", host_event),
    Decoder::new("wireguard", wireguard_dump),
    Decoder::new("nftables", |bytes| nft::decoder::decode(bytes).into()),
    Decoder::new("flow", |bytes| each(bytes, flow)),
    Decoder::new("uapi-answer", |bytes| {
        Outcome::of_text(bytes, |text| wireguard::parse(text, SystemTime::UNIX_EPOCH))
    }),
    Decoder::new("uapi-request", |bytes| Outcome::of_text(bytes, Request::parse)),
];

/// Reads a datagram's messages as those of a dump, whose end may be an error of the kernel's.
fn each(
    datagram: &[u8],
    mut read: impl FnMut(&Message<'_>) -> Result<(), NetlinkError>,
) -> Outcome {
    let mut read = |message: Result<Message<'_>, NetlinkError>| {
        let message = message?;
        if message.is_end() { message.ack()? } else { read(&message) }
    };
    messages(datagram).try_for_each(&mut read).into()
}

fn routing(message: &Message<'_>) -> Result<(), NetlinkError> {
    const NEW_ROUTE: u16 = 24;
    const NEW_RULE: u16 = 32;
    match message.kind {
        NEW_ROUTE => {
            route::destination(message, LINK_INDEX, RouteProtocol::Other(PROTOCOL)).map(drop)
        }
        NEW_RULE => {
            let [family, ..] = *message.split::<12>("RTM_NEWRULE")?.0;
            let is_v6 = i32::from(family) == AF_INET6;
            rule::decode(message, if is_v6 { IpFamily::V6 } else { IpFamily::V4 }).map(drop)
        }
        _ => rule::filter_of(message).map(drop),
    }
}

fn host_event(datagram: &[u8]) -> Outcome {
    let Ok(interface) = LINK_NAME.parse::<InterfaceName>() else { return Outcome::Refused };
    let mut filter = Filter::new(interface, 0, None);
    each(datagram, |message| {
        deny_log::denial_in(message)?;
        filter.event(message).map(drop)
    })
}

fn wireguard_dump(datagram: &[u8]) -> Outcome {
    let mut dump = DeviceDump::default();
    let outcome = each(datagram, |message| dump.read(message));
    dump.finish();
    outcome
}

fn flow(message: &Message<'_>) -> Result<(), NetlinkError> {
    const SOCKET: u16 = 20;
    if message.kind == SOCKET {
        for family in [AF_INET, AF_INET6] {
            sockets::identity(u8::try_from(family).unwrap_or_default(), message)?;
        }
        return Ok(());
    }
    let prefixes = ["10.8.0.0/16", "fd00::/64"].iter().filter_map(|prefix| prefix.parse().ok());
    let prefixes = prefixes.collect();
    deletion(message, &CutArea::whole(&prefixes)).map(drop)
}
