//! The mark by which the gate knows packets that this table judges.
//!
//! A packet has it only while it is routed: from the last hook before that to the first one after it.

use super::expr::{Expr, Meta, Rule, mask, meta, meta_set, set_bits};
use super::sys::data;
use crate::model::MarkBit;

/// Gives a packet the mark, behind all that others do to marks before routing.
pub fn set_mark(mark: MarkBit) -> Rule {
    vec![meta(Meta::Mark), set_bits(mark.bits()), meta_set(Meta::Mark)]
}

/// Takes the mark off again, before anyone else sees it.
pub fn clear_mark(mark: MarkBit) -> Rule {
    vec![meta(Meta::Mark), mask_of(mark), meta_set(Meta::Mark)]
}

fn mask_of(mark: MarkBit) -> Expr {
    mask(&(!mark.bits()).to_ne_bytes())
}

/// The mark that a rule of the chain `forward` takes off; to be proved by comparing.
pub fn mark_in(found: &[Rule]) -> Option<MarkBit> {
    found.iter().find_map(|rule| {
        let [load, kept, set] = &rule[..] else { return None };
        let is_one = [load, kept, set].map(Expr::name) == ["meta", "bitwise", "meta"];
        let kept = kept.find(&[4, data::VALUE]).filter(|_| is_one)?;
        MarkBit::new(!u32::from_ne_bytes(kept.try_into().ok()?))
    })
}
