//! The one constructor.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::unloadable::Refusals;
use super::{Claims, DesiredState, Local};
use crate::model::policy::{PolicyBook, dns_addresses};
use crate::model::{
    BeyondLimit, BlockList, DesiredFirewall, DesiredInterface, FirewallBase, GatewayRow, KeyError,
    KeyText, Networks, PublicKey, RowLimit, Settings, SnapshotRows,
};

/// Why nothing can be built from these rows: the kernel must not be touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error(
        "gateways.public_key of {gateway} is {row}, but this host's private key belongs to \
         {local}: put the right key into [gateway] private_key_file, or replace the row's with \
         `gatepost enroll --new-key`"
    )]
    KeyMismatch { gateway: String, row: PublicKey, local: PublicKey },
    #[error("gateways.public_key {text:?} {why}: run `gatepost enroll` to write this host's key")]
    BadGatewayKey { text: Box<str>, why: KeyError },
    #[error("gateways.listen_port {0} is no UDP port: write 1 to 65535")]
    ListenPort(i32),
    #[error(
        "gateways.vpn_cidr {0} leaves no room for the gateway and a peer: write a wider network"
    )]
    PoolTooSmall(IpNet),
    /// More peers or policies than a gateway reads.
    #[error("{0}")]
    BeyondLimit(BeyondLimit),
}

impl DesiredState {
    /// Builds what the host should be from everything the database holds for it.
    ///
    /// # Errors
    /// [`BuildError`] when the gateway's own row cannot be right. A wrong row of a peer or policy
    /// is no error: it costs that peer or policy.
    pub fn build(local: Arc<Local>, rows: SnapshotRows) -> Result<Self, BuildError> {
        Self::build_without(Arc::default(), local, rows)
    }

    /// Like [`Self::build`], without the peers that this host's list blocks.
    ///
    /// # Errors
    /// The errors of [`Self::build`].
    pub fn build_without(
        block_list: Arc<BlockList>,
        local: Arc<Local>,
        rows: SnapshotRows,
    ) -> Result<Self, BuildError> {
        let SnapshotRows { gateway, settings, peers, memberships, policies, taken_at } = rows;
        let gateway_key = key_of(&gateway)?;
        let local_key = local.private_key.public_key();
        if gateway_key != local_key {
            return Err(BuildError::KeyMismatch {
                gateway: gateway.name,
                row: gateway_key,
                local: local_key,
            });
        }
        let (settings, setting_warnings) = Settings::parse(&gateway.name, &settings, taken_at);
        let interface = interface(&local, &gateway)?;
        let base = FirewallBase {
            interface: local.interface.clone(),
            masquerade: local.masquerade,
            deny_log: local.deny_log,
            allow_inbound: settings.allow_inbound,
            networks: Networks::new(
                gateway.vpn_cidr,
                local.site_prefixes.iter().chain(&settings.site_prefixes),
            )
            .with_others(interface.networks().filter(|_| local.gate.is_some())),
            flows_per_address: local.flows_per_address,
            gate: local.gate.map(|gate| gate.mark),
            gateway_opens: local.gateway_opens.clone().filter(|_| settings.gateway_may_open),
        };
        let gateway_dns = dns_addresses(match gateway_dns_beyond(&gateway) {
            None => &gateway.dns_servers,
            Some(_) => &[],
        });
        let mut book = PolicyBook::new(&settings);
        for membership in memberships {
            book.set_membership(membership.user_id, membership.group_ids);
        }
        for policy in policies {
            book.set_policy(policy.id, Some(&policy));
        }
        let mut state = Self {
            gateway_dns: gateway_dns.into_boxed_slice(),
            local,
            gateway,
            gateway_key,
            settings,
            setting_warnings,
            interface,
            peers: BTreeMap::new(),
            routes: BTreeSet::new(),
            firewall: DesiredFirewall { base, assignments: BTreeMap::new() },
            entries: BTreeMap::new(),
            by_device: BTreeSet::new(),
            by_user: BTreeSet::new(),
            barred: BTreeSet::new(),
            barred_at: BTreeSet::new(),
            key_claims: Claims::default(),
            prefix_claims: Claims::default(),
            outside: BTreeSet::new(),
            expiries: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            unallocated: BTreeSet::new(),
            sealed: BTreeSet::new(),
            book,
            refusals: Refusals::default(),
            admit_only: None,
            block_list,
            blocked: BTreeSet::new(),
            kept_out: BTreeSet::new(),
            as_of: taken_at,
            evaluated_at: taken_at,
        };
        state.enter_all(peers);
        Ok(state)
    }
}

/// Too many DNS servers of a gateway, of which none counts then.
pub(super) fn gateway_dns_beyond(gateway: &GatewayRow) -> Option<BeyondLimit> {
    RowLimit::GatewayDns.check(gateway.id.0, gateway.dns_servers.len())
}

fn interface(local: &Local, gateway: &GatewayRow) -> Result<DesiredInterface, BuildError> {
    let listen_port = u16::try_from(gateway.listen_port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(BuildError::ListenPort(gateway.listen_port))?;
    let addresses = if local.addresses.is_empty() {
        BTreeSet::from([tunnel_address(gateway)?])
    } else {
        local.addresses.clone()
    };
    Ok(DesiredInterface {
        name: local.interface.clone(),
        gateway_id: gateway.id,
        private_key: local.private_key.clone(),
        listen_port,
        fwmark: local.fwmark,
        mtu_bytes: local.mtu_bytes,
        addresses,
    })
}

/// The gateway's own tunnel address where the configuration names none: the allocated one, else
/// the pool's first host, with the pool's prefix length, so that its connected route covers all.
fn tunnel_address(gateway: &GatewayRow) -> Result<IpNet, BuildError> {
    let pool = gateway.vpn_cidr;
    let allocated = gateway.allocated_address.filter(|address| pool.contains(address));
    let address: IpAddr = match allocated {
        Some(address) => address,
        None if pool.prefix_len() == pool.max_prefix_len() => {
            return Err(BuildError::PoolTooSmall(pool));
        }
        None => first_host(pool).ok_or(BuildError::PoolTooSmall(pool))?,
    };
    IpNet::new(address, pool.prefix_len()).map_err(|_| BuildError::PoolTooSmall(pool))
}

/// The first address a host may have; an IPv6 subnet's first is the routers' anycast address.
fn first_host(pool: IpNet) -> Option<IpAddr> {
    match pool {
        IpNet::V4(pool) => pool.hosts().next().map(IpAddr::V4),
        IpNet::V6(pool) if pool.prefix_len() == 127 => Some(IpAddr::V6(pool.network())),
        IpNet::V6(pool) => Some(IpAddr::V6((u128::from(pool.network()) + 1).into())),
    }
}

fn key_of(row: &GatewayRow) -> Result<PublicKey, BuildError> {
    match &row.public_key {
        KeyText::Key(key) => Ok(*key),
        KeyText::Bad { text, why } => {
            Err(BuildError::BadGatewayKey { text: text.clone(), why: *why })
        }
    }
}
