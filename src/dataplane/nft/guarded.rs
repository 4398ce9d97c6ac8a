//! Whether a table that is not as this version loads it still judges what it must.
//!
//! An upgrade may find other rules than it would load, and an operator may add counters: such a
//! table is replaced without cutting off a peer. One that lets packets pass unjudged counts as none.

use super::dump::Dump;
use super::expr::{Expr, Rule, Verdict, is_rule, verdict};
use super::flows::limit_in;
use super::gate::mark_in;
use super::gateway::{former_input, openings_in};
use super::name::{
    ARRIVALS, CLOSED, DENY, ERRORS, FORGED, FORWARD, FROM_PEERS, ICMP_OUT, INBOUND, INPUT, JUDGE,
    LIMITS, OPENED, OPENINGS, OUTPUT,
};
use super::ranges::networks_in;
use super::rules::{Whose, former_forward, former_inbound, interface_in, site_rule};
use super::set::Set;
use super::sys::table;
use super::table::{Chain, Fixed};
use crate::model::{FirewallBase, InterfaceName, Masquerade};

/// The interface that no packet passes unjudged, neither forwarded nor to the gateway itself.
pub fn guarded_interface(dump: &Dump) -> Option<InterfaceName> {
    let forward = dump.rules.get(FORWARD)?;
    let interface = forward.iter().find_map(|found| interface_in(found))?;
    let gateway_opens = dump.rules.get(OPENINGS).and_then(|found| openings_in(found));
    let networks = networks_in(dump);
    let gate = mark_in(forward);
    let flows_per_address = dump.rules.get(LIMITS).and_then(|found| limit_in(found));
    let guards = |allow_inbound| {
        let base = FirewallBase {
            interface: interface.clone(),
            masquerade: Masquerade::None,
            deny_log: None,
            allow_inbound,
            gateway_opens: gateway_opens.clone(),
            networks: networks.clone(),
            flows_per_address,
            gate,
        };
        let of_chain = |chain: &Chain| match chain.name {
            INPUT | OUTPUT | OPENED | OPENINGS | ICMP_OUT | ARRIVALS | CLOSED | FORGED
            | FROM_PEERS | ERRORS
                if is_former(dump, &base) =>
            {
                true
            }
            INBOUND if is_former(dump, &base) => has_all(
                dump.rules.get(INBOUND).map(Vec::as_slice).unwrap_or_default(),
                &former_inbound(&base),
            ),
            FORWARD if is_former(dump, &base) => {
                is_hooked(dump, chain) && has_all(forward, &former_forward(&base))
            }
            _ => is_safe(dump, chain),
        };
        Fixed::of(&base).chains.iter().all(of_chain)
    };
    let awake = dump.flags & table::FLAG_DORMANT == 0;
    let sites_are_safe = Whose::ALL.into_iter().all(|whose| sites_are_safe(dump, whose));
    (awake && sites_are_safe && [false, true].into_iter().any(guards)).then_some(interface)
}

/// Whether the chains between peers and the gateway are those of the version before: what the gateway
/// sends is not filtered, and all that comes in is.
fn is_former(dump: &Dump, base: &FirewallBase) -> bool {
    let found = dump.rules.get(INPUT).map(Vec::as_slice).unwrap_or_default();
    let input = Fixed::of(base).chains.into_iter().find(|chain| chain.name == INPUT);
    let hooked = input.is_some_and(|input| is_hooked(dump, &input));
    hooked && has_all(found, &former_input(base)) && !dump.chains.contains_key(OUTPUT)
}

fn is_safe(dump: &Dump, wanted: &Chain) -> bool {
    let found = dump.rules.get(wanted.name).map(Vec::as_slice).unwrap_or_default();
    match wanted.name {
        FORWARD | INPUT | OUTPUT | ARRIVALS => {
            is_hooked(dump, wanted) && has_all(found, &wanted.rules)
        }
        INBOUND | LIMITS | OPENED | OPENINGS | ICMP_OUT | FORGED | FROM_PEERS => {
            has_all(found, &wanted.rules)
        }
        CLOSED | JUDGE | ERRORS => {
            found.len() == wanted.rules.len()
                && wanted.rules.iter().zip(found).all(|(rule, found)| is_rule(rule, found))
        }
        DENY => found.split_last().is_some_and(|(last, others)| {
            let is_ours = |found: &Rule| wanted.rules.iter().any(|rule| is_rule(rule, found));
            is_rule(&[verdict(&Verdict::Drop)], last)
                && others.iter().all(|rule| is_ours(rule) || !decides(rule))
        }),
        // Packets that come by the others have been judged, or reach only what these allow.
        _ => true,
    }
}

fn is_hooked(dump: &Dump, wanted: &Chain) -> bool {
    let found = dump.chains.get(wanted.name).and_then(|found| found.hook.as_ref());
    found.zip(wanted.hook.as_ref()).is_some_and(|(found, wanted)| found.number == wanted.number)
}

/// Whether all these rules are there in their order, and no other rule decides anything.
fn has_all(found: &[Rule], wanted: &[Rule]) -> bool {
    let mut wanted = wanted.iter().peekable();
    let known = found
        .iter()
        .all(|found| wanted.next_if(|rule| is_rule(rule, found)).is_some() || !decides(found));
    known && wanted.next().is_none()
}

/// Each of its rules is one that looks a site prefix up, or decides nothing.
fn sites_are_safe(dump: &Dump, whose: Whose) -> bool {
    let looks_up = |rule: &[Expr]| {
        dump.sets.keys().any(|set| match set {
            Set::Sites(family, prefix_len) => {
                is_rule(&site_rule(whose, *family, *prefix_len), rule)
            }
            _ => false,
        })
    };
    let mut rules = dump.rules.get(whose.sites()).into_iter().flatten();
    rules.all(|rule| looks_up(rule) || !decides(rule))
}

/// Whether a rule may end a packet's way, lead it elsewhere, or change what is judged. An expression
/// that is not known to do none of this counts as one that does.
fn decides(rule: &[Expr]) -> bool {
    const HARMLESS: [&str; 9] =
        ["payload", "cmp", "bitwise", "fib", "counter", "limit", "dynset", "log", "reject"];
    !rule.iter().all(|expr| HARMLESS.contains(&expr.name()) || is_load(expr))
}

/// A `meta` or `ct` that loads a value, and sets none.
fn is_load(expr: &Expr) -> bool {
    const DESTINATION: u16 = 1;
    matches!(expr.name(), "meta" | "ct") && expr.find(&[DESTINATION]).is_some()
}
