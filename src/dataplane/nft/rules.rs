//! The rules of the fixed chains, which [`table`](super::table) lists, and of the blocks' chains. Those of policies
//! are in `profile.rs`.

use super::deny_log;
use super::expr::{
    Base, Cmp, Ct, Direction, Expr, Meta, Rule, Verdict, cmp, counter, ct, ct_tuple,
    ct_tuple_second, limit, load, lookup, map, mask, mask_second, masquerade, meta, meta_set,
    payload, reject_prohibited, set_mss, verdict, verdict_map,
};
use super::fib::{Asked, LOCAL, is_kind, route_mss};
use super::gate;
use super::name::{Block, CLOSED, DENY, Family, INBOUND, JUDGE, PASSED, SITES, SITES_BY, SITES_TO};
use super::packet::{drop_in_vrf, has_options, has_routing_header, iif, in_no_vrf, oif, source};
use super::set::Set;
use super::sys::data;
use crate::model::{FirewallBase, InterfaceName, Masquerade};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

pub fn forward(base: &FirewallBase) -> Vec<Rule> {
    let mut clamp = tcp_flags(SYN | RST, Cmp::Eq, SYN);
    clamp.extend(route_mss());
    clamp.push(set_mss());
    let opened_outside = [iif(Cmp::Neq, base), direction(Direction::Original), goto(INBOUND)];
    let mut rules = vec![not_ours(base, in_no_vrf()), drop_in_vrf(base), not_ours(base, vec![])];
    rules.extend(base.gate.map(gate::clear_mark));
    rules.extend([drop_own_source(base), drop_invalid(), clamp, opened_outside.concat()]);
    // Not back into the tunnel: such a flow was opened by a peer, and its profile judges.
    rules.push(answers(base, goto(INBOUND)));
    rules.extend([deny_closed(base), goto(JUDGE)]);
    rules
}

/// Packets that neither come by our link nor go to it.
fn not_ours(base: &FirewallBase, asked: Rule) -> Rule {
    [iif(Cmp::Neq, base), oif(Cmp::Neq, base), asked, vec![verdict(&Verdict::Accept)]].concat()
}

/// The rules of version 0.1.0. They let pass what comes by a VRF, what has an address of the gateway's own,
/// what goes to a closed prefix, and all answers of peers.
pub fn former_forward(base: &FirewallBase) -> Vec<Rule> {
    let mut rules = forward(base);
    let new =
        [not_ours(base, in_no_vrf()), drop_in_vrf(base), drop_own_source(base), deny_closed(base)];
    rules.retain(|rule| !new.contains(rule));
    let judged = answers(base, goto(INBOUND));
    if !base.allow_inbound {
        rules.retain(|rule| *rule != judged);
    }
    for rule in rules.iter_mut().filter(|rule| **rule == judged) {
        *rule = answers(base, vec![verdict(&Verdict::Accept)]);
    }
    rules
}

/// A packet that a peer sends to a closed prefix.
fn deny_closed(base: &FirewallBase) -> Rule {
    let closed = vec![verdict(&Verdict::Jump(CLOSED))];
    [oif(Cmp::Eq, base), direction(Direction::Original), closed].concat()
}

/// Denies what goes to a prefix whose place is closed while it changes hands: until its next holder has
/// it, the peer around it gets its packets.
pub fn closed() -> Vec<Rule> {
    const NO_PLACE: u32 = 0x8000_0000;
    let mut rules = vec![vec![load(&NO_PLACE.to_ne_bytes()), meta_set(Meta::Priority)]];
    rules.extend(find_profile(Whose::Destination));
    rules.push(deny_without_profile());
    rules
}

/// Deny flows to an address that has no place: it belongs to no peer, it changes hands, or it cannot be
/// taken from a revoked peer.
pub fn only_to_places() -> Vec<Rule> {
    let mut rules = vec![no_profile()];
    rules.extend(find_profile(Whose::Destination));
    rules.push(deny_without_profile());
    rules
}

fn deny_without_profile() -> Rule {
    [vec![meta(Meta::Priority), cmp(Cmp::Eq, &0u32.to_ne_bytes())], denied()].concat()
}

/// Answers that peers send to hosts outside the tunnel.
fn answers(base: &FirewallBase, then: Rule) -> Rule {
    [oif(Cmp::Neq, base), direction(Direction::Reply), then].concat()
}

/// What another link brings from an address of the gateway's own is forged. In IPv4 the kernel drops it.
fn drop_own_source(base: &FirewallBase) -> Rule {
    let dropped = vec![counter(), verdict(&Verdict::Drop)];
    [iif(Cmp::Neq, base), is_kind(Asked::Source, LOCAL), dropped].concat()
}

/// Flows toward a peer that no peer opened, in both directions. If they are allowed, then to every address
/// that has a place.
pub fn inbound(base: &FirewallBase) -> Vec<Rule> {
    if !base.allow_inbound {
        return vec![denied()];
    }
    let mut rules = vec![resumed()];
    rules.extend(only_to_places());
    rules.push([no_profile(), vec![counter()], goto(PASSED)].concat());
    rules
}

/// The rules of version 0.1.0.
pub fn former_inbound(base: &FirewallBase) -> Vec<Rule> {
    match base.allow_inbound {
        true => vec![resumed(), vec![counter(), verdict(&Verdict::Accept)]],
        false => vec![denied()],
    }
}

/// Conntrack picks up a TCP flow in the middle. One that a peer opened, and that was denied since, must not
/// come back as one that was opened from outside.
fn resumed() -> Rule {
    let in_the_middle = tcp_flags(FIN | SYN | RST | ACK, Cmp::Neq, SYN);
    [ct_state(NEW), in_the_middle, denied()].concat()
}

fn denied() -> Rule {
    [vec![counter()], goto(DENY)].concat()
}

pub fn judge() -> Vec<Rule> {
    let mut rules = vec![no_profile()];
    rules.extend(find_profile(Whose::Opener));
    rules.extend(by_profile());
    rules
}

/// Whose profile the rule looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The peer that opened the flow.
    Opener,
    /// Where the flow really goes: the reply tuple's source, after any rewriting.
    Destination,
    /// The peer that sent this very packet.
    Sender,
}

impl Whose {
    pub const ALL: [Self; 3] = [Self::Opener, Self::Destination, Self::Sender];

    /// The chain that looks up site prefixes.
    pub const fn sites(self) -> &'static str {
        match self {
            Self::Opener => SITES,
            Self::Destination => SITES_TO,
            Self::Sender => SITES_BY,
        }
    }

    fn address(self, family: Family) -> Rule {
        match self {
            Self::Opener => vec![ct_tuple(Direction::Original, Ct::source(family))],
            Self::Destination => vec![ct_tuple(Direction::Reply, Ct::source(family))],
            Self::Sender => source(family, family.address_bytes()),
        }
    }
}

/// Takes the number of the profile from the packet: a look-up that finds none keeps the old one.
pub fn no_profile() -> Rule {
    vec![load(&0u32.to_ne_bytes()), meta_set(Meta::Priority)]
}

/// Give the packet the number of a profile, if that address has one.
pub fn find_profile(whose: Whose) -> Vec<Rule> {
    let assigned = |family| {
        let found = vec![map(&Set::Peers(family).to_string()), meta_set(Meta::Priority)];
        [whose.address(family), found].concat()
    };
    let sites = vec![verdict(&Verdict::Jump(whose.sites()))];
    vec![sites, assigned(Family::V4), assigned(Family::V6)]
}

/// Lead the packet to the chain of the profile whose number it has.
pub fn by_profile() -> Vec<Rule> {
    vec![
        vec![meta(Meta::Priority), verdict_map(&Set::Chains.to_string())],
        vec![
            meta(Meta::Priority),
            mask(&Block::MASK.to_ne_bytes()),
            verdict_map(&Set::Blocks.to_string()),
        ],
        [vec![counter()], goto(DENY)].concat(),
    ]
}

pub fn dns() -> Vec<Rule> {
    let pass = |questions: Rule| [questions, goto(PASSED)].concat();
    dns_flows(&Family::BOTH).into_iter().map(pass).collect()
}

/// What is allowed gets the priority again that the kernel gave it by its type of service
/// (`rt_tos2priority` in include/net/route.h). It gives none to IPv6.
pub fn passed() -> Vec<Rule> {
    const TOS_OFFSET: u32 = 1;
    const LOW_DELAY_OR_THROUGHPUT: u8 = 0x18;
    const PRIORITIES: [(u8, u32); 3] = [(0x08, 2), (0x10, 6), (0x18, 4)];
    let service = |tos: u8| {
        vec![
            meta(Meta::NfProto),
            cmp(Cmp::Eq, &[Family::V4.nfproto()]),
            payload(Base::Network, TOS_OFFSET, 1),
            mask(&[LOW_DELAY_OR_THROUGHPUT]),
            cmp(Cmp::Eq, &[tos]),
        ]
    };
    let accept = || vec![verdict(&Verdict::Accept)];
    let mut rules = vec![[service(0), accept()].concat()];
    rules.extend(PRIORITIES.map(|(tos, priority)| {
        let given = vec![load(&priority.to_ne_bytes()), meta_set(Meta::Priority)];
        [service(tos), given, accept()].concat()
    }));
    rules.push(accept());
    rules
}

/// Flows to the port of DNS, with the errors about them: such a packet is ICMP itself, and comes
/// under the flow that it is about.
fn dns_flows(families: &[Family]) -> Vec<Rule> {
    const PORT: u16 = 53;
    let to_port =
        || vec![ct_tuple(Direction::Original, Ct::ProtoDst), cmp(Cmp::Eq, &PORT.to_be_bytes())];
    let packet = |l4proto| vec![meta(Meta::L4Proto), cmp(Cmp::Eq, &[l4proto])];
    let flow = |l4proto| vec![ct(Ct::Protocol), cmp(Cmp::Eq, &[l4proto])];
    let mut rules: Vec<Rule> =
        [TCP, UDP].map(|l4proto| [packet(l4proto), to_port()].concat()).into();
    for family in families {
        let errors =
            [TCP, UDP].map(|l4proto| [packet(family.icmp()), flow(l4proto), to_port()].concat());
        rules.extend(errors);
    }
    rules
}

/// What is refused is answered, but not along a source route, which the kernel would turn round
/// (`__ip_options_echo`): no policy has judged where that leads.
pub fn deny(base: &FirewallBase) -> Vec<Rule> {
    let mut rules = deny_log::rules(base);
    rules.push(vec![counter()]);
    rules.extend([has_options(), has_routing_header()].map(|routed| {
        let unanswered = vec![verdict(&Verdict::Drop)];
        [routed, unanswered].concat()
    }));
    let answer = vec![limit(100, 1, 200), reject_prohibited()];
    rules.push([iif(Cmp::Eq, base), answer].concat());
    rules.push(vec![verdict(&Verdict::Drop)]);
    rules
}

pub fn postrouting(base: &FirewallBase) -> Vec<Rule> {
    let leaving = [iif(Cmp::Eq, base), oif(Cmp::Neq, base)].concat();
    let to_internet = |family: Family, destination_offset_bytes| {
        vec![
            meta(Meta::NfProto),
            cmp(Cmp::Eq, &[family.nfproto()]),
            payload(Base::Network, destination_offset_bytes, family.address_bytes().into()),
            lookup(&Set::Internet(family).to_string()),
        ]
    };
    let destinations = match base.masquerade {
        Masquerade::None => vec![],
        Masquerade::All => vec![vec![]],
        Masquerade::Internet => vec![to_internet(Family::V4, 16), to_internet(Family::V6, 24)],
    };
    let rule = |destination| [leaving.clone(), destination, vec![masquerade()]].concat();
    destinations.into_iter().map(rule).collect()
}

/// The rule that looks an address up among the site prefixes of one length.
pub fn site_rule(whose: Whose, family: Family, prefix_len: u8) -> Rule {
    let site = Set::Sites(family, prefix_len).to_string();
    let found = vec![mask(&netmask(family, prefix_len)), map(&site), meta_set(Meta::Priority)];
    [whose.address(family), found].concat()
}

/// The rules by which a block's chain looks this set up. The chain looks its sets up in their order.
pub fn block_rules(set: &Set) -> Vec<Rule> {
    let asked = lookup(&set.to_string());
    let passed = [&no_profile()[..], &goto(PASSED)].concat();
    match *set {
        Set::Grants(_, family, prefix_len) => {
            let mut rule = vec![meta(Meta::Priority), destination(family)];
            if prefix_len < family.bits() {
                rule.push(mask_second(&netmask(family, prefix_len)));
            }
            rule.push(asked);
            rule.extend(passed);
            vec![rule]
        }
        Set::Servers(_, family) => {
            let pair = [meta(Meta::Priority), destination(family), asked];
            let ask = |questions: Rule| [&questions, &pair[..], &passed].concat();
            dns_flows(&[family]).into_iter().map(ask).collect()
        }
        Set::Denied(_) => {
            vec![vec![meta(Meta::Priority), asked], vec![verdict(&Verdict::Goto(DENY))]]
        }
        _ => vec![vec![meta(Meta::Priority), asked]],
    }
}

/// Where the flow really goes, beside the profile.
fn destination(family: Family) -> Expr {
    ct_tuple_second(Direction::Reply, Ct::source(family))
}

pub fn netmask(family: Family, prefix_len: u8) -> Vec<u8> {
    (0..family.address_bytes())
        .map(|byte| {
            let set = prefix_len.saturating_sub(byte * 8).min(8);
            !u8::try_from(0xff_u32 >> set).unwrap_or_default()
        })
        .collect()
}

/// The interface that a rule of the chain `forward` names; to be proved by comparing.
pub fn interface_in(found: &[Expr]) -> Option<InterfaceName> {
    const CMP_DATA: u16 = 3;
    found.iter().find_map(|expr| {
        let value = expr.find(&[CMP_DATA, data::VALUE]).filter(|value| value.len() == 16)?;
        std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()?.parse().ok()
    })
}

const INVALID_OR_UNTRACKED: u32 = 0x41;
pub const NEW: u32 = 0x08;

pub fn ct_state(states: u32) -> Rule {
    vec![ct(Ct::State), mask(&states.to_ne_bytes()), cmp(Cmp::Neq, &0u32.to_ne_bytes())]
}

pub fn drop_invalid() -> Rule {
    [ct_state(INVALID_OR_UNTRACKED), vec![counter(), verdict(&Verdict::Drop)]].concat()
}

/// Packets that go the way of the flow's opener, or the other.
pub fn direction(direction: Direction) -> Rule {
    vec![ct(Ct::Direction), cmp(Cmp::Eq, &[direction as u8])]
}

pub fn tcp_flags(among: u8, op: Cmp, flags: u8) -> Rule {
    const FLAGS_OFFSET: u32 = 13;
    vec![
        meta(Meta::L4Proto),
        cmp(Cmp::Eq, &[TCP]),
        payload(Base::Transport, FLAGS_OFFSET, 1),
        mask(&[among]),
        cmp(op, &[flags]),
    ]
}

pub fn icmp_type(family: Family, op: Cmp, kind: u8) -> Rule {
    let of_family = vec![meta(Meta::NfProto), cmp(Cmp::Eq, &[family.nfproto()])];
    let kind = vec![payload(Base::Transport, 0, 1), cmp(op, &[kind])];
    [of_family, l4proto(family.icmp()), kind].concat()
}

pub fn l4proto(protocol: u8) -> Rule {
    vec![meta(Meta::L4Proto), cmp(Cmp::Eq, &[protocol])]
}

pub fn goto(chain: &str) -> Rule {
    vec![verdict(&Verdict::Goto(chain))]
}
