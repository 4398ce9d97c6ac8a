//! Profiles without a chain of their own: what they allow is written in sets that they share.
//!
//! The kernel walks over every chain in every transaction, and over every rule when one changed
//! (`nf_tables_commit` and `nft_table_validate` in `net/netfilter/nf_tables_api.c`): little for a
//! thousand chains, much for 100,000. So from number 1,024 on, 1,024 profiles are a **block** with
//! one chain. Its sets hold pairs of a profile and a prefix, one set for each prefix length in use.
//! No set is large, as the kernel goes through all of it for each part of its dump
//! (`nft_rhash_walk`). In the words of the `nft` program:
//!
//! ```text
//! chain b_1 {
//!   meta priority @b_1_all                                      # counts what is judged
//!   meta priority . ct reply ip saddr & 255.255.255.0 @b_1_4_24
//!     meta priority set none goto passed
//!   meta priority . ct reply ip saddr @b_1_4_32 meta priority set none goto passed    # and IPv6
//!   meta l4proto tcp ct original proto-dst 53 meta priority . ct reply ip saddr @b_1_dns4
//!     meta priority set none goto passed                        # UDP, ICMP errors about both
//!   meta priority @b_1_deny                                     # counts what is denied
//!   goto deny
//! }
//! ```
//!
//! Lower numbers keep their chains, where a packet is only compared with its own profile's ranges. So
//! does a profile of many prefixes, whatever its number.

use super::element::Element;
use super::name::{Block, Family};
use super::set::Set;
use crate::model::{Profile, ProfileId};

/// A profile of more prefixes has a chain, as each length in use costs its block one more look-up.
const MAX_PREFIXES: usize = 32;

/// A profile and where it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed<'a> {
    /// As rules and sets of a chain of its own.
    InChain(&'a Profile),
    /// As elements of the sets of its block.
    InBlock(&'a Profile),
}

impl<'a> Placed<'a> {
    pub fn of(id: ProfileId, profile: &'a Profile) -> Self {
        let prefixes = profile.allow4.prefixes().chain(profile.allow6.prefixes());
        let in_chain =
            Block::of(id) == Block(0) || prefixes.take(MAX_PREFIXES + 1).count() > MAX_PREFIXES;
        if in_chain { Self::InChain(profile) } else { Self::InBlock(profile) }
    }

    pub const fn in_block(self) -> Option<&'a Profile> {
        match self {
            Self::InBlock(profile) => Some(profile),
            Self::InChain(_) => None,
        }
    }
}

/// The elements of a profile in the sets of its block.
pub fn elements(id: ProfileId, profile: &Profile) -> impl Iterator<Item = (Set, Element)> + '_ {
    let block = Block::of(id);
    let prefixes = profile.allow4.prefixes().chain(profile.allow6.prefixes()).map(move |prefix| {
        let address = prefix.network();
        let set = Set::Grants(block, Family::of(&address), prefix.prefix_len());
        (set, Element::Grant(id, address))
    });
    let servers = profile
        .dns_servers
        .iter()
        .map(move |server| (Set::Servers(block, Family::of(server)), Element::Grant(id, *server)));
    let counted = [Set::Judged(block), Set::Denied(block)].map(|set| (set, Element::Member(id)));
    counted.into_iter().chain(prefixes).chain(servers)
}
