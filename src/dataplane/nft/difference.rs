//! What of our table is not as this version loads it.

use std::fmt;

use super::name::{Block, block_chain_name, chain_name};
use super::set::Set;
use crate::model::ProfileId;

/// The first object of our table, as it was read, that is missing, foreign or edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Its declaration or a rule of it.
    Chain(String),
    /// Its declaration or its elements as a whole. Maps are listed as sets.
    Set(String),
    /// An element that gatepost would not write, of the set or map with this name.
    Element(String),
    /// A map that does not lead to every chain, and to no other.
    Map(String),
    /// What the sets of a block hold for this profile.
    Profile(ProfileId),
    /// The table's flags.
    Flags(u32),
    /// An object of a kind that gatepost does not use, such as a named counter.
    Object,
}

impl Difference {
    pub(super) fn set(set: &Set) -> Self {
        Self::Set(set.to_string())
    }

    pub(super) fn map(map: &Set) -> Self {
        Self::Map(map.to_string())
    }

    pub(super) fn profile_chain(id: ProfileId) -> Self {
        Self::Chain(chain_name(id))
    }

    pub(super) fn block_chain(block: Block) -> Self {
        Self::Chain(block_chain_name(block))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(name) => write!(f, "chain {name}"),
            Self::Set(name) => write!(f, "set {name}"),
            Self::Element(set) => write!(f, "an element of set {set}"),
            Self::Map(name) => write!(f, "map {name}"),
            Self::Profile(ProfileId(id)) => write!(f, "profile {id} of a block"),
            Self::Flags(flags) => write!(f, "flags {flags:#x} of the table"),
            Self::Object => f.write_str("an object of a kind that gatepost does not use"),
        }
    }
}
