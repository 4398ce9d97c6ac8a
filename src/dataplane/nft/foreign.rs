//! Base chains of other programs that judge our packets, too. An accept of ours is not final for them,
//! their drop is final for us (nft(8), "Verdict statements"). They are read, never changed.

mod condition;
mod extension;
mod fate;
mod flowtable;
mod hook;
mod reader;
mod rules;
mod walk;
mod way;

use std::fmt;

use super::chain::Declaration;
use super::dump::at_one_generation;
use super::error::NftError;
use super::name::TABLE;
use super::socket::NftSocket;
use super::sys::{NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, verdict};
use crate::model::InterfaceName;

use reader::{ForeignTable, Reader};
use walk::Walk;

pub use fate::{Fate, Lost};
pub use flowtable::{Flowtable, flowtables};
pub use hook::Hook;
pub use rules::{ForeignRules, foreign_rules, ways};
pub use way::{Datagrams, Link, Named, Way};

/// A base chain of another program that drops what none of its rules accepts, and some of our packets
/// are among that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignDrop {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    pub table: String,
    pub chain: String,
    pub hook: Hook,
    pub packets: Packets,
    pub lost: Lost,
    pub manager: Option<Manager>,
}

/// Which of our packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packets {
    /// WireGuard's own, between this host and others.
    WireGuard,
    /// Those between peers and this host.
    Host,
    /// Those between peers and the networks behind the gateway.
    Forwarded,
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
        let Self { chain, hook, family, table, .. } = self;
        match hook {
            Hook::Input | Hook::Forward => write!(f, "chain {chain} of table {family} {table}"),
            hook => write!(f, "chain {chain} ({hook}) of table {family} {table}"),
        }
    }
}

const FAMILIES: [(u8, &str); 3] =
    [(NFPROTO_INET, "inet"), (NFPROTO_IPV4, "ip"), (NFPROTO_IPV6, "ip6")];

/// Finds all such chains in the network namespace of the calling thread. `listen_port` is WireGuard's;
/// without it, WireGuard's own packets are not followed.
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

fn read(
    reader: &mut Reader<'_>,
    interface: &InterfaceName,
    listen_port: Option<u16>,
) -> Result<Vec<ForeignDrop>, NftError> {
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let chains = reader.chains(number)?;
        for base in chains.iter().filter(|chain| chain.table != TABLE) {
            let drops = base.hook.as_ref().and_then(|hook| hook.policy)
                == Some(verdict::DROP.cast_unsigned());
            let mut table = ForeignTable { reader, family: number, table: &base.table };
            let mut walk = Walk::new(&mut table, interface.as_str());
            let Some(hook) = filters_at(base) else { continue };
            let mut follow = |way| walk.follow(&base.name, way, drops);
            let lost = lost_at(hook, listen_port, &mut follow)?;
            for (packets, lost) in lost {
                let Some(lost) = lost else { continue };
                let (table, chain) = (base.table.clone(), base.name.clone());
                let manager = manager(&base.table, &chains);
                found.push(ForeignDrop { family, table, chain, hook, packets, lost, manager });
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Which of the packets that come by a hook are lost there. `follow` says what becomes of those that go a way.
///
/// # Errors
/// Those of `follow`.
pub fn lost_at<E>(
    hook: Hook,
    listen_port: Option<u16>,
    mut follow: impl FnMut(Way) -> Result<Fate, E>,
) -> Result<[(Packets, Option<Lost>); 2], E> {
    let way = listen_port.and_then(|port| Way::of_wireguard_at(hook, port));
    let wireguard = way.map(&mut follow).transpose()?.and_then(match hook {
        Hook::Output | Hook::Postrouting => Lost::of_sent,
        _ => Lost::of_wireguard,
    });
    let of_peers = match hook {
        Hook::Prerouting => {
            let from = follow(Way::UNROUTED)?;
            (Packets::Forwarded, Lost::of_forwarded(from, from))
        }
        Hook::Input => (Packets::Host, Lost::of_peers(follow(Way::TO_HOST)?)),
        Hook::Forward => {
            let (from, to) = (follow(Way::FROM_PEERS)?, follow(Way::TO_PEERS)?);
            (Packets::Forwarded, Lost::of_forwarded(from, to))
        }
        Hook::Output => (Packets::Host, Lost::of_host(follow(Way::FROM_HOST)?)),
        Hook::Postrouting => {
            let (from, to) = (follow(Way::FROM_PEERS)?, follow(Way::LEAVING)?);
            (Packets::Forwarded, Lost::of_forwarded(from, to))
        }
    };
    Ok([(Packets::WireGuard, wireguard), of_peers])
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

/// The hook of a base chain that filters. Others translate addresses or reroute.
fn filters_at(chain: &Declaration) -> Option<Hook> {
    let hook = chain.hook.as_ref().filter(|hook| hook.kind == "filter")?;
    Hook::of(hook.number)
}
