//! What the database is asked about the devices of held peers that no row names, and what it answers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{DeviceId, DeviceRows, DeviceStanding, PublicKey};

/// A device that is asked for, and the DNS servers that are listed for its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedDevice {
    pub device_id: DeviceId,
    pub dns_servers: Vec<IpAddr>,
}

/// The database's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceStandings {
    pub of: BTreeMap<PublicKey, DeviceStanding>,
    /// Whether any policy applies to any of the devices.
    pub by_policies: bool,
}

impl DeviceStandings {
    /// The standings of these devices by these rows, for the gateway of this name. A device is in one of the rows or is
    /// gone; without any rows, nothing is known.
    #[must_use]
    pub fn new(
        gateway_name: &str,
        asked: &BTreeMap<PublicKey, AskedDevice>,
        rows: &[DeviceRows],
    ) -> Self {
        if rows.is_empty() {
            return Self::default();
        }
        let gone = asked.keys().map(|key| (*key, DeviceStanding::Gone));
        let mut of: BTreeMap<_, _> = gone.collect();
        for rows in rows {
            let here = asked.iter().filter(|(_, it)| rows.devices.contains_key(&it.device_id));
            let here = here.map(|(key, it)| (*key, it.device_id, &it.dns_servers[..]));
            of.extend(rows.standings(gateway_name, here));
        }
        Self { of, by_policies: rows.iter().any(|rows| !rows.policies.is_empty()) }
    }
}
