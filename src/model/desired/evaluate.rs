//! Evaluates one row by itself: not eligible, not usable, or a candidate for the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use super::{Ineligible, Local, Reason};
use crate::model::policy::dns_addresses;
use crate::model::{
    Allocation, AllowedIps, BarredBy, BlockList, DesiredInterface, GatewayRow, KeyText, PeerRow,
    PresharedKey, PublicKey, Settings,
};

/// The values by which all rows of one gateway are evaluated.
pub(super) struct RowContext<'a> {
    pub local: &'a Local,
    pub gateway: &'a GatewayRow,
    pub settings: &'a Settings,
    pub interface: &'a DesiredInterface,
    pub gateway_key: PublicKey,
    pub admit_only: Option<&'a BTreeSet<PublicKey>>,
    pub blocked: &'a BlockList,
    pub kept_out: &'a BTreeSet<PublicKey>,
    pub now: SystemTime,
}

/// A row that may become a peer, unless another row has the better claim to a prefix or the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    pub allowed_ips: AllowedIps,
}

pub(super) enum Evaluation {
    /// The user or the device has no right to a tunnel now. Nothing is wrong with the row.
    Ineligible(Ineligible),
    Quarantined(Reason),
    Candidate(Candidate),
}

impl RowContext<'_> {
    /// Evaluates `row` without looking at other rows.
    pub fn evaluate(&self, row: &PeerRow) -> Evaluation {
        if let Some(why) = self.ineligible(row) {
            return Evaluation::Ineligible(why);
        }
        match self.candidate(row) {
            Ok(candidate) => Evaluation::Candidate(candidate),
            Err(reason) => Evaluation::Quarantined(reason),
        }
    }

    /// Why a row is not eligible now; `None`: it is.
    fn ineligible(&self, row: &PeerRow) -> Option<Ineligible> {
        let bars = if self.settings.require_approval {
            row.bars
        } else {
            row.bars.without(BarredBy::NOT_APPROVED)
        };
        let is_admitted = match (self.admit_only, &row.public_key) {
            (None, _) => true,
            (Some(only), KeyText::Key(key)) => only.contains(key),
            (Some(_), KeyText::Bad { .. }) => false,
        };
        let why = Ineligible {
            bars,
            revoked: row.revoked_at.is_some_and(|at| at <= self.now),
            gateway_inactive: !self.gateway.active,
            suspended: !is_admitted,
            blocked: self.blocked.bars(row),
            kept_out: matches!(&row.public_key, KeyText::Key(key) if self.kept_out.contains(key)),
        };
        (why != Ineligible::default()).then_some(why)
    }

    fn candidate(&self, row: &PeerRow) -> Result<Candidate, Reason> {
        let key = match &row.public_key {
            KeyText::Key(key) => *key,
            KeyText::Bad { text, why } => {
                return Err(Reason::BadKey { text: text.clone(), why: *why });
            }
        };
        if key == self.gateway_key {
            return Err(Reason::GatewayKey);
        }
        let allowed_ips = self.prefixes(row)?;
        let psk_keys = &self.local.psk_keys;
        // Without any sealing key, the kernel keeps what it has: see `DesiredState::is_sealed`.
        let sealed = row.preshared_key.as_deref().filter(|_| !psk_keys.is_empty());
        let preshared_key = sealed
            .map(|sealed| psk_keys.open(sealed, self.gateway.id, key))
            .transpose()
            .map_err(|why| Reason::BadPresharedKey { why })?;
        Ok(Candidate { key, preshared_key, allowed_ips })
    }

    /// The prefixes that a row gives its peer: the assigned address, and those of sites.
    pub fn prefixes(&self, row: &PeerRow) -> Result<AllowedIps, Reason> {
        if let Some(beyond) = &row.beyond {
            return Err(Reason::BeyondLimit(**beyond));
        }
        let host = self.assigned_host(row.assigned_ip)?;
        self.check_allocation(row, host.addr())?;
        Ok(self.with_sites(host, row))
    }

    /// The prefixes that a row asks for, also where a mistake that concerns many rows denies them.
    pub fn asked_prefixes(&self, row: &PeerRow) -> AllowedIps {
        let address = row.assigned_ip.addr();
        let is_own = || self.interface.addresses.iter().any(|own| own.addr() == address);
        match self.prefixes(row) {
            Ok(prefixes) => prefixes,
            Err(reason) if reason.may_concern_many() && !is_own() => {
                self.with_sites(IpNet::from(address), row)
            }
            Err(_) => AllowedIps::default(),
        }
    }

    fn with_sites(&self, host: IpNet, row: &PeerRow) -> AllowedIps {
        let site = row.allowed_ips.iter().copied().filter(|prefix| self.is_site_prefix(prefix));
        std::iter::once(host).chain(site).collect()
    }

    /// The peer's own address as a host prefix, if it is one that a peer may have.
    fn assigned_host(&self, assigned_ip: IpNet) -> Result<IpNet, Reason> {
        let address = assigned_ip.addr();
        let pool = self.gateway.vpn_cidr;
        if assigned_ip.prefix_len() != assigned_ip.max_prefix_len() {
            return Err(Reason::NotAHost { assigned_ip });
        }
        if !pool.contains(&address) {
            return Err(Reason::OutsidePool { address, pool });
        }
        if self.interface.addresses.iter().any(|own| own.addr() == address) {
            return Err(Reason::GatewayAddress { address });
        }
        // RFC 3021: a /31 has neither; RFC 4291 section 2.6.1: an IPv6 subnet's first address is
        // the routers' anycast address, and there is no broadcast.
        let spare_bits = pool.max_prefix_len() - pool.prefix_len();
        if spare_bits > 1 && address == pool.network() {
            return Err(Reason::NetworkAddress { address, pool });
        }
        if spare_bits > 1 && address.is_ipv4() && address == pool.broadcast() {
            return Err(Reason::BroadcastAddress { address, pool });
        }
        Ok(IpNet::from(address))
    }

    fn check_allocation(&self, row: &PeerRow, address: IpAddr) -> Result<(), Reason> {
        match row.allocation {
            _ if !self.settings.strict_ip_allocations => Ok(()),
            Allocation::Held => Ok(()),
            Allocation::Missing => Err(Reason::NotAllocated { address }),
            Allocation::Other(device_id) => Err(Reason::AllocatedToOther { address, device_id }),
        }
    }

    /// Forgets the entries of `allowed_ips` that are not for the gateway: with many peers they would
    /// take a good part of the memory, and no other settings will ever make them count.
    pub fn trim(&self, row: &mut PeerRow) {
        let for_gateway = |prefix: &IpNet| self.is_site_prefix(prefix);
        if !row.allowed_ips.iter().all(for_gateway) {
            row.allowed_ips = row.allowed_ips.iter().copied().filter(for_gateway).collect();
        }
    }

    /// Whether an entry of `allowed_ips` is for the gateway. All others are the client's profile.
    fn is_site_prefix(&self, prefix: &IpNet) -> bool {
        let holds_gateway =
            || self.interface.addresses.iter().any(|own| prefix.contains(&own.addr()));
        self.local.is_of_site(self.settings, prefix) && !holds_gateway()
    }
}

/// The DNS servers listed for a row's peer.
pub(super) fn listed_dns(gateway_dns: &[IpAddr], row: &PeerRow) -> Vec<IpAddr> {
    gateway_dns.iter().copied().chain(dns_addresses(&row.dns_servers)).collect()
}
