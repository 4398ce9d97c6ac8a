//! Connection tracking: cuts the flows of an address that changes hands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
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
/// How many flows are tracked; there as soon as some may be.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Deletes the entries of every flow that an address of these prefixes opened or answers, and returns how
/// many there were. The firewall does not need this to revoke; a new holder of a tunnel address
/// needs it, so as not to inherit the old one's flows.
///
/// # Errors
/// When the table cannot be read, which takes the module `nf_conntrack_netlink`, or an entry is still
/// there. A host without connection tracking has no flows: no error.
pub(super) fn cut_flows(prefixes: &BTreeSet<IpNet>) -> Result<Cut, NetlinkError> {
    let holders = Holders::of(prefixes);
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut cut = Cut::default();
    for (family, v6) in [(NetfilterProtoFamily::IPv4, false), (NetfilterProtoFamily::IPv6, true)] {
        let lengths = if v6 { &holders.lengths6 } else { &holders.lengths4 };
        if !lengths.is_empty() {
            cut_family(&mut channel, family, &holders, &mut cut)?;
        }
    }
    Ok(cut)
}

/// Whether the kernel lists tracked flows, so that they can be cut.
///
/// # Errors
/// When it cannot be asked, as without `CAP_NET_ADMIN`.
pub fn lists_flows() -> Result<bool, NetlinkError> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    let get = NetfilterMessage::new(header, ConntrackMessage::Get(vec![]));
    let first = Channel::open(NETLINK_NETFILTER)?.first_of_dump(get, |(), _, _| Ok(()));
    match first {
        Err(error) if error.refusal().is_some_and(is_unheard_of) => Ok(false),
        first => first.map(|()| true),
    }
}

/// What became of the flows that were found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub flows: usize,
    /// So many are in somebody's flowtable, which takes their packets past every rule and keeps
    /// their entries. Without a peer to go to, they end by themselves.
    pub offloaded: usize,
}

impl Cut {
    /// Counts a flow by the kernel's answer to its deletion.
    fn count(&mut self, verdict: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
        match verdict.as_ref().map_err(NetlinkError::refusal) {
            Ok(()) => self.flows += 1,
            // It ended in between: it is gone, but not by us.
            Err(Some(Errno::ENOENT)) => {}
            Err(Some(Errno::EBUSY)) => self.offloaded += 1,
            Err(_) => return verdict,
        }
        Ok(())
    }
}

/// The prefixes and the lengths they have, which are few: each entry of a full table is looked up
/// once for each length.
struct Holders<'a> {
    prefixes: &'a BTreeSet<IpNet>,
    lengths4: BTreeSet<u8>,
    lengths6: BTreeSet<u8>,
}

impl<'a> Holders<'a> {
    fn of(prefixes: &'a BTreeSet<IpNet>) -> Self {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
            prefixes.iter().partition(|prefix| prefix.addr().is_ipv4());
        let lengths = |prefixes: &[IpNet]| prefixes.iter().map(IpNet::prefix_len).collect();
        Self { prefixes, lengths4: lengths(&v4), lengths6: lengths(&v6) }
    }

    fn contain(&self, address: IpAddr) -> bool {
        let lengths = if address.is_ipv4() { &self.lengths4 } else { &self.lengths6 };
        lengths.iter().any(|len| {
            IpNet::new(address, *len).is_ok_and(|net| self.prefixes.contains(&net.trunc()))
        })
    }
}

fn cut_family(
    channel: &mut Channel,
    family: NetfilterProtoFamily,
    holders: &Holders<'_>,
    cut: &mut Cut,
) -> Result<(), NetlinkError> {
    let get = || {
        let header = NetfilterHeader::new(family, 0, 0);
        NetfilterMessage::new(header, ConntrackMessage::Get(vec![]))
    };
    let dumped = channel.dump(get, |flows: &mut Vec<_>, _, payload| {
        if concerns(payload, holders)? {
            flows.push(deletion(family, payload)?);
        }
        Ok(())
    });
    let flows = match dumped {
        Err(error)
            if error.refusal().is_some_and(is_unheard_of) && !Path::new(TRACKED).exists() =>
        {
            return Ok(());
        }
        dumped => dumped?,
    };
    let verdicts = channel.transact(flows.into_iter().map(Request::new))?;
    verdicts.into_iter().try_for_each(|verdict| cut.count(verdict))
}

/// Nobody in the kernel answers for tracked flows: the module is not there that lists them, perhaps
/// because there is none to list.
pub(super) const fn is_unheard_of(refusal: Errno) -> bool {
    matches!(refusal, Errno::EINVAL | Errno::EOPNOTSUPP)
}

/// Whether one of the addresses is the source of the first packet, or of the answer to it.
fn concerns(payload: &[u8], holders: &Holders<'_>) -> Result<bool, NetlinkError> {
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

/// What deletes exactly this flow: its full tuple and its zone, as they came. Deleting by a filter
/// is refused by kernels that are still in use.
fn deletion(
    family: NetfilterProtoFamily,
    payload: &[u8],
) -> Result<NetfilterMessage, NetlinkError> {
    let mut identity = Vec::new();
    for attribute in attributes(payload.get(NETFILTER_HEADER_BYTES..).unwrap_or_default()) {
        let (kind, value) = attribute?;
        let flags = match kind {
            CTA_TUPLE_ORIG => NLA_F_NESTED,
            CTA_ZONE => 0,
            _ => continue,
        };
        let whole = DefaultNla::new(kind | flags, value.to_vec());
        identity.push(ConntrackAttribute::Other(whole));
    }
    let header = NetfilterHeader::new(family, 0, 0);
    Ok(NetfilterMessage::new(header, ConntrackMessage::Delete(identity)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_prefixes_of_every_length() {
        let texts = ["10.1.0.0/16", "10.2.3.4/32", "fd00:1::/32", "fd00:2::2/128"];
        let prefixes = texts.iter().map(|text| text.parse().unwrap()).collect();
        let holders = Holders::of(&prefixes);
        let contain = |text: &str| holders.contain(text.parse().unwrap());
        assert!(
            ["10.1.255.1", "10.2.3.4", "fd00:1:ffff::1", "fd00:2::2"].map(contain) == [true; 4]
        );
        assert!(["10.2.3.5", "11.1.0.1", "fd00:2::3", "::10.1.0.1"].map(contain) == [false; 4]);
    }

    #[test]
    fn a_flow_that_is_still_there_is_an_error_unless_it_ends_with_its_peer() {
        let refused = |errno| Err(NetlinkError::Refused { errno, message: String::new() });
        let mut cut = Cut::default();
        assert_eq!(cut.count(Ok(())), Ok(()));
        assert_eq!(cut.count(refused(Errno::ENOENT)), Ok(()), "it ended in between");
        assert_eq!(cut.count(refused(Errno::EBUSY)), Ok(()));
        assert_eq!(cut.count(refused(Errno::EPERM)), refused(Errno::EPERM));
        assert_eq!(cut, Cut { flows: 1, offloaded: 1 });
    }
}
