//! How much a gateway reads of one row, and in all. More costs the row that has it, and no other.
//!
//! The database sends no more than the limit and one: `migrations/V18__limits.sql` has the same numbers.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names, and texts that stand for a few words, are cut after so many characters.
pub const NAME_CHARS: usize = 256;
/// A longer value of a setting cannot be read. The longest list of site prefixes takes a quarter of it.
pub const SETTING_BYTES: usize = 65_536;
/// Rows of `settings`, those with a key that means something first.
pub const SETTINGS: usize = 1_000;
/// Entries of setting `gateway.site_prefixes`: each prefix of each peer is compared with all of them.
pub const SITE_PREFIXES: usize = 1_000;
/// Targets of one policy that name nothing, each of which causes a warning.
pub const DANGLING_TARGETS: usize = 10;

/// Rows and entries of which a gateway reads a limited number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowLimit {
    /// Live rows of `wireguard_peers` of one gateway.
    Peers,
    /// Entries of `wireguard_peers.allowed_ips`.
    AllowedIps,
    /// Entries of `wireguard_peers.dns_servers`.
    PeerDns,
    /// Entries of `gateways.dns_servers`.
    GatewayDns,
    /// Active policies that concern one gateway.
    Policies,
    /// Rows of `policy_destinations` of one policy.
    Destinations,
}

/// More of something than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BeyondLimit {
    pub limit: RowLimit,
    /// Of the row of `gateways`, `wireguard_peers` or `policies` that has more.
    pub row: Uuid,
    /// How many were read; one more than the limit: there may be more.
    pub found: usize,
}

impl RowLimit {
    pub const ALL: [Self; 6] = [
        Self::Peers,
        Self::AllowedIps,
        Self::PeerDns,
        Self::GatewayDns,
        Self::Policies,
        Self::Destinations,
    ];

    /// The limit: a greater number is beyond it.
    #[must_use]
    pub const fn most(self) -> usize {
        match self {
            // MAX_PEERS_PER_DEVICE of the kernel's drivers/net/wireguard/messages.h.
            Self::Peers => 1 << 20,
            // Each is a node of WireGuard's trie, an element of our table and perhaps a route: some MiB in all.
            // Clients that exclude networks have some thousands, which the gateway does not use.
            Self::AllowedIps => 10_000,
            // Each is an element of our table. A resolver asks the first three.
            Self::PeerDns | Self::GatewayDns => 100,
            // As many profiles are measured (docs/scale.md).
            Self::Policies => 100_000,
            // The ends of each are elements of our table, of 95 bytes, for each profile that the policy makes.
            // The longest list of one country's networks has half as many.
            Self::Destinations => 200_000,
        }
    }

    /// `found` of them in this row, if that is too many.
    #[must_use]
    pub fn check(self, row: impl Into<Uuid>, found: usize) -> Option<BeyondLimit> {
        (found > self.most()).then(|| BeyondLimit { limit: self, row: row.into(), found })
    }

    const fn table(self) -> &'static str {
        match self {
            Self::Peers | Self::GatewayDns | Self::Policies => "gateways",
            Self::AllowedIps | Self::PeerDns => "wireguard_peers",
            Self::Destinations => "policies",
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Peers => "live rows in wireguard_peers",
            Self::AllowedIps => "entries in allowed_ips",
            Self::PeerDns | Self::GatewayDns => "entries in dns_servers",
            Self::Policies => "policies that concern it",
            Self::Destinations => "rows in policy_destinations",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::Peers => "move devices to another gateway",
            Self::AllowedIps => "write fewer and wider prefixes",
            Self::PeerDns | Self::GatewayDns => "keep those that clients ask",
            Self::Policies => "write fewer policies, aimed at groups",
            Self::Destinations => "write fewer and wider prefixes, or several policies",
        }
    }
}

impl BeyondLimit {
    /// Says it, with what follows from it and the way out.
    pub(super) fn write(&self, to: &mut fmt::Formatter<'_>, therefore: &str) -> fmt::Result {
        let Self { limit, row, found } = self;
        let most = limit.most();
        let (more, found) = if *found == most + 1 { ("more than ", most) } else { ("", *found) };
        write!(
            to,
            "row {row} of {} has {more}{found} {}; the limit is {most}{therefore}: {}",
            limit.table(),
            limit.what(),
            limit.remedy()
        )
    }
}

impl fmt::Display for BeyondLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, if self.limit == RowLimit::GatewayDns { ", so none counts" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_names_row_number_limit_and_way_out() {
        let row = Uuid::from_u128(7);
        for limit in RowLimit::ALL {
            assert_eq!(limit.check(row, limit.most()), None);
            let text = limit.check(row, limit.most() + 9).unwrap().to_string();
            let (most, found) = (limit.most().to_string(), (limit.most() + 9).to_string());
            for part in [&row.to_string(), &most, &found, limit.table(), limit.remedy()] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        assert_eq!(
            RowLimit::AllowedIps.check(row, 10_001).unwrap().to_string(),
            "row 00000000-0000-0000-0000-000000000007 of wireguard_peers has more than 10000 entries in \
             allowed_ips; the limit is 10000: write fewer and wider prefixes"
        );
    }

    /// The database cuts at the same numbers.
    #[test]
    fn database_sends_one_more_than_each_limit() {
        let sql = include_str!("../../migrations/V18__limits.sql");
        for limit in RowLimit::ALL {
            let sent = (limit.most() + 1).to_string();
            assert!(sql.contains(&sent), "{limit:?}: {sent}");
        }
        assert!(sql.contains(&format!("left($1, {})", NAME_CHARS + 1)));
        assert!(sql.contains(&format!("[:{DANGLING_TARGETS}]")));
    }
}
