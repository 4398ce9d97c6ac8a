//! Base chains of others that judge our packets, too. An accept of ours is not final for them, their
//! drop is final for us (nft(8), "Verdict statements"). They are read, never changed.

use std::collections::BTreeSet;
use std::fmt;

use super::attr::{Attr, Attrs, find, find_be32, find_in, find_text};
use super::dump::settled;
use super::error::NftError;
use super::name::TABLE;
use super::socket::NftSocket;
use super::sys::{
    NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, chain, data, elem, expr, msg, rule, verdict,
};
use crate::model::InterfaceName;

/// A base chain of somebody else that drops what none of its rules accepts, and has no rule on its way that
/// names what is ours.
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
    /// Those to this host: WireGuard's own, and what peers send to the gateway.
    Input,
    /// Those between peers and the networks behind the gateway.
    Forward,
}

/// Who made the chain, as far as its surroundings tell.
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

/// Finds them all, in the network namespace of the calling thread. `listen_port` is WireGuard's;
/// where it is not known, nothing can be said of chains for what is sent to this host.
///
/// Chains of `iptables-legacy` are no part of nf_tables and stay unseen.
///
/// # Errors
/// The rules cannot be read: `CAP_NET_ADMIN` is missing, or others never leave them alone.
pub fn foreign_drops(
    interface: &InterfaceName,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignDrop>, NftError> {
    let read = |socket: &mut NftSocket| read(&mut Reader { socket }, interface, listen_port);
    Ok(settled(&mut NftSocket::open()?, read)?.0)
}

fn read(
    reader: &mut Reader<'_>,
    interface: &InterfaceName,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignDrop>, NftError> {
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let chains = reader.chains(number)?;
        for base in chains.iter().filter(|chain| chain.table != TABLE) {
            let Some(hook) = base.hook else { continue };
            let known = hook == Hook::Forward || listen_port.is_some();
            if !known || !reader.drops(number, base)? {
                continue;
            }
            let ours = Ours { interface, port: listen_port.filter(|_| hook == Hook::Input) };
            if !reader.names(number, base, &ours)? {
                found.push(ForeignDrop {
                    family,
                    table: base.table.clone(),
                    chain: base.name.clone(),
                    hook,
                    manager: manager(&base.table, &chains),
                });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn manager(table: &str, chains: &[Chain]) -> Option<Manager> {
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
struct Ours<'a> {
    interface: &'a InterfaceName,
    port: Option<u16>,
}

impl Ours<'_> {
    /// Whether a value that packets are compared with is ours. Names are padded with zero bytes; one
    /// without any is the beginning of a name.
    fn is(&self, value: &[u8]) -> bool {
        let name = self.interface.as_str().as_bytes();
        let exact = value.strip_prefix(name).is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
        let wild = !value.is_empty() && !value.contains(&0) && name.starts_with(value);
        let port = self.port.is_some_and(|port| value == port.to_be_bytes());
        exact || wild || port
    }

    /// Whether an expression compares with it.
    fn is_in(&self, dumped: &[u8]) -> bool {
        let body = find(dumped, expr::DATA).unwrap_or_default();
        match find_text(dumped, expr::NAME) {
            Some("cmp") => {
                find_in(body, &[CMP_DATA, data::VALUE]).is_some_and(|value| self.is(value))
            }
            Some("match") => self.port.is_some_and(|port| {
                let info = find(body, MATCH_INFO).unwrap_or_default();
                matches_port(find_text(body, MATCH_NAME).unwrap_or_default(), info, port)
            }),
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

#[derive(Debug)]
struct Chain {
    table: String,
    name: String,
    /// Of base chains that see our packets.
    hook: Option<Hook>,
    drops_by_policy: bool,
}

impl Chain {
    fn read(body: &[u8]) -> Option<Self> {
        let hook = find_in(body, &[chain::HOOK, chain::HOOK_HOOKNUM]);
        let number = hook.and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
        // Others translate addresses or reroute; only these decide.
        let filters = find_text(body, chain::TYPE) == Some("filter");
        Some(Self {
            table: find_text(body, chain::TABLE)?.to_owned(),
            name: find_text(body, chain::NAME)?.to_owned(),
            hook: match number.filter(|_| filters) {
                Some(HOOK_LOCAL_IN) => Some(Hook::Input),
                Some(HOOK_FORWARD) => Some(Hook::Forward),
                _ => None,
            },
            drops_by_policy: find_be32(body, chain::POLICY) == Some(verdict::DROP.cast_unsigned()),
        })
    }
}

struct Reader<'a> {
    socket: &'a mut NftSocket,
}

impl Reader<'_> {
    fn chains(&mut self, family: u8) -> Result<Vec<Chain>, NftError> {
        self.socket.dump_of(family, msg::GETCHAIN, &[], |chains: &mut Vec<_>, body| {
            chains.extend(Chain::read(body));
        })
    }

    /// Whether what no rule accepted ends here: by the chain's policy, or by its last rule.
    fn drops(&mut self, family: u8, base: &Chain) -> Result<bool, NftError> {
        let filter = [Attr::text(rule::TABLE, &base.table), Attr::text(rule::CHAIN, &base.name)];
        let last: Vec<u8> = self.socket.dump_of(family, msg::GETRULE, &filter, |last, body| {
            *last = find(body, rule::EXPRESSIONS).unwrap_or_default().to_vec();
        })?;
        Ok(base.drops_by_policy || drops_everything(&last))
    }

    /// Whether any rule on the way from a chain names what is ours, by itself or by a set.
    fn names(&mut self, family: u8, base: &Chain, ours: &Ours<'_>) -> Result<bool, NftError> {
        let mut way = Way::default();
        way.chains.insert(base.name.clone());
        let (mut chains, mut sets) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let table = &base.table;
            if let Some(name) = way.chains.difference(&chains).next().cloned() {
                let filter = [Attr::text(rule::TABLE, table), Attr::text(rule::CHAIN, &name)];
                let found =
                    self.socket.dump_of(family, msg::GETRULE, &filter, |way: &mut Way, it| {
                        way.take_rule(find(it, rule::EXPRESSIONS).unwrap_or_default(), ours);
                    })?;
                chains.insert(name);
                way.merge(found);
            } else if let Some(name) = way.sets.difference(&sets).next().cloned() {
                let filter =
                    [Attr::text(elem::LIST_TABLE, table), Attr::text(elem::LIST_SET, &name)];
                let found = self.socket.dump_of(
                    family,
                    msg::GETSETELEM,
                    &filter,
                    |way: &mut Way, it| {
                        let list = find(it, elem::LIST_ELEMENTS).unwrap_or_default();
                        Attrs(list).for_each(|(_, element)| way.take_element(element, ours));
                    },
                )?;
                sets.insert(name);
                way.merge(found);
            } else {
                return Ok(way.names_ours);
            }
        }
    }
}

/// Where packets may come by, and whether we are known there.
#[derive(Default)]
struct Way {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
    names_ours: bool,
}

impl Way {
    fn take_rule(&mut self, rule: &[u8], ours: &Ours<'_>) {
        for (_, dumped) in Attrs(rule) {
            let body = find(dumped, expr::DATA).unwrap_or_default();
            self.names_ours |= ours.is_in(dumped);
            match find_text(dumped, expr::NAME) {
                Some("immediate") => self.follow(find(body, IMMEDIATE_DATA)),
                Some("lookup") => self.sets.extend(find_text(body, LOOKUP_SET).map(str::to_owned)),
                _ => {}
            }
        }
    }

    fn take_element(&mut self, element: &[u8], ours: &Ours<'_>) {
        let key = find_in(element, &[elem::KEY, data::VALUE]);
        self.names_ours |= key.is_some_and(|value| ours.is(value));
        self.follow(find(element, elem::DATA));
    }

    fn follow(&mut self, verdict: Option<&[u8]>) {
        let chain = verdict.and_then(|it| find_text(find(it, data::VERDICT)?, data::VERDICT_CHAIN));
        self.chains.extend(chain.map(str::to_owned));
    }

    fn merge(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
        self.names_ours |= other.names_ours;
    }
}

/// Whether a rule has no condition and drops or rejects.
fn drops_everything(rule: &[u8]) -> bool {
    let mut drops = false;
    for (_, dumped) in Attrs(rule) {
        let body = find(dumped, expr::DATA).unwrap_or_default();
        match find_text(dumped, expr::NAME) {
            Some("counter" | "log") => {}
            Some("reject") => drops = true,
            Some("target") => {
                drops = matches!(find_text(body, TARGET_NAME), Some("REJECT" | "DROP"));
            }
            Some("immediate") => {
                let code = find_in(body, &[IMMEDIATE_DATA, data::VERDICT, data::VERDICT_CODE]);
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
