//! Rules of other programs that drop some of our packets, wherever they stand.

use std::fmt;

use super::super::attr::Attr;
use super::super::dump::at_one_generation;
use super::super::error::NftError;
use super::super::expr::Rule;
use super::super::name::TABLE;
use super::super::socket::NftSocket;
use super::super::sys::{data, elem, msg, verdict};
use super::condition::{Link, Way};
use super::walk::{Member, Table, Walk, verdict_with};
use super::{FAMILIES, HOOK_FORWARD, HOOK_LOCAL_IN, Manager, Reader, manager};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};
use crate::model::InterfaceName;

/// A base chain of another program with rules that drop some packets of ours, or may: which, its rules
/// say by more than by the names of links.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRules {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    /// The chain's hook, such as `prerouting`.
    pub hook: &'static str,
    /// What the first of these rules ask of packets.
    pub first: Vec<String>,
    pub count: usize,
    pub manager: Option<Manager>,
}

impl fmt::Display for ForeignRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} ({}) of table {} {}", self.chain, self.hook, self.family, self.table)
    }
}

/// Finds the rules of other programs that drop some packets between peers, networks and this host,
/// wherever they stand. What drops everything by default is left to [`foreign_drops`].
///
/// # Errors
/// As [`foreign_drops`].
pub fn foreign_rules(interface: &InterfaceName) -> Result<Vec<ForeignRules>, NftError> {
    let read = |socket: &mut NftSocket| read_rules(&mut Reader { socket }, interface.as_str());
    Ok(at_one_generation(&mut NftSocket::open()?, read)?.0)
}

/// By `enum nf_inet_hooks`, which of our packets pass a hook.
fn ways(hook: u32) -> (&'static str, Vec<Way>) {
    const fn way(incoming: Link, outgoing: Link) -> Way {
        Way { incoming, outgoing }
    }
    match hook {
        0 => ("prerouting", vec![way(Link::Ours, Link::Unknown)]),
        HOOK_LOCAL_IN => ("input", vec![way(Link::Ours, Link::Absent)]),
        HOOK_FORWARD => {
            ("forward", vec![way(Link::Ours, Link::Another), way(Link::Another, Link::Ours)])
        }
        3 => ("output", vec![way(Link::Absent, Link::Ours)]),
        4 => ("postrouting", vec![way(Link::Ours, Link::Another), way(Link::Unknown, Link::Ours)]),
        _ => ("ingress", vec![]),
    }
}

fn read_rules(reader: &mut Reader<'_>, link: &str) -> Result<Vec<ForeignRules>, NftError> {
    const FIRST: usize = 3;
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let chains = reader.chains(number)?;
        for base in chains.iter().filter(|chain| chain.table != TABLE) {
            let Some(hook) = &base.hook else { continue };
            let drops = hook.policy == Some(verdict::DROP.cast_unsigned());
            let filters = matches!(hook.number, HOOK_LOCAL_IN | HOOK_FORWARD);
            let (hook, ways) = ways(hook.number);
            let mut table = ForeignTable { reader, family: number, table: &base.table };
            let mut walk = Walk::new(&mut table, link);
            walk.with_default = !filters;
            for way in ways {
                walk.follow(&base.name, way, drops)?;
            }
            let mut first = std::mem::take(&mut walk.drops);
            first.dedup();
            let count = first.len();
            first.truncate(FIRST);
            if count > 0 {
                let (table, chain) = (base.table.clone(), base.name.clone());
                let manager = manager(&base.table, &chains);
                found.push(ForeignRules { family, table, chain, hook, first, count, manager });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// One table of another program.
struct ForeignTable<'a, 'b> {
    reader: &'a mut Reader<'b>,
    family: u8,
    table: &'a str,
}

impl Table for ForeignTable<'_, '_> {
    fn rules(&mut self, chain: &str) -> Result<Vec<Rule>, NftError> {
        self.reader.rules(self.family, self.table, chain)
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Member>, NftError> {
        let filter = [Attr::text(elem::LIST_TABLE, self.table), Attr::text(elem::LIST_SET, set)];
        self.reader.socket.dump_of(
            self.family,
            msg::GETSETELEM,
            &filter,
            |found: &mut Vec<_>, list| {
                for element in list.require(elem::LIST_ELEMENTS)?.nested() {
                    found.extend(member(element?.nested())?);
                }
                Ok(())
            },
        )
    }
}

fn member(element: Attributes<'_>) -> Result<Option<Member>, NetlinkError> {
    let Some(key) = element.find_in(&[elem::KEY, data::VALUE])? else { return Ok(None) };
    let code = element.find_in(&[elem::DATA, data::VERDICT, data::VERDICT_CODE])?;
    let code = code.map(|code| code.be32()).transpose()?;
    let chain = element.find_in(&[elem::DATA, data::VERDICT, data::VERDICT_CHAIN])?;
    let chain = chain.as_ref().map(Attribute::text_lossy);
    let decides = code.and_then(|code| verdict_with(code.cast_signed(), chain.as_deref()));
    Ok(Some(Member { key: key.value.to_vec(), verdict: decides }))
}
