//! The rules about who really sent a packet.
//!
//! WireGuard proves the sender of what comes by our interface, and only of that. So a packet that comes
//! by another link must not have a peer's address. And an ICMP error is judged twice: as a packet of the
//! flow that it quotes, like any other, and before that by who may tell anything about that flow.

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;

use ipnet::IpNet;

use super::expr::{Cmp, Expr, Meta, Rule, Verdict, cmp, counter, lookup, mask, meta, verdict};
use super::fib::{ANYCAST, Asked, LOCAL, is_kind, link_of_address, of_kind};
use super::gate;
use super::name::{DENY, ERRORS, FORGED, FROM_PEERS, Family, octets};
use super::packet::{Side, address_of, has_options, has_routing_header, iif, name_is, source};
use super::rules::{
    Whose, by_profile, ct_state, find_profile, goto, icmp_type, l4proto, netmask, no_profile,
};
use super::set::Set;
use super::sys::data;
use crate::model::{FirewallBase, Networks};

const RELATED: u32 = 0x04;

/// Packets that come by another link with an address that the host routes to ours are dropped. The gate
/// knows by its mark that this table was there.
pub fn arrivals(base: &FirewallBase) -> Vec<Rule> {
    let Networks { pool, sites4, sites6, .. } = &base.networks;
    let mut sources = vec![within(Side::Source, pool)];
    for (family, none) in
        [(Family::V4, sites4.as_slice().is_empty()), (Family::V6, sites6.as_slice().is_empty())]
    {
        let set = vec![lookup(&Set::Networks(family).to_string())];
        sources.extend((!none).then(|| [source(family, family.address_bytes()), set].concat()));
    }
    let forged =
        sources.into_iter().map(|source| [source, vec![verdict(&Verdict::Jump(FORGED))]].concat());
    let to_peers = base.gate.into_iter().flat_map(|mark| {
        base.networks.gated().map(move |network| {
            // What goes to the host itself comes by no rule of the gate.
            let elsewhere = of_kind(Asked::Destination, Cmp::Neq, LOCAL);
            [within(Side::Destination, &network), elsewhere, gate::set_mark(mark)].concat()
        })
    });
    let from_peers = [iif(Cmp::Eq, base), goto(FROM_PEERS)].concat();
    iter::once(from_peers).chain(forged).chain(to_peers).collect()
}

/// Sources that other links may not bring. The first address of a network is also that of any router in
/// it, and once the kernel knows the size of the path there, it tells no link of it (`RTF_ANYCAST` in
/// `ip6_rt_cache_alloc`).
pub fn forged(base: &FirewallBase) -> Vec<Rule> {
    let routed_here =
        [vec![link_of_address(Asked::Source)], name_is(Cmp::Eq, &base.interface)].concat();
    let any_router = is_kind(Asked::Source, ANYCAST);
    [routed_here, any_router]
        .map(|source| [source, vec![counter(), verdict(&Verdict::Drop)]].concat())
        .into()
}

/// Errors that come from peers go to the chain `errors` before they are judged as their flows.
pub fn from_peers(base: &FirewallBase) -> Vec<Rule> {
    let errors = Family::BOTH
        .map(|family| [l4proto(family.icmp()), ct_state(RELATED), goto(ERRORS)].concat());
    base.gate.map(gate::set_mark).into_iter().chain(led_on()).chain(errors).collect()
}

/// From an address of the gateway's own, an IPv4 source route or an IPv6 routing header leads a packet on
/// to a destination that no rule has judged, if an administrator allows that. `ip option` cannot find a
/// source route of which a part is travelled, and the kernel follows it all the same
/// (`__ip_options_compile`): so here no packet with options comes in.
fn led_on() -> [Rule; 2] {
    let dropped = || vec![counter(), verdict(&Verdict::Drop)];
    [has_options(), has_routing_header()]
        .map(|led_on| [led_on, is_kind(Asked::Destination, LOCAL), dropped()].concat())
}

/// Compares as the `nft` program would: whole bytes where the prefix has such, else with a mask.
fn within(side: Side, network: &IpNet) -> Rule {
    let (address, bits) = (network.network(), network.prefix_len());
    let family = Family::of(&address);
    let bytes = octets(&address);
    if bits > 0 && bits % 8 == 0 {
        let compared = vec![cmp(Cmp::Eq, &bytes[..usize::from(bits / 8)])];
        return [address_of(side, family, bits / 8), compared].concat();
    }
    let compared = vec![mask(&netmask(family, bits)), cmp(Cmp::Eq, &bytes)];
    [address_of(side, family, family.address_bytes()), compared].concat()
}

/// The pool that the rule behind the first names; to be proved by comparing.
pub fn pool_in(found: &[Rule]) -> Option<IpNet> {
    network_in(found.get(1)?)
}

/// The other networks toward which packets get the gate's mark; to be proved by comparing.
pub fn others_in(found: &[Rule]) -> BTreeSet<IpNet> {
    let marks = |rule: &&Rule| rule.last().is_some_and(|last| last.name() == "meta");
    // The first is the pool's.
    found.iter().filter(marks).skip(1).filter_map(|rule| network_in(rule)).collect()
}

fn network_in(rule: &[Expr]) -> Option<IpNet> {
    let value = |at: usize, kind| rule.get(at)?.find(&[kind, data::VALUE]);
    let family =
        Family::BOTH.into_iter().find(|family| value(1, 3) == Some(&[family.nfproto()]))?;
    let (bytes, bits) = match rule.get(3).map(Expr::name)? {
        "bitwise" => (value(4, 3)?, value(3, 4)?.iter().map(|byte| byte.count_ones()).sum()),
        _ => (value(3, 3)?, u32::try_from(value(3, 3)?.len() * 8).ok()?),
    };
    let mut octets = bytes.to_vec();
    octets.resize(family.address_bytes().into(), 0);
    let address: IpAddr = family.address(&octets)?;
    IpNet::new(address, u8::try_from(bits).ok()?).ok().map(|pool| pool.trunc())
}

/// A peer may tell something about a flow toward the tunnel, and about one of a peer's to where it
/// might go itself.
pub fn errors() -> Vec<Rule> {
    const REDIRECT: u8 = 5;
    let none = 0u32.to_ne_bytes();
    let profile = |op, rest: Rule| [vec![meta(Meta::Priority), cmp(op, &none)], rest].concat();
    let passes = [no_profile(), vec![verdict(&Verdict::Accept)]].concat();
    let denied = [vec![counter()], goto(DENY)].concat();
    let redirect =
        [icmp_type(Family::V4, Cmp::Eq, REDIRECT), vec![counter(), verdict(&Verdict::Drop)]];
    let mut rules = vec![redirect.concat(), no_profile()];
    rules.extend(find_profile(Whose::Destination));
    rules.push(profile(Cmp::Neq, passes));
    rules.extend(find_profile(Whose::Opener));
    rules.push(profile(Cmp::Eq, denied));
    rules.push(no_profile());
    rules.extend(find_profile(Whose::Sender));
    rules.extend(by_profile());
    rules
}
