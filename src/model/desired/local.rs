//! This host's configuration, which adds to the rows.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU32;

use ipnet::IpNet;

use crate::model::interface::network;
use crate::model::psk::PskKeys;
use crate::model::{
    FirewallBase, Gate, InterfaceName, Masquerade, Networks, NflogGroup, Openings, PrivateKey,
    Settings,
};

/// This host's configuration, which adds to the rows.
#[derive(Debug)]
pub struct Local {
    pub interface: InterfaceName,
    pub private_key: PrivateKey,
    pub mtu_bytes: u32,
    /// Tunnel addresses with prefix lengths; empty: from the database.
    pub addresses: BTreeSet<IpNet>,
    /// Mark on the encrypted packets; 0: none.
    pub fwmark: u32,
    /// Networks within which entries of `allowed_ips` are for the gateway.
    pub site_prefixes: BTreeSet<IpNet>,
    pub masquerade: Masquerade,
    /// Where denied packets are logged; `None`: nowhere.
    pub deny_log: Option<NflogGroup>,
    /// The flows that the gateway itself may open toward peers unless setting `policy.gateway_may_open` is
    /// false;
    /// `None`: nothing, as this kernel cannot tell such flows.
    pub gateway_opens: Option<Openings>,
    /// Forget the tracked flows of a prefix that changes hands.
    pub flush_conntrack: bool,
    /// How many flows may be open from one address of a peer; `None`: any number.
    pub flows_per_address: Option<NonZeroU32>,
    /// The rules that stop forwarded packets while our table is gone.
    pub gate: Option<Gate>,
    pub psk_keys: PskKeys,
}

impl Local {
    pub(super) fn is_of_site(&self, settings: &Settings, prefix: &IpNet) -> bool {
        let mut sites = self.site_prefixes.iter().chain(&settings.site_prefixes);
        sites.any(|site| site.contains(prefix))
    }

    /// Fixed rules for a link while no row is known: with empty maps they deny everything.
    #[must_use]
    pub fn base_without_rows(&self, interface: InterfaceName) -> FirewallBase {
        let pool = self.addresses.first().map_or(IpNet::from(IpAddr::from([0; 4])), IpNet::trunc);
        FirewallBase {
            interface,
            masquerade: self.masquerade,
            deny_log: self.deny_log,
            allow_inbound: false,
            gateway_opens: None,
            networks: Networks::new(pool, self.site_prefixes.iter()).with_others(
                self.addresses.iter().filter_map(network).filter(|_| self.gate.is_some()),
            ),
            flows_per_address: self.flows_per_address,
            gate: self.gate.map(|gate| gate.mark),
        }
    }
}
