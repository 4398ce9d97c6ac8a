//! Base chains of other programs that judge our packets, too. An accept of ours is not final for them,
//! their drop is final for us (nft(8), "Verdict statements"). They are read, never changed.

mod condition;
mod rules;
mod walk;

use std::collections::BTreeSet;
use std::fmt;

use super::attr::Attr;
use super::chain::Declaration;
use super::dump::at_one_generation;
use super::error::NftError;
use super::expr::{Expr, Rule, read_rule};
use super::name::TABLE;
use super::socket::NftSocket;
use super::sys::{
    NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, data, elem, flowtable, msg, rule, verdict,
};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};
use crate::model::InterfaceName;

pub use rules::{ForeignRules, foreign_rules};

/// A base chain of another program that drops what none of its rules accepts, where no rule that its
/// packets may meet names our interface or port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignDrop {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    pub hook: Hook,
    pub manager: Option<Manager>,
}

/// Which of our packets the chain sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// WireGuard's own, which other hosts send to this one.
    Input,
    /// Those that peers send to this host.
    Peers,
    /// Those between peers and the networks behind the gateway.
    Forward,
}

/// The program that made the chain, as far as other chains show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manager {
    Docker,
    Firewalld,
    Ufw,
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} of table {} {}", self.chain, self.family, self.table)
    }
}

const FAMILIES: [(u8, &str); 3] =
    [(NFPROTO_INET, "inet"), (NFPROTO_IPV4, "ip"), (NFPROTO_IPV6, "ip6")];

// linux/netfilter.h: enum nf_inet_hooks
const HOOK_LOCAL_IN: u32 = 1;
const HOOK_FORWARD: u32 = 2;
// Attributes of expressions in linux/netfilter/nf_tables.h and nf_tables_compat.h
const CMP_DATA: u16 = 3;
const IMMEDIATE_DATA: u16 = 2;
const LOOKUP_SET: u16 = 1;
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;
const TARGET_NAME: u16 = 1;

/// Finds all such chains in the network namespace of the calling thread. `listen_port` is WireGuard's;
/// without it, chains for what is sent to this host are not looked at.
///
/// Chains of `iptables-legacy` are no part of nf_tables and stay unseen.
///
/// # Errors
/// The rules cannot be read: `CAP_NET_ADMIN` is missing, or other programs keep changing them.
pub fn foreign_drops(
    interface: &InterfaceName,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignDrop>, NftError> {
    let read = |socket: &mut NftSocket| read(&mut Reader { socket }, interface, listen_port);
    Ok(at_one_generation(&mut NftSocket::open()?, read)?.0)
}

/// The flowtables that our interface is in, in words. Their flows pass no rule of ours.
///
/// # Errors
/// As [`foreign_drops`].
pub fn flowtables_of(interface: &InterfaceName) -> Result<Vec<String>, NftError> {
    let read = |socket: &mut NftSocket| {
        let mut found = Vec::new();
        for (number, family) in FAMILIES {
            let tables = socket.dump_of(number, msg::GETFLOWTABLE, &[], |tables, flowtable| {
                add_flowtable(tables, flowtable, interface)
            })?;
            found.extend(tables.into_iter().map(|name| format!("{family} {name}")));
        }
        Ok(found)
    };
    Ok(at_one_generation(&mut NftSocket::open()?, read)?.0)
}

fn add_flowtable(
    tables: &mut Vec<String>,
    found: Attributes<'_>,
    interface: &InterfaceName,
) -> Result<(), NetlinkError> {
    let devices = found.find_in(&[flowtable::HOOK, flowtable::HOOK_DEVICES])?;
    for device in devices.into_iter().flat_map(Attribute::nested) {
        let device = device?;
        if device.kind == flowtable::DEVICE_NAME && device.text_lossy() == interface.as_str() {
            let (table, name) = (found.require(flowtable::TABLE)?, found.require(flowtable::NAME)?);
            tables.push(format!("{} {}", table.text_lossy(), name.text_lossy()));
        }
    }
    Ok(())
}

fn read(
    reader: &mut Reader<'_>,
    interface: &InterfaceName,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignDrop>, NftError> {
    let link = Ours::Link(interface);
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let chains = reader.chains(number)?;
        for base in chains.iter().filter(|chain| chain.table != TABLE) {
            // A rule for the port lets no packet of a peer in, and one for the link none of WireGuard.
            let questions = match number_of(base) {
                Some(HOOK_LOCAL_IN) => {
                    vec![(Hook::Input, listen_port.map(Ours::Port)), (Hook::Peers, Some(link))]
                }
                Some(HOOK_FORWARD) => vec![(Hook::Forward, Some(link))],
                _ => continue,
            };
            if !reader.drops(number, base)? {
                continue;
            }
            for (hook, ours) in questions {
                let Some(ours) = ours else { continue };
                if !reader.names(number, base, ours)? {
                    let (table, chain) = (base.table.clone(), base.name.clone());
                    let manager = manager(&base.table, &chains);
                    found.push(ForeignDrop { family, table, chain, hook, manager });
                }
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn manager(table: &str, chains: &[Declaration]) -> Option<Manager> {
    let has = |name: &str| chains.iter().any(|chain| chain.table == table && chain.name == name);
    if table == "firewalld" {
        Some(Manager::Firewalld)
    } else if has("DOCKER-USER") {
        Some(Manager::Docker)
    } else if has("ufw-before-forward") || has("ufw6-before-forward") {
        Some(Manager::Ufw)
    } else {
        None
    }
}

/// What a rule that was made with us in mind names.
#[derive(Debug, Clone, Copy)]
enum Ours<'a> {
    Link(&'a InterfaceName),
    Port(u16),
}

impl Ours<'_> {
    /// Whether a value that packets are compared with is ours. Names are padded with zero bytes; one
    /// without any is the beginning of a name.
    fn is(self, value: &[u8]) -> bool {
        let name = match self {
            Self::Port(port) => return value == port.to_be_bytes(),
            Self::Link(interface) => interface.as_str().as_bytes(),
        };
        let exact = value.strip_prefix(name).is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
        exact || !value.is_empty() && !value.contains(&0) && name.starts_with(value)
    }

    /// Whether an expression compares with it.
    fn is_in(self, expr: &Expr) -> bool {
        match (expr.name(), self) {
            ("cmp", _) => expr.find(&[CMP_DATA, data::VALUE]).is_some_and(|value| self.is(value)),
            ("match", Self::Port(port)) => {
                let info = expr.find(&[MATCH_INFO]).unwrap_or_default();
                matches_port(expr.text(&[MATCH_NAME]).unwrap_or_default(), info, port)
            }
            _ => false,
        }
    }
}

/// `iptables` compares ports by structures of its own, in host order: `struct xt_udp` is a source and
/// a destination range, `struct xt_multiport_v1` flags, a count and the ports.
fn matches_port(name: &str, info: &[u8], port: u16) -> bool {
    let word = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    match name {
        "udp" => {
            let range = word(4).zip(word(6)).map(|(first, last)| first..=last);
            range.is_some_and(|range| range != (0..=u16::MAX) && range.contains(&port))
        }
        "multiport" => {
            let count = info.get(1).copied().unwrap_or_default();
            (0..usize::from(count)).any(|n| word(2 + 2 * n) == Some(port))
        }
        _ => false,
    }
}

/// The hook of a base chain that filters. Others translate addresses or reroute.
fn number_of(chain: &Declaration) -> Option<u32> {
    chain.hook.as_ref().filter(|hook| hook.kind == "filter").map(|hook| hook.number)
}

struct Reader<'a> {
    socket: &'a mut NftSocket,
}

impl Reader<'_> {
    fn chains(&mut self, family: u8) -> Result<Vec<Declaration>, NftError> {
        self.socket.dump_of(family, msg::GETCHAIN, &[], |chains: &mut Vec<_>, chain| {
            chains.push(Declaration::read(chain)?);
            Ok(())
        })
    }

    fn rules(&mut self, family: u8, table: &str, chain: &str) -> Result<Vec<Rule>, NftError> {
        let filter = [Attr::text(rule::TABLE, table), Attr::text(rule::CHAIN, chain)];
        self.socket.dump_of(family, msg::GETRULE, &filter, |rules: &mut Vec<_>, rule| {
            let list = rule.find(rule::EXPRESSIONS)?;
            rules.push(list.map_or(Ok(vec![]), |list| read_rule(list.nested()))?);
            Ok(())
        })
    }

    /// Whether what no rule accepted ends here: by the chain's policy, or by its last rule.
    fn drops(&mut self, family: u8, base: &Declaration) -> Result<bool, NftError> {
        let by_policy =
            base.hook.as_ref().and_then(|hook| hook.policy) == Some(verdict::DROP.cast_unsigned());
        let rules = self.rules(family, &base.table, &base.name)?;
        Ok(by_policy || rules.last().is_some_and(|last| drops_everything(last)))
    }

    /// Whether any rule on the way from a chain names what is ours, by itself or by a set.
    fn names(&mut self, family: u8, base: &Declaration, ours: Ours<'_>) -> Result<bool, NftError> {
        let mut reachable = Reachable::default();
        reachable.chains.insert(base.name.clone());
        let (mut chains, mut sets) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let table = &base.table;
            if let Some(name) = reachable.chains.difference(&chains).next().cloned() {
                for rule in self.rules(family, table, &name)? {
                    reachable.add_rule(&rule, ours);
                }
                chains.insert(name);
            } else if let Some(name) = reachable.sets.difference(&sets).next().cloned() {
                let filter =
                    [Attr::text(elem::LIST_TABLE, table), Attr::text(elem::LIST_SET, &name)];
                let read = |found: &mut Reachable, list: Attributes<'_>| {
                    for element in list.require(elem::LIST_ELEMENTS)?.nested() {
                        found.add_element(element?.nested(), ours)?;
                    }
                    Ok(())
                };
                let found = self.socket.dump_of(family, msg::GETSETELEM, &filter, read)?;
                sets.insert(name);
                reachable.merge(found);
            } else {
                return Ok(reachable.names_ours);
            }
        }
    }
}

/// The chains and sets that packets may come by, and whether any of them names what is ours.
#[derive(Default)]
struct Reachable {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
    names_ours: bool,
}

impl Reachable {
    fn add_rule(&mut self, rule: &[Expr], ours: Ours<'_>) {
        for expr in rule {
            self.names_ours |= ours.is_in(expr);
            let jump = [IMMEDIATE_DATA, data::VERDICT, data::VERDICT_CHAIN];
            match expr.name() {
                "immediate" => self.chains.extend(expr.text(&jump).map(str::to_owned)),
                "lookup" => self.sets.extend(expr.text(&[LOOKUP_SET]).map(str::to_owned)),
                _ => {}
            }
        }
    }

    fn add_element(&mut self, element: Attributes<'_>, ours: Ours<'_>) -> Result<(), NetlinkError> {
        let key = element.find_in(&[elem::KEY, data::VALUE])?;
        self.names_ours |= key.is_some_and(|key| ours.is(key.value));
        let jump = element.find_in(&[elem::DATA, data::VERDICT, data::VERDICT_CHAIN])?;
        self.chains.extend(jump.as_ref().map(Attribute::text_lossy));
        Ok(())
    }

    fn merge(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
        self.names_ours |= other.names_ours;
    }
}

/// Whether a rule has no condition and drops or rejects.
fn drops_everything(rule: &[Expr]) -> bool {
    let mut drops = false;
    for expr in rule {
        match expr.name() {
            "counter" | "log" => {}
            "reject" => drops = true,
            "target" => drops = matches!(expr.text(&[TARGET_NAME]), Some("REJECT" | "DROP")),
            "immediate" => {
                let code = expr.find(&[IMMEDIATE_DATA, data::VERDICT, data::VERDICT_CODE]);
                drops = code == Some(&verdict::DROP.to_be_bytes());
            }
            _ => return false,
        }
    }
    drops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_the_structures_of_iptables_are_found() {
        let words =
            |words: &[u16]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
        let udp = words(&[0, u16::MAX, 51820, 51830, 0]);
        assert!(matches_port("udp", &udp, 51820) && matches_port("udp", &udp, 51825));
        assert!(!matches_port("udp", &udp, 51831) && !matches_port("tcp", &udp, 51820));
        assert!(!matches_port("udp", &words(&[0, u16::MAX, 0, u16::MAX, 0]), 51820), "any port");
        let multiport = [vec![1, 2], words(&[53, 51820, 7])].concat();
        assert!(matches_port("multiport", &multiport, 51820));
        assert!(!matches_port("multiport", &multiport, 7), "it counts two");
        assert!(!matches_port("multiport", &[1, 200], 7) && !matches_port("udp", &[], 7));
    }
}
