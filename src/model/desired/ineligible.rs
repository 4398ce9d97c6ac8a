//! Why a row has no right to a tunnel.

use std::fmt;

use crate::model::BarredBy;

/// Why a row is not eligible: all reasons. Prints as one line. The reason that the peer is kept out counts only
/// if no other reason bars the peer: else no operator can let it in.
///
/// This verdict is given in one place, where the row is evaluated, and again whenever the row, the time or the
/// gateway changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ineligible {
    /// The bars of the row's device and user; approval only if it is required.
    pub bars: BarredBy,
    /// `devices.revoked_at` has come, by the database's clock.
    pub revoked: bool,
    /// The gateway is not active: none of its peers is admitted.
    pub gateway_inactive: bool,
    /// The rows are stale, and the peer had no session when they became so.
    pub suspended: bool,
    /// The host's own list bars the peer.
    pub blocked: bool,
    /// The peer was withdrawn, and the database may have lost the commit that did that.
    pub kept_out: bool,
}

impl Ineligible {
    /// Whether nothing but a deleted row or a user who is not active speaks against the peer. A
    /// mistake with a whole table looks the same; a status or a time of revocation is written on
    /// purpose.
    #[must_use]
    pub const fn is_deletion(&self) -> bool {
        let only_deleted =
            self.bars.without(BarredBy::DELETIONS).is_empty() && !self.bars.is_empty();
        let others = self.revoked || self.gateway_inactive || self.suspended || self.blocked;
        only_deleted && !others
    }

    /// Whether nothing else speaks against the peer than that its withdrawal may be lost.
    #[must_use]
    pub fn is_only_kept_out(&self) -> bool {
        *self == Self { kept_out: true, ..Self::default() }
    }

    /// Whether the device and its user have a right to a tunnel, and something else bars the peer.
    #[must_use]
    pub const fn is_entitled(&self) -> bool {
        self.bars.is_empty() && !self.revoked
    }

    /// Whether the rows admit the peer, and this host alone bars it: by its list, because the rows are
    /// stale, or because a withdrawal may be lost.
    #[must_use]
    pub const fn is_by_host_alone(&self) -> bool {
        self.is_entitled() && !self.gateway_inactive
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = [
            (self.revoked, "device revoked"),
            (self.gateway_inactive, "gateway not active"),
            (self.suspended, "not admitted while the rows are stale"),
            (self.blocked, "blocked on this host (`gatepost blocked` lists it)"),
            (
                self.is_only_kept_out(),
                "its revocation was lost by the database (`gatepost confirm` lets it in)",
            ),
        ];
        let others = others.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text);
        for (index, reason) in self.bars.names().chain(others).enumerate() {
            write!(f, "{}{reason}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deleted_rows_and_inactive_users_are_deletions() {
        let barred = |bars| Ineligible { bars, ..Ineligible::default() };
        for bars in [BarredBy::DEVICE_DELETED, BarredBy::USER_INACTIVE, BarredBy::USER_DELETED] {
            assert!(barred(bars).is_deletion());
            for bar in [BarredBy::DEVICE_STATUS, BarredBy::NOT_APPROVED] {
                assert!(!barred(bars.union(bar)).is_deletion() && !barred(bar).is_deletion());
            }
            let deleted = barred(bars);
            assert!(!Ineligible { revoked: true, ..deleted }.is_deletion());
            assert!(!Ineligible { gateway_inactive: true, ..deleted }.is_deletion());
            assert!(!Ineligible { suspended: true, ..deleted }.is_deletion());
            assert!(!Ineligible { blocked: true, ..deleted }.is_deletion());
        }
        assert!(!Ineligible::default().is_deletion());
    }

    #[test]
    fn a_peer_that_rows_bar_is_not_barred_by_the_host_alone() {
        let by_host =
            Ineligible { blocked: true, suspended: true, kept_out: true, ..Ineligible::default() };
        assert!(by_host.is_by_host_alone() && by_host.is_entitled());
        let inactive = Ineligible { gateway_inactive: true, ..by_host };
        assert!(!inactive.is_by_host_alone() && inactive.is_entitled());
        let (revoked, bars) = (true, BarredBy::DEVICE_STATUS);
        for barred in [Ineligible { revoked, ..by_host }, Ineligible { bars, ..by_host }] {
            assert!(!barred.is_by_host_alone() && !barred.is_entitled());
        }
    }

    #[test]
    fn every_reason_is_named() {
        let why = Ineligible {
            bars: BarredBy::DEVICE_STATUS.union(BarredBy::USER_INACTIVE),
            revoked: true,
            gateway_inactive: true,
            suspended: true,
            blocked: true,
            kept_out: true,
        };
        let kept_out = Ineligible { kept_out: true, ..Ineligible::default() };
        assert!(kept_out.to_string().contains("gatepost confirm"), "{kept_out}");
        assert_eq!(
            why.to_string(),
            "device not active, user not active, device revoked, gateway not active, not admitted \
             while the rows are stale, blocked on this host (`gatepost blocked` lists it)"
        );
    }
}
