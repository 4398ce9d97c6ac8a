//! The verdict for one address, slow and obvious: what the flattened ranges must agree with.
//!
//! Reads the rows themselves and shares no code with the resolution it checks but the list of
//! special-purpose blocks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Verdict;
use super::special::special_block;
use crate::model::{DeviceId, Effect, GroupId, PolicyRow, TargetType, UserId};

/// The sender of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    pub user_id: UserId,
    pub device_id: DeviceId,
    pub group_ids: BTreeSet<GroupId>,
}

/// The verdict for a packet from this sender to this address.
#[must_use]
pub fn verdict(rows: &[PolicyRow], sender: &Sender, to: IpAddr, default: Verdict) -> Verdict {
    let applying = rows.iter().filter(|row| applies(row, sender)).filter(|row| contains(row, to));
    let Some(lowest) = applying.clone().map(|row| row.priority).min() else {
        return default;
    };
    let mut deciding = applying.filter(|row| row.priority == lowest);
    if deciding.all(|row| row.effect == Effect::Allow) { Verdict::Allow } else { Verdict::Deny }
}

fn applies(row: &PolicyRow, sender: &Sender) -> bool {
    row.targets.iter().filter(|target| !target.dangling).any(|target| match target.target_type {
        TargetType::User => target.target_id == sender.user_id.0,
        TargetType::Device => target.target_id == sender.device_id.0,
        TargetType::Group => sender.group_ids.contains(&GroupId(target.target_id)),
        TargetType::Unknown(_) => false,
    })
}

fn contains(row: &PolicyRow, to: IpAddr) -> bool {
    row.destinations.iter().any(|destination| destination.contains(&to))
        || (row.full_tunnel && special_block(to).is_none())
}
