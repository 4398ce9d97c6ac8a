//! Connection tracking: cuts the flows of an address that changes hands.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::netlink::{Channel, NetlinkError, Request, attributes, fixed};

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_ZONE: u16 = 18;
const NETFILTER_HEADER_BYTES: usize = 4;

/// Deletes the entries of every flow that an address of these prefixes opened or answers, and returns how
/// many there were. The firewall does not need this to revoke; a new holder of a tunnel address
/// needs it, so as not to inherit the old one's flows.
///
/// # Errors
/// When the table cannot be read. A host without connection tracking has no flows: no error.
pub(super) fn cut_flows(prefixes: &BTreeSet<IpNet>) -> Result<usize, NetlinkError> {
    let holders = Holders::of(prefixes);
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut cut = 0;
    for (family, v6) in [(NetfilterProtoFamily::IPv4, false), (NetfilterProtoFamily::IPv6, true)] {
        if prefixes.iter().any(|prefix| prefix.addr().is_ipv6() == v6) {
            cut += cut_family(&mut channel, family, &holders)?;
        }
    }
    Ok(cut)
}

/// The prefixes, so that a full table is searched by hosts in a set and by networks, which are
/// few, one by one.
struct Holders {
    hosts: BTreeSet<IpAddr>,
    networks: Vec<IpNet>,
}

impl Holders {
    fn of(prefixes: &BTreeSet<IpNet>) -> Self {
        let is_host = |prefix: &&IpNet| prefix.prefix_len() == prefix.max_prefix_len();
        Self {
            hosts: prefixes.iter().filter(is_host).map(IpNet::addr).collect(),
            networks: prefixes.iter().filter(|prefix| !is_host(prefix)).copied().collect(),
        }
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.hosts.contains(&address) || self.networks.iter().any(|net| net.contains(&address))
    }
}

fn cut_family(
    channel: &mut Channel,
    family: NetfilterProtoFamily,
    holders: &Holders,
) -> Result<usize, NetlinkError> {
    let get = || {
        let header = NetfilterHeader::new(family, 0, 0);
        NetfilterMessage::new(header, ConntrackMessage::Get(vec![]))
    };
    let dumped = channel.dump(get, |flows: &mut Vec<_>, kind, payload| {
        if concerns(payload, holders)? {
            flows.push(deletion(family, kind, payload)?);
        }
        Ok(())
    });
    let flows = match dumped {
        // The module is not there: nothing is tracked.
        Err(error) if matches!(error.refusal(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {
            return Ok(0);
        }
        dumped => dumped?,
    };
    let verdicts = channel.transact(flows.into_iter().map(Request::new))?;
    // A flow that ended in between answers ENOENT: it is gone, but not by us.
    Ok(verdicts.iter().filter(|verdict| verdict.is_ok()).count())
}

/// Whether one of the addresses is the source of the first packet, or of the answer to it.
fn concerns(payload: &[u8], holders: &Holders) -> Result<bool, NetlinkError> {
    for attribute in attributes(payload.get(NETFILTER_HEADER_BYTES..).unwrap_or_default()) {
        let (CTA_TUPLE_ORIG | CTA_TUPLE_REPLY, tuple) = attribute? else { continue };
        for part in attributes(tuple) {
            let (CTA_TUPLE_IP, ips) = part? else { continue };
            for ip in attributes(ips) {
                let source: IpAddr = match ip? {
                    (CTA_IP_V4_SRC, ip) => fixed::<4>(ip)?.into(),
                    (CTA_IP_V6_SRC, ip) => fixed::<16>(ip)?.into(),
                    _ => continue,
                };
                if holders.contain(source) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// What deletes exactly this flow: its full tuple and its zone. Deleting by a filter is refused by
/// kernels that are still in use.
fn deletion(
    family: NetfilterProtoFamily,
    kind: u16,
    payload: &[u8],
) -> Result<NetfilterMessage, NetlinkError> {
    let malformed = NetlinkError::Malformed("an entry of the connection tracking table");
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    let Ok(message) = NetfilterMessage::deserialize(&header, payload) else {
        return Err(malformed);
    };
    let netlink_packet_netfilter::NetfilterMessageInner::Conntrack(ConntrackMessage::New(all)) =
        message.inner
    else {
        return Err(malformed);
    };
    let identifies = |attribute: &ConntrackAttribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => netlink_packet_core::Nla::kind(other) == CTA_ZONE,
        _ => false,
    };
    let identity = all.into_iter().filter(identifies).collect();
    let header = NetfilterHeader::new(family, 0, 0);
    Ok(NetfilterMessage::new(header, ConntrackMessage::Delete(identity)))
}
