//! Addresses of the interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::LinkUnspec;

use super::PROTOCOL;
use super::netlink::{
    Attribute, Attributes, Channel, Message, NLA_F_NESTED, NetlinkError, Request, gone_is_done,
    put, put_nested,
};
use crate::model::Tag;

// include/uapi/linux/if_addr.h
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_PROTOCOL: u16 = 11;
// include/uapi/linux/if_link.h, if.h
const LINK_FAMILIES: u16 = 26;
const FAMILY_INET: u16 = 2;
const INET_SETTINGS: u16 = 1;
/// `IPV4_DEVCONF_PROMOTE_SECONDARIES` of include/uapi/linux/ip.h.
const PROMOTE_SECONDARIES: u16 = 20;

/// Reads the interface's addresses, each with its owner. Kernels before 5.18 do not keep `IFA_PROTO`:
/// there every address is [`Tag::Foreign`], which is accepted and never removed.
pub(super) fn list(
    channel: &mut Channel,
    index: u32,
) -> Result<BTreeMap<IpNet, Tag>, NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.index = index;
    let request = RouteNetlinkMessage::GetAddress(request);
    channel.dump(&request, |addresses: &mut BTreeMap<IpNet, Tag>, message| {
        addresses.extend(read(message, index)?);
        Ok(())
    })
}

/// Reads the networks of every link's addresses, each with the indexes of its links.
pub(super) fn networks(channel: &mut Channel) -> Result<BTreeSet<(IpNet, u32)>, NetlinkError> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    channel.dump(&request, |networks: &mut BTreeSet<(IpNet, u32)>, message| {
        networks.extend(network(message));
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
/// With the first IPv4 address of a network the kernel removes all its other addresses, those of other
/// programs too, and their routes, unless the setting for the next to take its place is on.
pub(super) fn remove(
    channel: &mut Channel,
    index: u32,
    address: IpNet,
) -> Result<(), NetlinkError> {
    if matches!(address, IpNet::V4(_)) {
        channel.request(Request::new(promote_secondaries(index)))?;
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
    let mut acks = channel.transact([remove, add])?.into_iter();
    acks.next().map_or(Ok(()), gone_is_done)?;
    acks.collect()
}

fn message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    // No other host can have the address on a tunnel: it is usable at once, without detection of
    // duplicates (RFC 4862, section 5.4).
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(AddressFlags::Nodad),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ];
    message
}

/// One address of the interface; `None`: it belongs to another.
pub(super) fn read(
    message: &Message<'_>,
    index: u32,
) -> Result<Option<(IpNet, Tag)>, NetlinkError> {
    let (of, prefix_len, attributes) = split(message)?;
    if of != index {
        return Ok(None);
    }
    // On a point-to-point address IFA_ADDRESS is the other end; IPv6 may have no IFA_LOCAL.
    let local = attributes.find(ADDRESS_LOCAL)?;
    let local = ip(local.map_or_else(|| attributes.require(ADDRESS_ADDRESS), Ok)?)?;
    let prefix = IpNet::new(local, prefix_len).map_err(|_| attributes.malformed("a prefix"))?;
    let protocol = attributes.find(ADDRESS_PROTOCOL)?.map(|protocol| protocol.u8()).transpose()?;
    let tag = if protocol == Some(PROTOCOL) { Tag::Ours } else { Tag::Foreign };
    Ok(Some((prefix, tag)))
}

/// The network of one address, and the index of its link; `None`: the message has none that can be read. Most links
/// are other programs', and nothing about those may keep back what is to be done on ours.
pub(super) fn network(message: &Message<'_>) -> Option<(IpNet, u32)> {
    let (index, prefix_len, attributes) = split(message).ok()?;
    // On a point-to-point address it is the other end's, to which the route leads. The kernel sends no
    // other end of 0.0.0.0, and makes no route to it.
    let network = match attributes.find(ADDRESS_ADDRESS).ok()? {
        Some(address) => IpNet::new(ip(address).ok()?, prefix_len).ok()?,
        None => ip(attributes.find(ADDRESS_LOCAL).ok()??).ok()?.into(),
    };
    Some((network.trunc(), index))
}

/// The index of an address's link, the length of its prefix, and its attributes.
fn split<'a>(message: &Message<'a>) -> Result<(u32, u8, Attributes<'a>), NetlinkError> {
    // struct ifaddrmsg: family, length of the prefix, flags, scope, index of the link
    let (header, attributes) = message.split::<8>("RTM_NEWADDR")?;
    let [_, prefix_len, _, _, i, j, k, l] = *header;
    Ok((u32::from_ne_bytes([i, j, k, l]), prefix_len, attributes))
}

fn ip(address: Attribute<'_>) -> Result<IpAddr, NetlinkError> {
    Ok(match address.value.len() {
        16 => address.fixed::<16>()?.into(),
        _ => address.fixed::<4>()?.into(),
    })
}

/// The setting by which the next IPv4 address of a network takes the place of one that is removed.
/// The crate's encoder knows only the format in which the kernel reports these settings.
fn promote_secondaries(index: u32) -> RouteNetlinkMessage {
    let mut family = Vec::new();
    put_nested(&mut family, FAMILY_INET, |out| {
        put_nested(out, INET_SETTINGS, |out| put(out, PROMOTE_SECONDARIES, &1u32.to_ne_bytes()));
    });
    let all = LinkAttribute::Other(DefaultNla::new(LINK_FAMILIES | NLA_F_NESTED, family));
    let link = LinkUnspec::new_with_index(index).append_extra_attribute(all).build();
    RouteNetlinkMessage::SetLink(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::put;

    fn with_message<T>(
        prefix_len: u8,
        attributes: &[(u16, &[u8])],
        read: impl FnOnce(&Message<'_>) -> T,
    ) -> T {
        let mut payload = vec![2, prefix_len, 0, 0];
        payload.extend(7u32.to_ne_bytes());
        attributes.iter().for_each(|(kind, value)| put(&mut payload, *kind, value));
        read(&Message { kind: 20, flags: 0, sequence: 1, port: 0, payload: &payload })
    }

    #[test]
    fn address_of_another_link_costs_at_most_its_own_network() {
        let (local, peer) = ((ADDRESS_LOCAL, &[10, 9, 9, 9][..]), &[10, 8, 8, 8][..]);
        let of = |prefix_len, attributes: &[(u16, &[u8])]| {
            let network = with_message(prefix_len, attributes, network)?;
            Some((network.0.to_string(), network.1))
        };
        let network = |text: &str| Some((text.to_owned(), 7));
        assert_eq!(of(24, &[(ADDRESS_ADDRESS, peer), local]), network("10.8.8.0/24"));
        // `ip address add 10.9.9.9 peer 0.0.0.0/24`
        assert_eq!(of(24, &[local]), network("10.9.9.9/32"));
        assert_eq!(of(24, &[]), None);
        assert_eq!(of(33, &[(ADDRESS_ADDRESS, peer), local]), None);
        assert_eq!(of(24, &[(ADDRESS_ADDRESS, &[10, 8])]), None);
        assert!(with_message(24, &[], |message| read(message, 8)).is_ok_and(|it| it.is_none()));
        assert!(with_message(24, &[], |message| read(message, 7)).is_err(), "ours is read whole");
    }
}
