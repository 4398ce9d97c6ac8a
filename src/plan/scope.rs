//! How much is compared.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::model::PublicKey;

/// How much of the state a plan compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything: at start, on resync, and when the observed state is in doubt.
    Everything,
    /// The parts that a change touched: these peers, the firewall's entries for these prefixes, and the routes.
    /// Never sweeps.
    Changed { peers: BTreeSet<PublicKey>, prefixes: BTreeSet<IpNet> },
}

impl Scope {
    /// The scope that compares nothing but the routes.
    #[must_use]
    pub const fn routes_only() -> Self {
        Self::Changed { peers: BTreeSet::new(), prefixes: BTreeSet::new() }
    }

    /// Whether this is the scope that compares nothing but the routes.
    #[must_use]
    pub fn is_routes_only(&self) -> bool {
        matches!(self, Self::Changed { peers, prefixes } if peers.is_empty() && prefixes.is_empty())
    }

    /// Widens this scope by another.
    pub fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) => {}
            (_, Self::Everything) => *self = Self::Everything,
            (
                Self::Changed { peers, prefixes },
                Self::Changed { peers: more_peers, prefixes: more_prefixes },
            ) => {
                peers.extend(more_peers);
                prefixes.extend(more_prefixes);
            }
        }
    }
}
