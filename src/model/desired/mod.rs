//! The desired state of the host, built from rows, and kept up to date by changed rows.
//!
//! [`DesiredState::build`] is the only constructor. [`DesiredState::apply`] brings it up to date
//! at a cost that depends on what changed, not on how much there is; the result is the same as
//! building anew from all rows.

mod absence;
mod build;
mod bulk;
mod claims;
mod evaluate;
mod ineligible;
mod local;
mod quarantine;
mod standing;
mod touched;
mod unloadable;
mod update;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

pub use absence::{Absence, Profiles};
pub use build::BuildError;
use claims::{Claims, Precedence};
pub use ineligible::Ineligible;
pub use local::Local;
pub use quarantine::Reason;
pub use standing::Standing;
use standing::{Entry, OwnStanding};
pub use touched::{Departed, Touched};
use unloadable::Refusals;
pub use unloadable::{QuarantinedPolicy, Unloadable};

use super::policy::{PolicyBook, PolicyNote};
use super::{
    BeyondLimit, BlockList, DesiredFirewall, DesiredInterface, DeviceId, Gate, GatewayRow, Peer,
    PeerId, PeerRow, PublicKey, RowLimit, SettingWarning, Settings, UserId,
};

/// Everything the host should hold, with the rows that say so.
#[derive(Debug)]
pub struct DesiredState {
    local: Arc<Local>,
    gateway: GatewayRow,
    gateway_key: PublicKey,
    gateway_dns: Box<[IpAddr]>,
    settings: Settings,
    setting_warnings: Vec<SettingWarning>,

    interface: DesiredInterface,
    peers: BTreeMap<PublicKey, Peer>,
    routes: BTreeSet<IpNet>,
    firewall: DesiredFirewall,

    entries: BTreeMap<PeerId, Entry>,
    by_device: BTreeSet<(DeviceId, PeerId)>,
    by_user: BTreeSet<(UserId, PeerId)>,
    /// Rows that are no candidates, by the keys that they name.
    barred: BTreeSet<(PublicKey, PeerId)>,
    /// Rows that are not eligible, by the addresses that they assign.
    barred_at: BTreeSet<(IpNet, PeerId)>,
    key_claims: Claims<PublicKey>,
    prefix_claims: Claims<IpNet>,
    /// Prefixes of admitted peers that no interface address's network covers.
    outside: BTreeSet<IpNet>,
    /// Revocations that lie ahead.
    expiries: BTreeSet<(SystemTime, PeerId)>,
    quarantined: BTreeSet<PeerId>,
    /// Admitted peers whose address `ip_allocations` does not give them.
    unallocated: BTreeSet<PeerId>,
    /// Admitted peers whose preshared key stays sealed, because this host has no sealing key.
    sealed: BTreeSet<PeerId>,
    book: PolicyBook,
    /// Profiles that the kernel refused.
    refusals: Refusals,
    /// While the database is unreachable for too long: who may stay.
    admit_only: Option<BTreeSet<PublicKey>>,
    block_list: Arc<BlockList>,
    /// Rows that the block list bars.
    blocked: BTreeSet<PeerId>,
    /// Peers that stay out for now, whatever the rows say.
    kept_out: BTreeSet<PublicKey>,
    as_of: SystemTime,
    /// The database's time by which revocations are evaluated: it goes on when no row can be read.
    evaluated_at: SystemTime,
}

impl DesiredState {
    #[must_use]
    pub const fn interface(&self) -> &DesiredInterface {
        &self.interface
    }

    #[must_use]
    pub const fn peers(&self) -> &BTreeMap<PublicKey, Peer> {
        &self.peers
    }

    /// Where routes must lead: the networks of the interface's addresses, which rest on routes that
    /// the kernel makes, and the peers' prefixes outside these, aggregated.
    #[must_use]
    pub const fn routes(&self) -> &BTreeSet<IpNet> {
        &self.routes
    }

    /// The same, with routes to more prefixes.
    #[must_use]
    pub fn routes_with(&self, more: impl Iterator<Item = IpNet>) -> BTreeSet<IpNet> {
        let outside = self.outside.iter().copied();
        let outside: Vec<IpNet> = outside.chain(more.filter(|it| !self.covers(it))).collect();
        self.interface.networks().chain(IpNet::aggregate(&outside)).collect()
    }

    #[must_use]
    pub const fn firewall(&self) -> &DesiredFirewall {
        &self.firewall
    }

    /// Whether a prefix lies in the networks within which peers may hold more than their address:
    /// only there can one peer's prefix lie within another's.
    #[must_use]
    pub fn is_of_site(&self, prefix: &IpNet) -> bool {
        self.local.is_of_site(&self.settings, prefix)
    }

    /// Whether flows of prefixes that change hands are forgotten.
    #[must_use]
    pub fn cuts_flows(&self) -> bool {
        self.local.flush_conntrack
    }

    /// The rules that stop forwarded packets while the table is gone.
    #[must_use]
    pub fn gate(&self) -> Option<Gate> {
        self.local.gate
    }

    #[must_use]
    pub const fn gateway(&self) -> &GatewayRow {
        &self.gateway
    }

    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The DNS servers listed for every peer of this gateway.
    #[must_use]
    pub const fn gateway_dns(&self) -> &[IpAddr] {
        &self.gateway_dns
    }

    /// Settings that were not understood, and what stands in their place.
    #[must_use]
    pub fn setting_warnings(&self) -> &[SettingWarning] {
        &self.setting_warnings
    }

    /// Too many DNS servers of the gateway, of which none counts then.
    #[must_use]
    pub fn gateway_dns_beyond(&self) -> Option<BeyondLimit> {
        build::gateway_dns_beyond(&self.gateway)
    }

    /// More peers or policies than a gateway reads: changed rows made them more.
    #[must_use]
    pub fn is_beyond_limits(&self) -> bool {
        self.entries.len() > RowLimit::Peers.most()
            || self.book.policy_count() > RowLimit::Policies.most()
    }

    /// The policies and who they apply to.
    #[must_use]
    pub const fn policies(&self) -> &PolicyBook {
        &self.book
    }

    /// The ignored parts of the policies.
    #[must_use]
    pub fn policy_notes(&self) -> Vec<&PolicyNote> {
        self.book.notes().collect()
    }

    /// The database's time of the rows that this state was built from.
    #[must_use]
    pub const fn as_of(&self) -> SystemTime {
        self.as_of
    }

    /// When the next peer becomes ineligible by time alone.
    #[must_use]
    pub fn next_expiry(&self) -> Option<SystemTime> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Every row with its standing, by peer id.
    pub fn rows(&self) -> impl Iterator<Item = (&PeerRow, Standing<'_>)> {
        self.entries.values().map(|entry| (&entry.row, entry.standing.public()))
    }

    /// The rows left out because of what they say, by peer id.
    pub fn quarantined(&self) -> impl Iterator<Item = (&PeerRow, &Reason)> {
        self.quarantined.iter().filter_map(|id| self.quarantine_of(*id))
    }

    /// Why this row is left out, if that is because of what it says.
    #[must_use]
    pub fn quarantine_of(&self, id: PeerId) -> Option<(&PeerRow, &Reason)> {
        let entry = self.entries.get(&id)?;
        match entry.standing.public() {
            Standing::Quarantined(reason) => Some((&entry.row, reason)),
            _ => None,
        }
    }

    /// How many rows are left out because of what they say.
    #[must_use]
    pub fn quarantined_count(&self) -> usize {
        self.quarantined.len()
    }

    /// How many rows there are, whatever their standing.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.entries.len()
    }

    /// The rows of admitted peers whose address `ip_allocations` does not give them, by peer id.
    pub fn unallocated(&self) -> impl ExactSizeIterator<Item = &PeerRow> {
        self.unallocated.iter().map(|id| &self.entries[id].row)
    }

    /// The rows that the host's block list bars, by peer id.
    pub fn blocked(&self) -> impl Iterator<Item = &PeerRow> {
        self.blocked.iter().filter_map(|id| self.entries.get(id)).map(|entry| &entry.row)
    }

    /// How many admitted peers have a preshared key that stays sealed, because this host has no sealing
    /// key. The kernel keeps the one that it has.
    #[must_use]
    pub fn sealed_count(&self) -> usize {
        self.sealed.len()
    }

    /// Whether the preshared key of the admitted peer with this key stays sealed.
    #[must_use]
    pub fn is_sealed(&self, key: &PublicKey) -> bool {
        let sealed = |row: &PeerRow| self.sealed.contains(&row.id);
        !self.sealed.is_empty() && self.row_of(key).is_some_and(sealed)
    }

    /// The admitted peer that holds this prefix, if its preshared key stays sealed.
    #[must_use]
    pub fn sealed_holder(&self, prefix: &IpNet) -> Option<&PublicKey> {
        let holder = self.prefix_claims.holder(prefix).filter(|id| self.sealed.contains(id))?;
        match &self.entries.get(&holder)?.standing {
            OwnStanding::Admitted(key) => Some(key),
            _ => None,
        }
    }

    /// The row of the admitted peer with this key.
    #[must_use]
    pub fn row_of(&self, key: &PublicKey) -> Option<&PeerRow> {
        let entry = self.entries.get(&self.key_claims.holder(key)?)?;
        (entry.standing == OwnStanding::Admitted(*key)).then_some(&entry.row)
    }

    /// The row of the admitted peer that holds this prefix.
    #[must_use]
    pub fn row_at(&self, prefix: &IpNet) -> Option<&PeerRow> {
        let entry = self.entries.get(&self.prefix_claims.holder(prefix)?)?;
        matches!(entry.standing, OwnStanding::Admitted(_)).then_some(&entry.row)
    }
}

fn precedence(row: &PeerRow) -> Precedence {
    Precedence {
        allocation_missing: row.allocation != super::Allocation::Held,
        created_at: row.created_at,
        peer_id: row.id,
    }
}

/// The same for a prefix: an allocation is of the assigned address alone, and speaks for no network.
fn precedence_to(prefix: &IpNet, row: &PeerRow) -> Precedence {
    let precedence = precedence(row);
    let of_allocation = *prefix == row.address();
    let allocation_missing = precedence.allocation_missing || !of_allocation;
    Precedence { allocation_missing, ..precedence }
}
