//! Devices without a row in `wireguard_peers`, and what the other rows still say about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::policy::PolicyBook;
use super::{DeviceId, GroupId, PolicyRow, Profile, SettingRow, Settings, UserId};

/// The row of a device that has no row in `wireguard_peers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    pub user_id: UserId,
    /// The undeleted groups of the user.
    pub group_ids: BTreeSet<GroupId>,
    /// By its status, or by a time of revocation that has come.
    pub revoked: bool,
    /// It or its user is deleted, or the user is not active.
    pub barred: bool,
}

/// Such devices as far as they exist, the policies that apply to them, and the settings, all read at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRows {
    pub settings: Vec<SettingRow>,
    pub devices: BTreeMap<DeviceId, DeviceRow>,
    pub policies: Vec<PolicyRow>,
    /// The database's time of the rows.
    pub taken_at: SystemTime,
}

/// How the rows judge a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceStanding {
    /// It has no row either.
    Gone,
    Revoked,
    /// It or its user is deleted, or the user is not active. Policies would let it reach this.
    Barred(Arc<Profile>),
    /// Policies let it reach this, whether or not it is approved.
    Granted(Arc<Profile>),
}

impl DeviceStanding {
    /// What policies let the device reach, if rows say so.
    #[must_use]
    pub const fn grants(&self) -> Option<&Arc<Profile>> {
        match self {
            Self::Gone | Self::Revoked => None,
            Self::Barred(profile) | Self::Granted(profile) => Some(profile),
        }
    }
}

impl DeviceRows {
    /// The standing of each of these devices, which have these DNS servers listed. Devices that may reach the same share
    /// a profile.
    pub fn standings<'a, K>(
        &self,
        gateway_name: &str,
        asked: impl IntoIterator<Item = (K, DeviceId, &'a [IpAddr])>,
    ) -> impl Iterator<Item = (K, DeviceStanding)> {
        let (settings, _) = Settings::parse(gateway_name, &self.settings, self.taken_at);
        let mut book = PolicyBook::new(&settings);
        // In this order, because a policy looks up whom it concerns.
        for policy in &self.policies {
            book.set_policy(policy.id, Some(policy));
        }
        for device in self.devices.values() {
            book.set_membership(device.user_id, device.group_ids.clone());
        }
        asked.into_iter().map(move |(key, id, dns_servers)| {
            let standing = match self.devices.get(&id) {
                None => DeviceStanding::Gone,
                Some(DeviceRow { revoked: true, .. }) => DeviceStanding::Revoked,
                Some(device) => {
                    let profile = book.profile_for(device.user_id, id, dns_servers);
                    match device.barred {
                        true => DeviceStanding::Barred(profile),
                        false => DeviceStanding::Granted(profile),
                    }
                }
            };
            (key, standing)
        })
    }
}
