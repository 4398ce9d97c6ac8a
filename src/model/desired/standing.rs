//! Where one row stands.

use super::evaluate::Candidate;
use super::{Ineligible, Reason};
use crate::model::psk::PskKeys;
use crate::model::{Allocation, PeerRow, PublicKey};

/// Where one row of `wireguard_peers` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// In the kernel, under this key.
    Admitted(&'a PublicKey),
    /// The user or the device has no right to a tunnel now.
    Ineligible(Ineligible),
    /// Something is wrong with the row, or another row has the better claim.
    Quarantined(&'a Reason),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub row: PeerRow,
    pub standing: OwnStanding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OwnStanding {
    Ineligible(Ineligible),
    /// The key under which `peers` holds the rest.
    Admitted(PublicKey),
    Quarantined(Box<Reason>),
    /// Sound by itself, but another row has the better claim to a prefix or the key.
    Contested(Box<(Candidate, Reason)>),
}

impl Entry {
    pub const fn is_quarantined(&self) -> bool {
        matches!(self.standing, OwnStanding::Quarantined(_) | OwnStanding::Contested(_))
    }

    pub const fn is_blocked(&self) -> bool {
        matches!(self.standing, OwnStanding::Ineligible(Ineligible { blocked: true, .. }))
    }

    /// Not eligible, for a reason that `is` as asked.
    pub fn is_barred_and(&self, is: fn(&Ineligible) -> bool) -> bool {
        matches!(&self.standing, OwnStanding::Ineligible(why) if is(why))
    }

    /// Admitted, though `ip_allocations` does not give it its address.
    pub fn is_unallocated(&self) -> bool {
        matches!(self.standing, OwnStanding::Admitted(_)) && self.row.allocation != Allocation::Held
    }

    /// Admitted, though its preshared key cannot be opened `without` any sealing key.
    pub fn is_sealed(&self, without: &PskKeys) -> bool {
        let is_admitted = matches!(self.standing, OwnStanding::Admitted(_));
        is_admitted && without.is_empty() && self.row.preshared_key.is_some()
    }
}

impl OwnStanding {
    pub fn public(&self) -> Standing<'_> {
        match self {
            Self::Ineligible(why) => Standing::Ineligible(*why),
            Self::Admitted(key) => Standing::Admitted(key),
            Self::Quarantined(reason) => Standing::Quarantined(reason),
            Self::Contested(contested) => Standing::Quarantined(&contested.1),
        }
    }
}
