//! Connection tracking: cuts the flows of an address that gets another holder.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::netlink::{
    Attribute, Channel, Encoded, Message, NLA_F_NESTED, NetlinkError, Request, put, put_nested,
};
use crate::plan::CutArea;

// include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const FILTER_BY_SOURCE: u32 = 1;
/// `struct nfgenmsg` of each family.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const IPV6: [u8; 4] = [10, 0, 0, 0];
/// How many flows are tracked. The file exists as soon as any flow can be tracked.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The kernel walks through its whole table for every question, two for an address, and copies only what
/// was asked for. A copy of all costs three to five times as much as both walks, from 50,000 flows to
/// 500,000; with few flows the walk itself costs as much as the copy.
const MOST_ADDRESSES: usize = 3;
const LEAST_FLOWS: usize = 16_384;
/// How often a flow in a flowtable is ended: the kernel may give it more time just then.
const ENDING_TRIES: u32 = 3;

/// Deletes tracked flows, and remembers how the kernel lets them be found.
#[derive(Debug, Default)]
pub(super) struct Flows {
    filter4: Filter,
    filter6: Filter,
}

/// Whether the kernel lists the flows of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Filter {
    /// There was no flow to try it with.
    #[default]
    Untested,
    /// It was seen to find a flow, and no other.
    Works,
    /// Kernels before 5.8 list all flows instead, and some later ones all IPv6 flows but those that were
    /// asked for.
    Fails,
}

impl Flows {
    /// Deletes the entries of every flow that an address of this area opened or answers. The
    /// firewall does not need this to revoke access; it keeps the next holder of a tunnel address
    /// from inheriting the flows of the previous one.
    ///
    /// # Errors
    /// The table cannot be read, which takes the module `nf_conntrack_netlink`, or an entry could not
    /// be deleted. A host without connection tracking has no flows: no error.
    pub fn cut(&mut self, area: &CutArea<'_>) -> Result<Cut, NetlinkError> {
        let (v4, v6): (BTreeSet<IpNet>, BTreeSet<IpNet>) =
            area.prefixes().iter().partition(|prefix| prefix.addr().is_ipv4());
        let families = [(IPV4, &v4, &mut self.filter4), (IPV6, &v6, &mut self.filter6)].into_iter();
        let mut channel = Channel::open(NETLINK_NETFILTER)?;
        let mut cut = Cut::default();
        for (family, prefixes, filter) in families.filter(|(_, it, _)| !it.is_empty()) {
            let found = find(&mut channel, family, (prefixes, area), filter)?;
            cut.listed += found.listed;
            let mut held = cut.delete(&mut channel, found.deletions.into_iter().collect())?;
            for _ in 0..ENDING_TRIES {
                held = cut.end(&mut channel, held)?;
            }
            cut.offloaded += held.len();
        }
        Ok(cut)
    }
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

/// The result of cutting flows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub flows: usize,
    /// How many are left in a flowtable that another program made, which takes their packets past every
    /// rule. Without a peer to reach, they end by themselves.
    pub offloaded: usize,
    /// How many the kernel listed for them to be found.
    pub listed: usize,
}

impl Cut {
    /// Deletes flows, and returns the deletions of those that a flowtable holds.
    fn delete(
        &mut self,
        channel: &mut Channel,
        deletions: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let requests = deletions.iter().map(|body| Encoded { kind: CT_DELETE, body });
        let acks = channel.transact(requests.map(Request::new))?;
        let mut held = Vec::new();
        for (deletion, ack) in deletions.into_iter().zip(acks) {
            held.extend(self.count(ack)?.then_some(deletion));
        }
        Ok(held)
    }

    /// Ends flows that a flowtable holds, and returns the deletions of those that it still holds. The kernel
    /// refuses to delete them, and deletes those whose time is over when it looks them up. From then on
    /// the flowtable takes no packet of them (`flow_offload_lookup` in nf_flow_table_core.c).
    fn end(
        &mut self,
        channel: &mut Channel,
        held: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let mut expiries = held.clone();
        expiries.iter_mut().for_each(|expiry| put(expiry, CTA_TIMEOUT, &0u32.to_be_bytes()));
        let requests = expiries.iter().map(|body| Encoded { kind: CT_NEW, body });
        // What this does not end is still held, or gone already.
        channel.transact(requests.map(Request::new))?;
        let ended = self.flows + held.len();
        let left = self.delete(channel, held)?;
        self.flows = ended - left.len();
        Ok(left)
    }

    /// Counts a flow by the ack of its deletion, and returns whether a flowtable holds it.
    fn count(&mut self, ack: Result<(), NetlinkError>) -> Result<bool, NetlinkError> {
        match ack.as_ref().map_err(NetlinkError::refusal) {
            Ok(()) => self.flows += 1,
            // It ended by itself since it was listed.
            Err(Some(Errno::ENOENT)) => {}
            Err(Some(Errno::EBUSY)) => return Ok(true),
            Err(_) => return ack.map(|()| false),
        }
        Ok(false)
    }
}

/// Flows that the kernel listed.
#[derive(Default)]
struct Found {
    /// The messages that delete the flows of the prefixes.
    deletions: BTreeSet<Vec<u8>>,
    listed: usize,
    /// How many of them concern none.
    others: usize,
    /// The address that opened the first.
    sample: Option<IpAddr>,
}

impl Found {
    fn take_in(&mut self, message: &Message<'_>, area: &CutArea<'_>) -> Result<(), NetlinkError> {
        match deletion(message, area)? {
            Some(deletion) => drop(self.deletions.insert(deletion)),
            None => self.others += 1,
        }
        self.listed += 1;
        if self.sample.is_none() {
            let (_, attributes) = message.split::<4>("IPCTNL_MSG_CT_NEW")?;
            self.sample = Some(source(&attributes.require(CTA_TUPLE_ORIG)?)?);
        }
        Ok(())
    }
}

/// What the kernel answers when it is asked for the flows of each address.
enum Answer {
    Flows(Found),
    /// It lists others, too.
    Others,
    Refused(Errno),
}

impl Answer {
    /// Whether it will answer so again, as it lists all flows when it is asked for them.
    const fn is_of_this_kernel(&self) -> bool {
        match self {
            Self::Flows(_) => false,
            Self::Others => true,
            // It does not know the question. What it lacks otherwise, it may have the next time.
            Self::Refused(errno) => is_unheard_of(*errno),
        }
    }
}

/// Finds the flows of an area's `prefixes` of one family.
fn find(
    channel: &mut Channel,
    family: [u8; 4],
    (prefixes, area): (&BTreeSet<IpNet>, &CutArea<'_>),
    filter: &mut Filter,
) -> Result<Found, NetlinkError> {
    let mut fails = false;
    if *filter != Filter::Fails && asks_for_each(prefixes, tracked()) {
        match find_of_each(channel, family, prefixes)? {
            // A kernel that does not filter would have listed others. But some list all flows of IPv6
            // except those that were asked for, and there may be no others.
            Answer::Flows(found) if *filter == Filter::Works || family == IPV4 => {
                if found.listed > 0 {
                    *filter = Filter::Works;
                }
                return Ok(found);
            }
            answer => fails = answer.is_of_this_kernel(),
        }
    }
    let found = match list(channel, &family, area) {
        Err(error)
            if error.refusal().is_some_and(is_unheard_of) && !Path::new(TRACKED).exists() =>
        {
            return Ok(Found::default());
        }
        listed => listed?,
    };
    if fails {
        *filter = Filter::Fails;
    }
    if let (Filter::Untested, Some(sample)) = (*filter, found.sample) {
        *filter = match find_of_each(channel, family, &[IpNet::from(sample)].into())? {
            Answer::Flows(found) if found.listed > 0 => Filter::Works,
            answer if answer.is_of_this_kernel() => Filter::Fails,
            // The flow has ended, or the kernel could not answer now.
            _ => Filter::Untested,
        };
    }
    Ok(found)
}

/// Asks for the flows that each address opened, and for those that it answers.
fn find_of_each(
    channel: &mut Channel,
    family: [u8; 4],
    addresses: &BTreeSet<IpNet>,
) -> Result<Answer, NetlinkError> {
    let area = CutArea::whole(addresses);
    let mut found = Found::default();
    for address in addresses {
        for tuple in [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY] {
            let question = question(family, address.addr(), tuple);
            let listed = match list(channel, &question, &area) {
                Ok(listed) if listed.others > 0 => return Ok(Answer::Others),
                Ok(listed) => listed,
                Err(error) => return error.refusal().map(Answer::Refused).ok_or(error),
            };
            found.listed += listed.listed;
            found.deletions.extend(listed.deletions);
        }
    }
    Ok(Answer::Flows(found))
}

fn list(channel: &mut Channel, body: &[u8], area: &CutArea<'_>) -> Result<Found, NetlinkError> {
    let get = Encoded { kind: CT_GET, body };
    channel.dump(&get, |found: &mut Found, message| found.take_in(message, area))
}

/// Asks for the flows whose packets of one direction come from this address.
fn question(family: [u8; 4], address: IpAddr, tuple: u16) -> Vec<u8> {
    let mut body = family.to_vec();
    put_nested(&mut body, tuple, |out| {
        put_nested(out, CTA_TUPLE_IP, |out| match address {
            IpAddr::V4(address) => put(out, CTA_IP_V4_SRC, &address.octets()),
            IpAddr::V6(address) => put(out, CTA_IP_V6_SRC, &address.octets()),
        });
    });
    put_nested(&mut body, CTA_FILTER, |out| {
        for (kind, of) in
            [(FILTER_ORIG_FLAGS, CTA_TUPLE_ORIG), (FILTER_REPLY_FLAGS, CTA_TUPLE_REPLY)]
        {
            let flags = if of == tuple { FILTER_BY_SOURCE } else { 0 };
            put(out, kind, &flags.to_ne_bytes());
        }
    });
    body
}

/// Whether to ask for each address's flows rather than for all.
fn asks_for_each(prefixes: &BTreeSet<IpNet>, tracked: usize) -> bool {
    // The kernel compares whole addresses.
    let are_hosts = prefixes.iter().all(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
    are_hosts && prefixes.len() <= MOST_ADDRESSES && tracked >= LEAST_FLOWS
}

/// How many flows are tracked in this network namespace.
fn tracked() -> usize {
    let count = std::fs::read_to_string(TRACKED).ok();
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// Nothing in the kernel answers for tracked flows: the module that lists them is not loaded,
/// perhaps because no flow is tracked.
pub(super) const fn is_unheard_of(refusal: Errno) -> bool {
    matches!(refusal, Errno::EINVAL | Errno::EOPNOTSUPP)
}

/// Makes the message that deletes exactly this flow, if it concerns one of the addresses: its tuple and its
/// zone, as they came. Kernels that are still in use cannot delete by a filter.
pub(super) fn deletion(
    message: &Message<'_>,
    area: &CutArea<'_>,
) -> Result<Option<Vec<u8>>, NetlinkError> {
    let ([family, ..], attributes) = message.split::<4>("IPCTNL_MSG_CT_NEW")?;
    let (mut concerns, mut deletion) = (false, vec![*family, 0, 0, 0]);
    for attribute in attributes {
        let attribute = attribute?;
        if matches!(attribute.kind, CTA_TUPLE_ORIG | CTA_TUPLE_REPLY) {
            concerns |= area.contains(source(&attribute)?);
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
    use super::*;

    #[test]
    fn a_flow_is_deleted_by_its_tuple_and_zone_and_a_malformed_one_is_an_error() {
        let prefixes = ["10.2.3.4/32".parse().unwrap()].into();
        let area = CutArea::whole(&prefixes);
        let read = |payload: &[u8]| {
            let message = Message { kind: 0x100, flags: 0, sequence: 1, port: 0, payload };
            deletion(&message, &area)
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
    fn a_flow_that_could_not_be_cut_is_an_error_unless_a_flowtable_holds_it() {
        let refused = |errno| Err(NetlinkError::Refused { errno, message: String::new() });
        let mut cut = Cut::default();
        assert_eq!(cut.count(Ok(())), Ok(false));
        assert_eq!(cut.count(refused(Errno::ENOENT)), Ok(false), "it ended in between");
        assert_eq!(cut.count(refused(Errno::EBUSY)), Ok(true), "a flowtable holds it");
        assert!(cut.count(refused(Errno::EPERM)).is_err());
        assert_eq!(cut, Cut { flows: 1, ..Cut::default() });
    }

    #[test]
    fn only_an_answer_that_the_kernel_will_repeat_ends_the_questions() {
        for errno in [Errno::EINVAL, Errno::EOPNOTSUPP] {
            assert!(Answer::Refused(errno).is_of_this_kernel(), "{errno}");
        }
        for errno in [Errno::ENOMEM, Errno::EBUSY, Errno::EINTR, Errno::EPERM] {
            assert!(!Answer::Refused(errno).is_of_this_kernel(), "{errno}");
        }
        assert!(Answer::Others.is_of_this_kernel());
    }

    #[test]
    fn few_addresses_in_a_large_table_are_asked_for_and_all_others_are_looked_for() {
        let hosts = |count| (0..count).map(|n| format!("10.0.0.{n}/32").parse().unwrap()).collect();
        assert!(asks_for_each(&hosts(MOST_ADDRESSES), LEAST_FLOWS));
        assert!(!asks_for_each(&hosts(MOST_ADDRESSES + 1), usize::MAX));
        assert!(!asks_for_each(&hosts(1), LEAST_FLOWS - 1));
        let network = ["10.1.0.0/16".parse().unwrap()].into();
        assert!(!asks_for_each(&network, usize::MAX), "the kernel compares whole addresses");
    }
}
