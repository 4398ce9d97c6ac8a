//! The network link itself: made, marked as ours, found again.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, LinkWireguard};
use uuid::Uuid;

use super::netlink::{Channel, NetlinkError, Request};
use crate::model::{GatewayId, InterfaceName};

/// The link type of kernel WireGuard.
pub(super) const KIND_WIREGUARD: &str = "wireguard";
/// The link type of a userspace device.
pub(super) const KIND_TUN: &str = "tun";

const ALIAS_PREFIX: &str = "gatepost:";

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    /// `wireguard`, `tun`, `dummy`, ...; `physical` for one that has no type.
    pub kind: String,
    pub alias: Option<String>,
    pub up: bool,
    pub mtu_bytes: u32,
}

impl Link {
    /// The gateway whose mark the link carries.
    pub fn gateway_id(&self) -> Option<GatewayId> {
        let id = self.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)?;
        Uuid::try_parse(id).ok().map(GatewayId)
    }
}

/// Finds a link by its name.
pub(super) fn find(
    channel: &mut Channel,
    name: &InterfaceName,
) -> Result<Option<Link>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name.as_str()).build());
    let found = channel.get(request, |link: &mut Option<Link>, kind, payload| {
        if let RouteNetlinkMessage::NewLink(message) = decode(kind, payload)? {
            *link = Some(describe(&message));
        }
        Ok(())
    });
    match found {
        Err(error) if error.refusal() == Some(Errno::ENODEV) => Ok(None),
        found => found,
    }
}

/// Makes a kernel WireGuard link that carries our mark from the first moment: both requests are one
/// datagram, so that no kill of this process leaves an unmarked link behind.
pub(super) fn create(
    channel: &mut Channel,
    name: &InterfaceName,
    gateway_id: GatewayId,
) -> Result<(), NetlinkError> {
    let link = LinkWireguard::new(name.as_str()).build();
    let create = Request::with_flags(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL);
    let mark = mark(LinkUnspec::new_with_name(name.as_str()).build(), gateway_id);
    channel.transact([create, Request::new(mark)])?.into_iter().collect()
}

/// Puts our mark on a link that is there.
pub(super) fn claim(
    channel: &mut Channel,
    index: u32,
    gateway_id: GatewayId,
) -> Result<(), NetlinkError> {
    let request = mark(LinkUnspec::new_with_index(index).build(), gateway_id);
    channel.request(Request::new(request))
}

/// Sets the largest packet the link takes, in bytes.
pub(super) fn set_mtu(
    channel: &mut Channel,
    index: u32,
    mtu_bytes: u32,
) -> Result<(), NetlinkError> {
    let link = LinkUnspec::new_with_index(index).mtu(mtu_bytes).build();
    channel.request(Request::new(RouteNetlinkMessage::SetLink(link)))
}

/// Brings the link up.
pub(super) fn set_up(channel: &mut Channel, index: u32) -> Result<(), NetlinkError> {
    let link = LinkUnspec::new_with_index(index).up().build();
    channel.request(Request::new(RouteNetlinkMessage::SetLink(link)))
}

/// Deletes the link. On kernel WireGuard remove the peers first: each one left costs ~19 ms here.
pub(super) fn delete(channel: &mut Channel, index: u32) -> Result<(), NetlinkError> {
    let link = LinkUnspec::new_with_index(index).build();
    channel.request(Request::new(RouteNetlinkMessage::DelLink(link)))
}

/// Decodes a message of the route family.
pub(super) fn decode(kind: u16, payload: &[u8]) -> Result<RouteNetlinkMessage, NetlinkError> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    RouteNetlinkMessage::deserialize(&header, payload)
        .map_err(|_| NetlinkError::Malformed("a link, address or route"))
}

fn mark(mut link: LinkMessage, gateway_id: GatewayId) -> RouteNetlinkMessage {
    link.attributes.push(LinkAttribute::IfAlias(format!("{ALIAS_PREFIX}{gateway_id}")));
    RouteNetlinkMessage::SetLink(link)
}

fn describe(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        kind: "physical".to_owned(),
        alias: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu_bytes: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu_bytes) => link.mtu_bytes = *mtu_bytes,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(alias: Option<&str>) -> Option<GatewayId> {
        let alias = alias.map(str::to_owned);
        Link { index: 1, kind: KIND_WIREGUARD.into(), alias, up: true, mtu_bytes: 1420 }
            .gateway_id()
    }

    #[test]
    fn only_our_own_alias_is_a_mark() {
        let id = GatewayId(Uuid::from_u128(7));
        assert_eq!(alias(Some(&format!("gatepost:{id}"))), Some(id));
        assert_eq!(alias(Some("gatepost:")), None);
        assert_eq!(alias(Some("uplink")), None);
        assert_eq!(alias(None), None);
    }
}
