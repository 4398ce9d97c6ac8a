//! The network link: created, marked as ours, found again.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, LinkWireguard};
use uuid::Uuid;

use super::address;
use super::netlink::{Attributes, Channel, Message, NetlinkError, Request};
use crate::model::{GatewayId, InterfaceName};

/// The link type of kernel WireGuard.
pub(super) const KIND_WIREGUARD: &str = "wireguard";
/// The link type of a userspace device.
pub(super) const KIND_TUN: &str = "tun";

const ALIAS_PREFIX: &str = "gatepost:";

// include/uapi/linux/rtnetlink.h, if_link.h, if.h
const NEW_LINK: u16 = 16;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_INFO_KIND: u16 = 1;
const LINK_ALIAS: u16 = 20;
const FLAG_UP: u32 = 1;

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: Box<str>,
    /// `wireguard`, `tun`, `dummy`, ...; `physical` for one that has no type.
    pub kind: String,
    pub alias: Option<String>,
    pub up: bool,
    /// It belongs to a VRF, a bridge or a bond.
    pub has_master: bool,
    pub mtu_bytes: u32,
}

impl Link {
    /// Reads what we need of a link and nothing else, as other links may carry anything.
    pub fn read(message: &Message<'_>) -> Result<Self, NetlinkError> {
        let (index, up, attributes) = head(message)?;
        let mut link = Self {
            index,
            name: attributes.require(LINK_NAME)?.text_lossy().into(),
            kind: "physical".to_owned(),
            alias: None,
            up,
            has_master: false,
            mtu_bytes: attributes.require(LINK_MTU)?.u32()?,
        };
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                LINK_MASTER => link.has_master = attribute.u32()? != 0,
                LINK_ALIAS => link.alias = Some(attribute.text_lossy()),
                LINK_INFO => {
                    if let Some(kind) = attribute.nested().find(LINK_INFO_KIND)? {
                        link.kind = kind.text_lossy();
                    }
                }
                _ => {}
            }
        }
        Ok(link)
    }

    /// The gateway whose mark the link carries.
    pub fn gateway_id(&self) -> Option<GatewayId> {
        let id = self.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)?;
        Uuid::try_parse(id).ok().map(GatewayId)
    }
}

/// The number of a link, whether it is up, and the rest.
fn head<'a>(message: &Message<'a>) -> Result<(u32, bool, Attributes<'a>), NetlinkError> {
    // struct ifinfomsg: family, type, index, flags, mask of changes
    let (header, attributes) = message.split::<16>("RTM_NEWLINK")?;
    let [_, _, _, _, i, j, k, l, f, g, h, e, ..] = *header;
    let up = u32::from_ne_bytes([f, g, h, e]) & FLAG_UP != 0;
    Ok((u32::from_ne_bytes([i, j, k, l]), up, attributes))
}

/// The number of the link that the kernel announces to be down; `None`: the announcement is another.
pub(super) fn that_is_down(message: &Message<'_>) -> Result<Option<u32>, NetlinkError> {
    if message.kind != NEW_LINK {
        return Ok(None);
    }
    let (index, up, _) = head(message)?;
    Ok((!up).then_some(index))
}

/// Finds a link by its name.
pub(super) fn find(channel: &mut Channel, name: &str) -> Result<Option<Link>, NetlinkError> {
    find_one(channel, LinkUnspec::new_with_name(name).build())
}

/// Finds a link by its number, whatever its name.
pub(super) fn find_by_index(
    channel: &mut Channel,
    index: u32,
) -> Result<Option<Link>, NetlinkError> {
    find_one(channel, LinkUnspec::new_with_index(index).build())
}

fn find_one(channel: &mut Channel, wanted: LinkMessage) -> Result<Option<Link>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(wanted);
    let found = channel.get(&request, |link: &mut Option<Link>, message| {
        *link = Some(Link::read(message)?);
        Ok(())
    });
    match found {
        Err(error) if error.refusal() == Some(Errno::ENODEV) => Ok(None),
        found => found,
    }
}

/// Reads all links at once, so that one that is renamed meanwhile is neither missed nor seen twice.
pub(super) fn list(channel: &mut Channel) -> Result<Vec<Link>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let request = RouteNetlinkMessage::GetLink(request);
    channel.dump(&request, |links: &mut Vec<Link>, message| {
        links.push(Link::read(message)?);
        Ok(())
    })
}

/// The networks of the addresses of these links, each with a link's name, but for links with our mark.
pub(super) fn networks(
    channel: &mut Channel,
    links: &[Link],
) -> Result<BTreeMap<IpNet, Box<str>>, NetlinkError> {
    let networks = address::networks(channel)?.into_iter().filter_map(|(network, index)| {
        let link = links.iter().find(|link| link.index == index && link.gateway_id().is_none())?;
        Some((network, link.name.clone()))
    });
    Ok(networks.collect())
}

/// The networks of the addresses of all links but this one and those with our mark.
///
/// # Errors
/// The kernel does not answer.
pub fn networks_of_other_links(
    interface: &InterfaceName,
) -> Result<BTreeMap<IpNet, Box<str>>, NetlinkError> {
    let mut channel = Channel::open(NETLINK_ROUTE)?;
    let mut links = list(&mut channel)?;
    links.retain(|link| *link.name != *interface.as_str());
    networks(&mut channel, &links)
}

/// Facts about a link that WireGuard does not know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkFacts {
    pub mtu_bytes: u32,
    /// Link-local IPv6 addresses are left out: the kernel adds them.
    pub addresses: Vec<IpNet>,
    /// It carries the mark of a gateway.
    pub is_ours: bool,
}

/// Describes the link of this name; `None`: there is none.
///
/// # Errors
/// The kernel does not answer.
pub fn link_facts(name: &InterfaceName) -> Result<Option<LinkFacts>, NetlinkError> {
    let mut channel = Channel::open(NETLINK_ROUTE)?;
    let Some(link) = find(&mut channel, name.as_str())? else { return Ok(None) };
    let addresses = address::list(&mut channel, link.index)?.into_keys();
    let is_global = |it: &IpNet| match it {
        IpNet::V6(it) => !it.addr().is_unicast_link_local(),
        IpNet::V4(_) => true,
    };
    Ok(Some(LinkFacts {
        mtu_bytes: link.mtu_bytes,
        addresses: addresses.filter(is_global).collect(),
        is_ours: link.gateway_id().is_some(),
    }))
}

/// Makes a kernel WireGuard link, unmarked: a mark in the same datagram would have to name the link,
/// and if the name were taken would mark another program's link.
pub(super) fn create(channel: &mut Channel, name: &InterfaceName) -> Result<(), NetlinkError> {
    let link = RouteNetlinkMessage::NewLink(LinkWireguard::new(name.as_str()).build());
    channel.request(Request::with_flags(link, NLM_F_CREATE | NLM_F_EXCL))
}

/// Puts our mark on a link that is there.
pub(super) fn claim(
    channel: &mut Channel,
    index: u32,
    gateway_id: GatewayId,
) -> Result<(), NetlinkError> {
    let mark = format!("{ALIAS_PREFIX}{gateway_id}");
    let link = LinkUnspec::new_with_index(index).alias(mark).build();
    channel.request(Request::new(RouteNetlinkMessage::SetLink(link)))
}

/// Gives the link another name. Kernels before 6.2 rename no link that is up: there it goes down
/// and up again, in one datagram. What that costs, the reading after every complete pass finds.
pub(super) fn rename(
    channel: &mut Channel,
    index: u32,
    name: &InterfaceName,
) -> Result<(), NetlinkError> {
    let link = || LinkUnspec::new_with_index(index);
    let rename = || Request::new(RouteNetlinkMessage::SetLink(link().name(name.as_str()).build()));
    match channel.request(rename()) {
        Err(error) if error.refusal() == Some(Errno::EBUSY) => {
            let down = Request::new(RouteNetlinkMessage::SetLink(link().down().build()));
            let up = Request::new(RouteNetlinkMessage::SetLink(link().up().build()));
            channel.transact([down, rename(), up])?.into_iter().collect()
        }
        renamed => renamed,
    }
}

/// Takes the link out of its VRF. The kernel then takes it down and up once.
pub(super) fn free(channel: &mut Channel, index: u32) -> Result<(), NetlinkError> {
    let link = LinkUnspec::new_with_index(index).nocontroller().build();
    channel.request(Request::new(RouteNetlinkMessage::SetLink(link)))
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

/// Takes the link down.
pub(super) fn set_down(channel: &mut Channel, index: u32) -> Result<(), NetlinkError> {
    let link = LinkUnspec::new_with_index(index).down().build();
    channel.request(Request::new(RouteNetlinkMessage::SetLink(link)))
}

/// Deletes the link. On kernel WireGuard remove the peers first: each one left costs ~19 ms here.
pub(super) fn delete(channel: &mut Channel, index: u32) -> Result<(), NetlinkError> {
    let link = LinkUnspec::new_with_index(index).build();
    channel.request(Request::new(RouteNetlinkMessage::DelLink(link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(alias: Option<&str>) -> Option<GatewayId> {
        let alias = alias.map(str::to_owned);
        let (name, kind) = ("gatepost0".into(), KIND_WIREGUARD.into());
        Link { index: 1, name, kind, alias, up: true, has_master: false, mtu_bytes: 1420 }
            .gateway_id()
    }

    #[test]
    fn only_a_link_that_is_announced_to_be_down_is_down() {
        let announced = |kind, index: u8, flags: u8| {
            let payload = [0, 0, 0, 0, index, 0, 0, 0, flags, 0, 0, 0, 0, 0, 0, 0];
            let message = Message { kind, flags: 0, sequence: 0, port: 0, payload: &payload };
            that_is_down(&message).unwrap()
        };
        assert_eq!(announced(NEW_LINK, 7, 0x90), Some(7));
        assert_eq!(announced(NEW_LINK, 7, 0x91), None);
        let gone = NEW_LINK + 1;
        assert_eq!(announced(gone, 7, 0x90), None);
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
