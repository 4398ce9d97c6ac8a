//! The rules that log denied packets.

use super::attr::Attr;
use super::expr::{Cmp, Expr, Rule, each, limit};
use super::name::Family;
use super::packet::{iif, source};
use super::set::Set;
use crate::model::{FirewallBase, NflogGroup};

/// The prefix of denied packets in the log.
pub const DENY_LOG_PREFIX: &str = "gatepost-deny ";

/// The attribute of the expression `log` that names the group.
const LOG_GROUP: u16 = 1;

/// Log a few packets, and deny none.
pub fn rules(base: &FirewallBase) -> Vec<Rule> {
    let Some(group) = base.deny_log else { return vec![] };
    let outside = [iif(Cmp::Neq, base), log_at_most(&limit(1, 1, 20), group)].concat();
    vec![log_peer(base, Family::V4, group), log_peer(base, Family::V6, group), outside]
}

/// Logs a few packets a minute of each peer's address. Addresses that come in elsewhere may be
/// forged, and would fill the set.
fn log_peer(base: &FirewallBase, family: Family, group: NflogGroup) -> Rule {
    let each = vec![each(Set::UPDATE, &Set::DenyLog(family).to_string(), &limit(6, 60, 5))];
    let source = source(family, family.address_bytes());
    [iif(Cmp::Eq, base), source, each, log_at_most(&limit(20, 1, 100), group)].concat()
}

/// Logs, but never more than a log daemon can take.
fn log_at_most(at_most: &Expr, group: NflogGroup) -> Rule {
    vec![at_most.clone(), log(group)]
}

/// Sends the head of the packet to the reader of this nflog group.
fn log(group: NflogGroup) -> Expr {
    const HEAD_BYTES: u32 = 80;
    let group = Attr::bytes(LOG_GROUP, group.0.to_be_bytes());
    Expr::new("log", vec![Attr::text(2, DENY_LOG_PREFIX), group, Attr::be32(3, HEAD_BYTES)])
}

/// The group that a rule of the chain `deny` names; to be proved by comparing.
pub fn group_in(found: &[Rule]) -> Option<NflogGroup> {
    let group = found.iter().flatten().find(|expr| expr.name() == "log")?.find(&[LOG_GROUP])?;
    Some(NflogGroup(u16::from_be_bytes(group.try_into().ok()?)))
}
