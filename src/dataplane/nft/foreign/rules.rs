//! Rules of other programs that drop some of our packets, wherever they stand.

use std::collections::BTreeSet;
use std::fmt;

use super::super::dump::at_one_generation;
use super::super::error::NftError;
use super::super::name::TABLE;
use super::super::socket::NftSocket;
use super::super::sys::verdict;
use super::hook::Hook;
use super::reader::{ForeignTable, Reader};
use super::walk::Walk;
use super::way::Way;
use super::{FAMILIES, Manager, filters_at, manager};
use crate::model::InterfaceName;

/// A base chain of another program with rules that drop some packets of ours, or may: which, its rules
/// say by more than by the names of links.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRules {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    pub hook: Hook,
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
pub fn foreign_rules(
    interface: &InterfaceName,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignRules>, NftError> {
    let read = |socket: &mut NftSocket| {
        read_rules(&mut Reader { socket }, interface.as_str(), listen_port)
    };
    Ok(at_one_generation(&mut NftSocket::open()?, read)?.0)
}

/// The ways of those of our packets that pass a hook.
#[must_use]
pub fn ways(hook: Hook, listen_port: Option<u16>) -> Vec<Way> {
    let of_peers: &[Way] = match hook {
        Hook::Prerouting => &[Way::UNROUTED],
        Hook::Input => &[Way::TO_HOST],
        Hook::Forward => &[Way::FROM_PEERS, Way::TO_PEERS],
        Hook::Output => &[Way::FROM_HOST],
        Hook::Postrouting => &[Way::FROM_PEERS, Way::LEAVING],
    };
    let wireguard = listen_port.and_then(|port| Way::of_wireguard_at(hook, port));
    of_peers.iter().copied().chain(wireguard).collect()
}

fn read_rules(
    reader: &mut Reader<'_>,
    link: &str,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignRules>, NftError> {
    const FIRST: usize = 3;
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let chains = reader.chains(number)?;
        for base in chains.iter().filter(|chain| chain.table != TABLE) {
            let Some(declared) = &base.hook else { continue };
            let Some(hook) = Hook::of(declared.number) else { continue };
            let drops = declared.policy == Some(verdict::DROP.cast_unsigned());
            let is_told_elsewhere = filters_at(base).is_some();
            let mut table = ForeignTable { reader, family: number, table: &base.table };
            let mut walk = Walk::new(&mut table, link);
            walk.with_default = !is_told_elsewhere;
            for way in ways(hook, listen_port) {
                walk.follow(&base.name, way, drops)?;
            }
            let mut first = std::mem::take(&mut walk.drops);
            let mut told = BTreeSet::new();
            first.retain(|text| told.insert(text.clone()));
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
