//! Rules of policy routing, and what else the gate depends on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::PROTOCOL;
use super::netlink::{Channel, Encoded, Message, NetlinkError, Request, gone_is_done, put};
use super::networkd;
use crate::model::{HostRouting, IpFamily, RoutingRule, RuleAction, Tag};

// include/uapi/linux/rtnetlink.h, fib_rules.h, netconf.h
const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const GET_RULE: u16 = 34;
const GET_NETCONF: u16 = 82;
const RULE_TO: u16 = 1;
const RULE_IIF: u16 = 3;
const RULE_GOTO: u16 = 4;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_MASK: u16 = 16;
const RULE_PROTOCOL: u16 = 21;
const ACTION_GOTO: u8 = 2;
const ACTION_NOP: u8 = 3;
const ACTION_BLACKHOLE: u8 = 6;
const NETCONF_INDEX: u16 = 1;
const NETCONF_RP_FILTER: u16 = 3;
/// The index of the settings with which later links start.
const NETCONF_DEFAULT: i32 = -2;

pub(super) const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// Reads the routing on which the gate depends, in the network namespace of the calling thread.
///
/// # Errors
/// The kernel does not answer.
pub fn host_routing() -> Result<HostRouting, NetlinkError> {
    read(&mut Channel::open(NETLINK_ROUTE)?)
}

/// Reads all rules, and what decides whether ours disturb anything.
pub(super) fn read(channel: &mut Channel) -> Result<HostRouting, NetlinkError> {
    let mut host = HostRouting::default();
    for family in [IpFamily::V4, IpFamily::V6] {
        match dump(channel, family) {
            Ok(rules) => host.rules.extend(rules),
            // A host without IPv6 has no such rules.
            Err(error) if error.refusal() == Some(Errno::EAFNOSUPPORT) => {}
            Err(error) if error.refusal() == Some(Errno::EOPNOTSUPP) => {
                host.has_no_rules |= family == IpFamily::V4;
            }
            Err(error) => return Err(error),
        }
    }
    let marks_count = std::fs::read_to_string(SRC_VALID_MARK).is_ok_and(|text| text.trim() != "0");
    host.checks_sources = !marks_count && checks_sources(channel)?;
    host.networkd_removes_rules = networkd::removes(Path::new("/"), networkd::FOREIGN_RULES);
    Ok(host)
}

/// Adds rules, those that let pass before those that drop, in one datagram.
pub(super) fn add(
    channel: &mut Channel,
    rules: &BTreeSet<RoutingRule>,
) -> Result<(), NetlinkError> {
    let (drops, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| drops(rule));
    write(channel, NEW_RULE, NLM_F_CREATE | NLM_F_EXCL, others.into_iter().chain(drops))?
        .into_iter()
        .try_for_each(|ack| match ack {
            Err(error) if error.refusal() == Some(Errno::EEXIST) => Ok(()),
            ack => ack,
        })
}

/// Removes rules, those that drop first, in one datagram. What is gone already is no error.
pub(super) fn remove(
    channel: &mut Channel,
    rules: &BTreeSet<RoutingRule>,
) -> Result<(), NetlinkError> {
    let (drops, others): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| drops(rule));
    let acks = write(channel, DEL_RULE, 0, drops.into_iter().chain(others))?;
    acks.into_iter().try_for_each(gone_is_done)
}

fn drops(rule: &RoutingRule) -> bool {
    rule.action == RuleAction::Blackhole
}

fn write<'a>(
    channel: &mut Channel,
    kind: u16,
    flags: u16,
    rules: impl Iterator<Item = &'a RoutingRule>,
) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
    let bodies: Vec<Vec<u8>> = rules.map(encode).collect();
    let requests = bodies.iter().map(|body| Request::with_flags(Encoded { kind, body }, flags));
    channel.transact(requests)
}

fn dump(channel: &mut Channel, family: IpFamily) -> Result<Vec<RoutingRule>, NetlinkError> {
    let body = header(family, 0, 0);
    channel.dump(&Encoded { kind: GET_RULE, body: &body }, |rules: &mut Vec<_>, message| {
        rules.push(decode(message, family)?);
        Ok(())
    })
}

/// `struct fib_rule_hdr`: family, lengths of destination and source, TOS, table, two reserved bytes,
/// action, flags.
fn header(family: IpFamily, to_len: u8, action: u8) -> [u8; 12] {
    let family = match family {
        IpFamily::V4 => nix::libc::AF_INET,
        IpFamily::V6 => nix::libc::AF_INET6,
    };
    [u8::try_from(family).unwrap_or_default(), to_len, 0, 0, 0, 0, 0, action, 0, 0, 0, 0]
}

fn encode(rule: &RoutingRule) -> Vec<u8> {
    let action = match rule.action {
        RuleAction::Blackhole => ACTION_BLACKHOLE,
        RuleAction::Goto(_) => ACTION_GOTO,
        RuleAction::Nop => ACTION_NOP,
        RuleAction::Other(action) => action,
    };
    let mut body = header(rule.family, rule.to.map_or(0, |to| to.prefix_len()), action).to_vec();
    put(&mut body, RULE_PRIORITY, &rule.priority.to_ne_bytes());
    put(&mut body, RULE_PROTOCOL, &[PROTOCOL]);
    if let Some(iif) = &rule.iif {
        put(&mut body, RULE_IIF, format!("{iif}\0").as_bytes());
    }
    match rule.to.map(|to| to.network()) {
        Some(IpAddr::V4(to)) => put(&mut body, RULE_TO, &to.octets()),
        Some(IpAddr::V6(to)) => put(&mut body, RULE_TO, &to.octets()),
        None => {}
    }
    if let Some((value, mask)) = rule.mark {
        put(&mut body, RULE_MARK, &value.to_ne_bytes());
        put(&mut body, RULE_MASK, &mask.to_ne_bytes());
    }
    if let RuleAction::Goto(priority) = rule.action {
        put(&mut body, RULE_GOTO, &priority.to_ne_bytes());
    }
    body
}

pub(super) fn decode(message: &Message<'_>, family: IpFamily) -> Result<RoutingRule, NetlinkError> {
    let (header, attributes) = message.split::<12>("RTM_NEWRULE")?;
    let [_, to_len, _, _, _, _, _, action, ..] = *header;
    let number = |kind| attributes.find(kind)?.map(|found| found.u32()).transpose();
    let protocol = attributes.find(RULE_PROTOCOL)?.map(|found| found.u8()).transpose()?;
    let to = attributes.find(RULE_TO)?;
    let to: Option<IpAddr> = match (family, to) {
        (_, None) => None,
        (IpFamily::V4, Some(to)) => Some(to.fixed::<4>()?.into()),
        (IpFamily::V6, Some(to)) => Some(to.fixed::<16>()?.into()),
    };
    let to = to.map(|to| IpNet::new(to, to_len)).transpose();
    let mask = number(RULE_MASK)?.filter(|mask| *mask != 0);
    let value = number(RULE_MARK)?.unwrap_or_default();
    Ok(RoutingRule {
        family,
        priority: number(RULE_PRIORITY)?.unwrap_or_default(),
        iif: attributes.find(RULE_IIF)?.map(|iif| iif.text_lossy().into()),
        to: to.map_err(|_| attributes.malformed("a prefix"))?,
        mark: mask.map(|mask| (value, mask)),
        action: match action {
            ACTION_BLACKHOLE => RuleAction::Blackhole,
            ACTION_GOTO => RuleAction::Goto(number(RULE_GOTO)?.unwrap_or_default()),
            ACTION_NOP => RuleAction::Nop,
            other => RuleAction::Other(other),
        },
        tag: if protocol == Some(PROTOCOL) { Tag::Ours } else { Tag::Foreign },
    })
}

/// Whether a link's reverse path filter is on.
fn checks_sources(channel: &mut Channel) -> Result<bool, NetlinkError> {
    let body = [header(IpFamily::V4, 0, 0)[0], 0, 0, 0];
    channel.dump(&Encoded { kind: GET_NETCONF, body: &body }, |checks: &mut bool, message| {
        *checks |= filter_of(message)?.is_some_and(|(_, is_on)| is_on);
        Ok(())
    })
}

/// The link that a message about settings is about, and whether its reverse path filter is on; `None`:
/// it says nothing about that.
pub(super) fn filter_of(message: &Message<'_>) -> Result<Option<(i32, bool)>, NetlinkError> {
    let (_, attributes) = message.split::<4>("RTM_NEWNETCONF")?;
    let number = |kind| -> Result<Option<i32>, NetlinkError> {
        Ok(attributes.find(kind)?.map(|found| found.u32()).transpose()?.map(u32::cast_signed))
    };
    let found = number(NETCONF_INDEX)?.zip(number(NETCONF_RP_FILTER)?);
    Ok(found.filter(|(link, _)| *link != NETCONF_DEFAULT).map(|(link, mode)| (link, mode != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::gate;

    fn message(payload: &[u8]) -> Message<'_> {
        Message { kind: NEW_RULE, flags: 0, sequence: 0, port: 0, payload }
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let name = "gatepost0".parse().unwrap();
        for pool in ["10.64.0.0/16", "fd64::/64"] {
            for rule in gate::rules(&name, [pool.parse().unwrap()], Default::default()) {
                let body = encode(&rule);
                assert_eq!(decode(&message(&body), rule.family), Ok(rule.clone()), "{rule}");
            }
        }
    }

    #[test]
    fn malformed_rules_are_errors() {
        let short = decode(&message(&[0; 11]), IpFamily::V4).unwrap_err().to_string();
        assert!(short.contains("malformed RTM_NEWRULE"), "{short}");
        let mut body = header(IpFamily::V4, 33, ACTION_NOP).to_vec();
        put(&mut body, RULE_TO, &[10, 0, 0, 0]);
        let prefix = decode(&message(&body), IpFamily::V4).unwrap_err().to_string();
        assert!(prefix.contains("a prefix"), "{prefix}");
    }
}
