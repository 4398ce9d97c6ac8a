//! How many flows one address of a peer may have open, so that one peer cannot fill the table of tracked
//! flows for all.

use std::num::NonZeroU32;

use super::attr::Attr;
use super::expr::{Cmp, Expr, Rule, Verdict, counter, each, lookup_none, verdict};
use super::name::{DENY, Family, LIMITS};
use super::packet::{iif, source};
use super::rules::{NEW, ct_state, goto};
use super::set::Set;
use super::sys::expr;
use crate::model::FirewallBase;

const CONNLIMIT_COUNT: u16 = 1;
const CONNLIMIT_FLAGS: u16 = 2;

/// New flows from peers go to the chain `flow_limits`.
pub fn limited(base: &FirewallBase) -> Vec<Rule> {
    limited_among(base, iif(Cmp::Eq, base))
}

/// New flows that are among these go to the chain `flow_limits`.
pub fn limited_among(base: &FirewallBase, asked: Rule) -> Vec<Rule> {
    let new = [ct_state(NEW), asked, vec![verdict(&Verdict::Jump(LIMITS))]].concat();
    base.flows_per_address.map(|_| new).into_iter().collect()
}

/// Denies each new flow beyond the limit, and those of addresses for which the set has no room: what is
/// not counted has no limit. A flow that is denied is not tracked.
pub fn limits(base: &FirewallBase) -> Vec<Rule> {
    let Some(most) = base.flows_per_address else { return vec![] };
    let limit = |family: Family| {
        let set = Set::Flows(family).to_string();
        let source = || source(family, family.address_bytes());
        let denied = || [vec![counter()], goto(DENY)].concat();
        let each_source = each(Set::ADD, &set, &more_than(most));
        [
            [source(), vec![each_source], denied()].concat(),
            [source(), vec![lookup_none(&set)], denied()].concat(),
        ]
    };
    Family::BOTH.into_iter().flat_map(limit).collect()
}

/// Goes on if there are more flows than this.
fn more_than(most: NonZeroU32) -> Expr {
    const OVER: u32 = 1;
    let (count, flags) =
        (Attr::be32(CONNLIMIT_COUNT, most.get()), Attr::be32(CONNLIMIT_FLAGS, OVER));
    Expr::new("connlimit", vec![count, flags])
}

/// The limit that the first rule of the chain `flow_limits` names; to be proved by comparing.
pub fn limit_in(found: &[Rule]) -> Option<NonZeroU32> {
    const DYNSET_EXPR: u16 = 7;
    let each = found.first()?.iter().find(|expr| expr.name() == "dynset")?;
    let count = each.find(&[DYNSET_EXPR, expr::DATA, CONNLIMIT_COUNT])?;
    NonZeroU32::new(u32::from_be_bytes(count.try_into().ok()?))
}
