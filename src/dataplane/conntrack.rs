//! Connection tracking: cuts the flows of an address that gets another holder.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::netlink::{
    Attribute, Channel, Encoded, Message, NLA_F_NESTED, NetlinkError, Request, put,
};

// include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_ZONE: u16 = 18;
/// `struct nfgenmsg` of each family.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const IPV6: [u8; 4] = [10, 0, 0, 0];
/// How many flows are tracked. The file exists as soon as any flow can be tracked.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Deletes the entries of every flow that an address of these prefixes opened or answers. The
/// firewall does not need this to revoke access; it keeps the next holder of a tunnel address from
/// inheriting the flows of the previous one.
///
/// # Errors
/// The table cannot be read, which takes the module `nf_conntrack_netlink`, or an entry could not be
/// deleted. A host without connection tracking has no flows: no error.
pub(super) fn cut_flows(prefixes: &BTreeSet<IpNet>) -> Result<Cut, NetlinkError> {
    let holders = Holders::of(prefixes);
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let mut cut = Cut::default();
    for (family, lengths) in [(IPV4, &holders.lengths4), (IPV6, &holders.lengths6)] {
        if !lengths.is_empty() {
            cut_family(&mut channel, family, &holders, &mut cut)?;
        }
    }
    Ok(cut)
}

/// Whether the kernel lists tracked flows, so that they can be cut.
///
/// # Errors
/// The kernel does not answer, as without `CAP_NET_ADMIN`.
pub fn lists_flows() -> Result<bool, NetlinkError> {
    let get = Encoded { kind: CT_GET, body: &IPV4 };
    let first = Channel::open(NETLINK_NETFILTER)?.first_of_dump(&get, |(), _| Ok(()));
    match first {
        Err(error) if error.refusal().is_some_and(is_unheard_of) => Ok(false),
        first => first.map(|()| true),
    }
}

/// What became of the flows that were found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub flows: usize,
    /// How many are in a flowtable that another program made. It takes their packets past every rule
    /// and keeps their entries. Without a peer to reach, they end by themselves.
    pub offloaded: usize,
}

impl Cut {
    /// Counts a flow by the ack of its deletion.
    fn count(&mut self, ack: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
        match ack.as_ref().map_err(NetlinkError::refusal) {
            Ok(()) => self.flows += 1,
            // It ended by itself since it was listed.
            Err(Some(Errno::ENOENT)) => {}
            Err(Some(Errno::EBUSY)) => self.offloaded += 1,
            Err(_) => return ack,
        }
        Ok(())
    }
}

/// The prefixes, and the few lengths they have: each entry of a full table is looked up once for
/// each length.
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
    family: [u8; 4],
    holders: &Holders<'_>,
    cut: &mut Cut,
) -> Result<(), NetlinkError> {
    let get = Encoded { kind: CT_GET, body: &family };
    let dumped = channel.dump(&get, |deletions: &mut Vec<_>, message| {
        deletions.extend(deletion(family, message, holders)?);
        Ok(())
    });
    let deletions = match dumped {
        Err(error)
            if error.refusal().is_some_and(is_unheard_of) && !Path::new(TRACKED).exists() =>
        {
            return Ok(());
        }
        dumped => dumped?,
    };
    let bodies = deletions.iter().map(|body| Encoded { kind: CT_DELETE, body });
    let acks = channel.transact(bodies.map(Request::new))?;
    acks.into_iter().try_for_each(|ack| cut.count(ack))
}

/// Nothing in the kernel answers for tracked flows: the module that lists them is not loaded,
/// perhaps because no flow is tracked.
pub(super) const fn is_unheard_of(refusal: Errno) -> bool {
    matches!(refusal, Errno::EINVAL | Errno::EOPNOTSUPP)
}

/// What deletes exactly this flow, if it concerns one of the addresses: its tuple and its zone, as
/// they came. Kernels that are still in use cannot delete by a filter.
fn deletion(
    family: [u8; 4],
    message: &Message<'_>,
    holders: &Holders<'_>,
) -> Result<Option<Vec<u8>>, NetlinkError> {
    let (_, attributes) = message.split::<4>("IPCTNL_MSG_CT_NEW")?;
    let (mut concerns, mut deletion) = (false, family.to_vec());
    for attribute in attributes {
        let attribute = attribute?;
        if matches!(attribute.kind, CTA_TUPLE_ORIG | CTA_TUPLE_REPLY) {
            concerns |= holders.contain(source(&attribute)?);
        }
        match attribute.kind {
            CTA_TUPLE_ORIG => put(&mut deletion, CTA_TUPLE_ORIG | NLA_F_NESTED, attribute.value),
            CTA_ZONE => put(&mut deletion, CTA_ZONE, attribute.value),
            _ => {}
        }
    }
    attributes.require(CTA_TUPLE_ORIG)?;
    Ok(concerns.then_some(deletion))
}

/// The source of the packets of one direction.
fn source(tuple: &Attribute<'_>) -> Result<IpAddr, NetlinkError> {
    let addresses = tuple.nested().require(CTA_TUPLE_IP)?.nested();
    match addresses.find(CTA_IP_V4_SRC)? {
        Some(address) => Ok(address.fixed::<4>()?.into()),
        None => Ok(addresses.require(CTA_IP_V6_SRC)?.fixed::<16>()?.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::netlink::put_nested;
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
    fn a_flow_is_deleted_by_its_tuple_and_zone_and_a_malformed_one_is_an_error() {
        let prefixes = ["10.2.3.4/32".parse().unwrap()].into();
        let holders = Holders::of(&prefixes);
        let read = |payload: &[u8]| {
            let message = Message { kind: 0x100, flags: 0, sequence: 1, port: 0, payload };
            deletion(IPV4, &message, &holders)
        };
        let tuple = |out: &mut Vec<u8>, kind, source: &[u8]| {
            put_nested(out, kind, |out| {
                put_nested(out, CTA_TUPLE_IP, |out| put(out, CTA_IP_V4_SRC, source));
            });
        };
        let mut wanted = IPV4.to_vec();
        tuple(&mut wanted, CTA_TUPLE_ORIG, &[192, 0, 2, 1]);
        let opened = wanted.clone();
        assert_eq!(read(&opened), Ok(None), "neither side is concerned");
        put(&mut wanted, CTA_ZONE, &[0, 7]);
        let mut flow = opened.clone();
        tuple(&mut flow, CTA_TUPLE_REPLY, &[10, 2, 3, 4]);
        put(&mut flow, CTA_ZONE, &[0, 7]);
        assert_eq!(read(&flow), Ok(Some(wanted)));

        let error = |payload: &[u8]| read(payload).unwrap_err().to_string();
        let named = |text: &str| format!("the kernel sent a malformed IPCTNL_MSG_CT_NEW{text}");
        let mut short = IPV4.to_vec();
        tuple(&mut short, CTA_TUPLE_ORIG, &[10, 2, 3]);
        assert_eq!(error(&short), named(", attribute 1/1/1: its value has 3 bytes instead of 4"));
        assert_eq!(error(&IPV4), named(": it lacks attribute 1"));
        assert_eq!(error(&[2]), named(": 1 bytes are left, too few for a header"));
    }

    #[test]
    fn a_flow_that_could_not_be_cut_is_an_error_unless_it_ends_with_its_peer() {
        let refused = |errno| Err(NetlinkError::Refused { errno, message: String::new() });
        let mut cut = Cut::default();
        assert_eq!(cut.count(Ok(())), Ok(()));
        assert_eq!(cut.count(refused(Errno::ENOENT)), Ok(()), "it ended in between");
        assert_eq!(cut.count(refused(Errno::EBUSY)), Ok(()));
        assert_eq!(cut.count(refused(Errno::EPERM)), refused(Errno::EPERM));
        assert_eq!(cut, Cut { flows: 1, offloaded: 1 });
    }
}
