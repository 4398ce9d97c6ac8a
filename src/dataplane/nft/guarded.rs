//! Whether a table that is not as this version loads it still judges what it must.
//!
//! An upgrade may find other rules than it would load, and an operator may add counters: such a
//! table is replaced without cutting anybody off. One that lets packets pass unjudged is none.

use super::attr::{Attrs, find_in, find_text};
use super::dump::Dump;
use super::expr::{Rule, Verdict, is_rule, verdict};
use super::name::{DENY, FORWARD, INBOUND, INPUT, JUDGE, SITES};
use super::rules::{interface_in, site_rule};
use super::set::Set;
use super::sys::{chain, expr};
use super::table::{Chain, Fixed};
use crate::model::{FirewallBase, InterfaceName, Masquerade};

/// The interface of whose packets none passes unjudged, forwarded or to the gateway itself.
pub fn guarded_interface(dump: &Dump) -> Option<InterfaceName> {
    let forward = dump.rules.get(FORWARD)?;
    let interface = forward.iter().find_map(|exprs| interface_in(FORWARD, exprs))?;
    let guards = |allow_inbound| {
        let base = FirewallBase {
            interface: interface.clone(),
            masquerade: Masquerade::None,
            deny_log: false,
            allow_inbound,
        };
        Fixed::of(&base).chains.iter().all(|chain| is_safe(dump, chain))
    };
    let awake = dump.flags == 0;
    (awake && sites_are_safe(dump) && [false, true].into_iter().any(guards)).then_some(interface)
}

fn is_safe(dump: &Dump, wanted: &Chain) -> bool {
    let found = dump.rules.get(wanted.name).map(Vec::as_slice).unwrap_or_default();
    let same = |rule: &Rule, exprs: &Vec<u8>| is_rule(rule, exprs);
    match wanted.name {
        FORWARD | INPUT => is_hooked(dump, wanted) && has_all(found, &wanted.rules),
        INBOUND => has_all(found, &wanted.rules),
        JUDGE => {
            found.len() == wanted.rules.len()
                && wanted.rules.iter().zip(found).all(|(rule, exprs)| same(rule, exprs))
        }
        DENY => found.split_last().is_some_and(|(last, others)| {
            same(&vec![verdict(&Verdict::Drop)], last) && !others.iter().any(|exprs| decides(exprs))
        }),
        // Whoever goes by the others has been judged, or reaches only what they allow.
        _ => true,
    }
}

fn is_hooked(dump: &Dump, wanted: &Chain) -> bool {
    let number = |declared: &[u8]| {
        find_in(declared, &[chain::HOOK, chain::HOOK_HOOKNUM]).map(<[u8]>::to_vec)
    };
    let mut sent = Vec::new();
    wanted.declaration().iter().for_each(|attr| attr.encode(&mut sent));
    let found = dump.chains.get(wanted.name).and_then(|declared| number(declared));
    found.is_some() && found == number(&sent)
}

/// Whether all these rules are there in their order, and whatever else is there decides nothing.
fn has_all(found: &[Vec<u8>], wanted: &[Rule]) -> bool {
    let mut wanted = wanted.iter().peekable();
    let known = found
        .iter()
        .all(|exprs| wanted.next_if(|rule| is_rule(rule, exprs)).is_some() || !decides(exprs));
    known && wanted.next().is_none()
}

/// Each of its rules is one that looks a site prefix up, or decides nothing.
fn sites_are_safe(dump: &Dump) -> bool {
    let looks_up = |exprs: &[u8]| {
        dump.sets.keys().any(|set| match set {
            Set::Sites(family, prefix_len) => is_rule(&site_rule(*family, *prefix_len), exprs),
            _ => false,
        })
    };
    let mut rules = dump.rules.get(SITES).into_iter().flatten();
    rules.all(|exprs| looks_up(exprs) || !decides(exprs))
}

/// Whether a rule may end a packet's way, lead it elsewhere, or change what is judged. Only what is
/// known to do nothing of it is not taken for that.
fn decides(exprs: &[u8]) -> bool {
    const HARMLESS: [&str; 9] =
        ["payload", "cmp", "bitwise", "ct", "fib", "counter", "limit", "dynset", "log"];
    let harmless = |dumped| {
        let name = find_text(dumped, expr::NAME).unwrap_or_default();
        HARMLESS.contains(&name) || name == "reject" || is_load(name, dumped)
    };
    !Attrs(exprs).all(|(_, dumped)| harmless(dumped))
}

/// A `meta` that loads something, and sets nothing.
fn is_load(name: &str, dumped: &[u8]) -> bool {
    const DESTINATION: u16 = 1;
    name == "meta" && find_in(dumped, &[expr::DATA, DESTINATION]).is_some()
}
