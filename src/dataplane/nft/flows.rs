//! How many flows one address of a peer may have open, so that one peer cannot fill the table of tracked
//! flows for all.

use std::num::NonZeroU32;

use super::attr::Attr;
use super::expr::{Cmp, Expr, Rule, counter, each};
use super::name::{DENY, Family};
use super::packet::{iif, source};
use super::rules::{NEW, ct_state, goto};
use super::set::Set;
use super::sys::expr;
use crate::model::FirewallBase;

const CONNLIMIT_COUNT: u16 = 1;
const CONNLIMIT_FLAGS: u16 = 2;

/// Denies each new flow beyond the limit. A flow that is denied is not tracked.
pub fn limits(base: &FirewallBase) -> Vec<Rule> {
    let Some(most) = base.flows_per_address else { return vec![] };
    let limit = |family: Family| {
        let each_source = each(Set::ADD, &Set::Flows(family).to_string(), &more_than(most));
        [
            ct_state(NEW),
            iif(Cmp::Eq, base),
            source(family, family.address_bytes()),
            vec![each_source, counter()],
            goto(DENY),
        ]
        .concat()
    };
    Family::BOTH.map(limit).into()
}

/// Goes on if there are more flows than this.
fn more_than(most: NonZeroU32) -> Expr {
    const OVER: u32 = 1;
    let (count, flags) =
        (Attr::be32(CONNLIMIT_COUNT, most.get()), Attr::be32(CONNLIMIT_FLAGS, OVER));
    Expr::new("connlimit", vec![count, flags])
}

/// The limit that the first rule of the chain `judge` names; to be proved by comparing.
pub fn limit_in(found: &[Rule]) -> Option<NonZeroU32> {
    const DYNSET_EXPR: u16 = 7;
    let each = found.first()?.iter().find(|expr| expr.name() == "dynset")?;
    let count = each.find(&[DYNSET_EXPR, expr::DATA, CONNLIMIT_COUNT])?;
    NonZeroU32::new(u32::from_be_bytes(count.try_into().ok()?))
}
