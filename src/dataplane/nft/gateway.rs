//! The rules of flows between peers and the gateway itself.
//!
//! A flow that a peer opened is judged in both directions as a forwarded one is. Who opened a flow
//! cannot be seen from its direction alone: once the kernel has forgotten a flow, the next packet of
//! the gateway's service opens it anew, the other way round. So a flow counts as the gateway's own
//! only if it has our label, and only a packet that no service sends as an answer gives it.

use std::collections::BTreeSet;

use super::expr::{
    Base, Cmp, Ct, Direction, Expr, Rule, Verdict, cmp, ct, ct_set, load, mask, payload, verdict,
};
use super::fib::{Asked, BROADCAST, LOCAL, MULTICAST, is_kind};
use super::flows::limited_among;
use super::gate;
use super::name::{Family, ICMP_OUT, INBOUND, JUDGE, OPENED, OPENINGS, PASSED};
use super::packet::{drop_in_vrf, iif, in_no_vrf, oif};
use super::rules::{
    ACK, FIN, RST, SYN, UDP, direction, drop_invalid, goto, icmp_type, l4proto, no_profile,
    only_to_places, tcp_flags,
};
use super::sys::data;
use crate::model::{FirewallBase, Openings};

/// The connection label of flows that the gateway opened. Names in `connlabel.conf` take the lowest
/// bits, OVN 0, 1 and all from 32 on; firewalld none.
const OPENED_HERE: u128 = 1 << 30;
const NTP: u16 = 123;

pub fn input(base: &FirewallBase) -> Vec<Rule> {
    let elsewhere = |asked| [iif(Cmp::Neq, base), asked, accept()].concat();
    let mut rules = vec![elsewhere(in_no_vrf()), drop_in_vrf(base), elsewhere(vec![])];
    rules.extend(base.gate.map(gate::clear_mark));
    // A ping is always answered, but each number of one opens a flow.
    rules.extend(Family::BOTH.into_iter().flat_map(|family| limited_among(base, echo(family))));
    rules.extend(Family::BOTH.map(ping));
    rules.extend([drop_invalid(), [direction(Direction::Original), goto(JUDGE)].concat()]);
    if base.gateway_opens.is_some() {
        rules.push([opened_here(), goto(OPENED)].concat());
    }
    rules.push(goto(INBOUND));
    rules
}

pub fn output(base: &FirewallBase) -> Vec<Rule> {
    let mut rules = vec![[oif(Cmp::Neq, base), accept()].concat()];
    let may_open = base.gateway_opens.is_some();
    if may_open {
        rules.push([opened_here(), goto(OPENED)].concat());
    }
    for family in Family::BOTH {
        rules.push([l4proto(family.icmp()), jump(ICMP_OUT)].concat());
    }
    rules.push([direction(Direction::Reply), goto(JUDGE)].concat());
    rules.push(drop_invalid());
    for kind in [MULTICAST, BROADCAST] {
        let to_many = [is_kind(Asked::Destination, kind), vec![verdict(&Verdict::Drop)]];
        rules.push(to_many.concat());
    }
    if may_open {
        rules.push(jump(OPENINGS));
        rules.push([opened_here(), goto(OPENED)].concat());
    }
    rules.push(goto(INBOUND));
    rules
}

/// Flows with our label pass, in both directions, if their destination has a place.
pub fn opened() -> Vec<Rule> {
    let mut rules = only_to_places();
    rules.push([no_profile(), goto(PASSED)].concat());
    rules
}

/// ICMP that the kernel makes: errors, whose flow it may not know, and answers to pings of the
/// interface's own addresses.
pub fn icmp_out() -> Vec<Rule> {
    const UNREACHABLE: u8 = 3;
    const REDIRECT: u8 = 5;
    const TIME_EXCEEDED: u8 = 11;
    const PARAMETER_PROBLEM: u8 = 12;
    const LAST_ERROR_OF_ICMPV6: u8 = 127;
    let mut rules: Vec<Rule> = [UNREACHABLE, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM]
        .map(|kind| [icmp_type(Family::V4, Cmp::Eq, kind), accept()].concat())
        .into();
    rules.push([icmp_type(Family::V6, Cmp::Lte, LAST_ERROR_OF_ICMPV6), accept()].concat());
    for (family, echo_reply) in [(Family::V4, 0), (Family::V6, 129)] {
        let answer = [
            icmp_type(family, Cmp::Eq, echo_reply),
            direction(Direction::Reply),
            is_kind(Asked::SourceHere, LOCAL),
            accept(),
        ];
        rules.push(answer.concat());
    }
    rules
}

/// The packets that give our label.
pub fn openings(base: &FirewallBase) -> Vec<Rule> {
    let Some(opens) = &base.gateway_opens else { return vec![] };
    let mut rules = vec![
        tcp_flags(FIN | SYN | RST | ACK, Cmp::Eq, SYN),
        icmp_type(Family::V4, Cmp::Eq, 8),
        icmp_type(Family::V6, Cmp::Eq, 128),
        udp_ports(4, [cmp(Cmp::Eq, &[NTP.to_be_bytes(), NTP.to_be_bytes()].concat())]),
    ];
    rules.extend(opens.udp_ports.as_slice().iter().map(|range| udp_from(*range)));
    rules.extend(opens.protocols.iter().map(|protocol| l4proto(*protocol)));
    rules.into_iter().map(|rule| [rule, labelling()].concat()).collect()
}

/// Gives a flow our label.
pub fn labelling() -> Rule {
    vec![load(&OPENED_HERE.to_ne_bytes()), ct_set(Ct::Labels)]
}

/// What the rules of the chain `openings` let the gateway open; to be proved by comparing.
pub fn openings_in(found: &[Rule]) -> Option<Openings> {
    let value = |expr: &Expr| expr.find(&[3, data::VALUE]).map(<[u8]>::to_vec);
    let port = |expr: &Expr| Some(u16::from_be_bytes(value(expr)?.try_into().ok()?));
    let (mut udp_ports, mut protocols) = (Vec::new(), BTreeSet::new());
    for rule in found {
        let names: Vec<&str> = rule.iter().map(Expr::name).collect();
        match names[..] {
            ["meta", "cmp", "immediate", "ct"] => {
                protocols.extend(value(&rule[1]).and_then(|value| value.first().copied()));
            }
            ["meta", "cmp", "payload", "cmp", "immediate", "ct"] => {
                udp_ports.extend(port(&rule[3]).map(|port| (port, port)));
            }
            ["meta", "cmp", "payload", "cmp", "cmp", "immediate", "ct"] => {
                udp_ports.extend(port(&rule[3]).zip(port(&rule[4])));
            }
            _ => {}
        }
    }
    let udp_ports = udp_ports.into_iter().collect();
    (!found.is_empty()).then_some(Openings { udp_ports, protocols })
}

/// The rules of version 0.1.0, which had no chain `output`: they judge every packet that comes in.
pub fn former_input(base: &FirewallBase) -> Vec<Rule> {
    let former_ping = |family| {
        let [nfproto, of_family, l4, icmp, kind, echo, fib, local, accept] =
            <[Expr; 9]>::try_from(ping(family)).ok()?;
        Some(vec![fib, local, nfproto, of_family, l4, icmp, kind, echo, accept])
    };
    let mut rules = vec![[iif(Cmp::Neq, base), accept()].concat()];
    rules.extend(Family::BOTH.into_iter().filter_map(former_ping));
    rules.push(drop_invalid());
    rules.push([direction(Direction::Reply), accept()].concat());
    rules.push(goto(JUDGE));
    rules
}

fn ping(family: Family) -> Rule {
    [echo(family), accept()].concat()
}

/// An echo request to an address that the interface itself has.
fn echo(family: Family) -> Rule {
    let echo_request = match family {
        Family::V4 => 8,
        Family::V6 => 128,
    };
    [icmp_type(family, Cmp::Eq, echo_request), is_kind(Asked::DestinationHere, LOCAL)].concat()
}

fn opened_here() -> Rule {
    vec![ct(Ct::Labels), mask(&OPENED_HERE.to_ne_bytes()), cmp(Cmp::Neq, &0u128.to_ne_bytes())]
}

fn udp_from((first, last): (u16, u16)) -> Rule {
    let [first, last] = [first, last].map(u16::to_be_bytes);
    if first == last {
        udp_ports(2, [cmp(Cmp::Eq, &first)])
    } else {
        udp_ports(2, [cmp(Cmp::Gte, &first), cmp(Cmp::Lte, &last)])
    }
}

/// Compares so many bytes of the ports, the source's first.
fn udp_ports<const N: usize>(bytes: u32, compare: [Expr; N]) -> Rule {
    [l4proto(UDP), vec![payload(Base::Transport, 0, bytes)], compare.into()].concat()
}

fn accept() -> Rule {
    vec![verdict(&Verdict::Accept)]
}

fn jump(chain: &str) -> Rule {
    vec![verdict(&Verdict::Jump(chain))]
}
