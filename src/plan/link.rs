//! The link that is ours, its settings and its addresses.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Step;
use crate::model::{
    DesiredInterface, GatewayId, InterfaceName, LinkOwner, ObservedInterface, ObservedState, Stray,
    Tag, Unsuited,
};

/// Why the kernel must not be touched at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "interface {name} is a {kind} link that is not ours: choose another [interface] name, or \
         remove it with `ip link delete {name}`"
    )]
    ForeignLink { name: Box<str>, kind: String },
    #[error(
        "interface {name} belongs to gateway {owner}, and this agent acts for gateway {ours}: \
         choose another [interface] name, or run `gatepost down` with that gateway's config"
    )]
    OtherGateway { name: Box<str>, owner: GatewayId, ours: GatewayId },
    #[error(
        "interface {found} belongs to gateway {owner}, this agent acts for gateway {ours}, and one \
         firewall cannot guard two interfaces: give each gateway a network namespace of its own, or \
         remove {found} with `gatepost down`"
    )]
    TwoGateways { found: Box<str>, owner: GatewayId, ours: GatewayId },
    #[error(
        "[interface] name is {name}, and the firewall may still guard {found}, which would then be \
         open to all: remove {found} and its sessions with `gatepost down`, or set the name back"
    )]
    StillGuarded { found: Box<str>, name: InterfaceName },
    #[error(
        "the tunnel's network {pool} {why}: give the gateway a private one, such as 10.64.0.0/16"
    )]
    UnsuitedNetwork { pool: IpNet, why: Unsuited },
    #[error(
        "the tunnel's network {pool} lies within {network} of link {link}, whose route it would take: \
         give the gateway another vpn_cidr, or {link} other addresses"
    )]
    NetworkTaken { pool: IpNet, network: IpNet, link: Box<str> },
    #[error(
        "interface {name} is a WireGuard link with another key ({found}) that we did not make: \
         choose another [interface] name, or remove it with `ip link delete {name}`"
    )]
    OtherKey { name: Box<str>, found: String },
}

/// The steps that make the link what is desired.
pub(super) fn steps(
    desired: &DesiredInterface,
    observed: &ObservedState,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    refuse_unguarded(desired, observed)?;
    let unguarded = |(_, stray): &(_, &Stray)| stray.up && stray.owner == desired.gateway_id;
    let strays = observed.strays.iter().filter(unguarded);
    steps.extend(strays.map(|(name, _)| Step::TakeDown { name: name.clone() }));
    let has_no_peers = observed.peers.is_empty();
    let Some(observed) = observed.interface.as_ref() else {
        steps.push(Step::CreateLink { name: desired.name.clone(), gateway_id: desired.gateway_id });
        set_up_new_link(desired, steps);
        return Ok(());
    };
    let ours = desired.private_key.public_key();
    claim_link(desired, observed, has_no_peers, steps)?;
    if observed.has_master {
        steps.push(Step::FreeLink { name: observed.name.clone() });
    }
    if *observed.name != *desired.name.as_str() {
        let (from, to) = (observed.name.clone(), desired.name.clone());
        steps.push(Step::RenameLink { from, to });
    }
    if observed.mtu_bytes != desired.mtu_bytes {
        steps.push(Step::SetMtu { bytes: desired.mtu_bytes });
    }
    if observed.public_key != Some(ours) {
        steps.push(Step::SetPrivateKey { private_key: desired.private_key.clone() });
    }
    if observed.listen_port != desired.listen_port {
        steps.push(Step::SetListenPort { port: desired.listen_port });
    }
    if observed.fwmark != desired.fwmark {
        steps.push(Step::SetFwmark { fwmark: desired.fwmark });
    }
    address_steps(desired, observed, steps);
    if !observed.up {
        steps.push(Step::SetUp);
    }
    Ok(())
}

/// Clients would notice only 15 s later that the link has lost their sessions.
pub(super) fn opening(observed: &ObservedState) -> Option<Step> {
    let link = observed.interface.as_ref()?;
    link.sessions_ended.then_some(Step::OpenSessions)
}

/// Addresses that are missing come before those that are left over go, but for those of which the
/// kernel holds only one.
fn address_steps(desired: &DesiredInterface, observed: &ObservedInterface, steps: &mut Vec<Step>) {
    let tagged = observed.addresses.iter().filter(|(_, tag)| **tag == Tag::Ours);
    let mut orphans: BTreeSet<IpNet> = tagged.map(|(address, _)| *address).collect();
    orphans.retain(|address| !desired.addresses.contains(address));
    for to in desired.addresses.iter().filter(|a| !observed.addresses.contains_key(a)) {
        let same = |from: &&IpNet| matches!(to, IpNet::V6(_)) && from.addr() == to.addr();
        let from = orphans.iter().find(same).copied();
        steps.push(match from.and_then(|from| orphans.take(&from)) {
            Some(from) => Step::ReplaceAddress { from, to: *to },
            None => Step::AddAddress { address: *to },
        });
    }
    steps.extend(orphans.into_iter().map(|address| Step::RemoveAddress { address }));
}

/// The table guards one interface, by its name. Before it is loaded for another, the link that has
/// the former name must be gone: it is up with every peer, and no rule would apply to it. A table
/// whose fixed rules are not ours as we know them may guard any.
fn refuse_unguarded(desired: &DesiredInterface, observed: &ObservedState) -> Result<(), PlanError> {
    let Some(table) = &observed.firewall else { return Ok(()) };
    let guards = |name: &str| match table.base() {
        Some(base) => base.interface.as_str() == name,
        None => true,
    };
    let names = observed.interface.iter().map(|link| &link.name).chain(observed.strays.keys());
    let mut others = names.filter(|name| ***name != *desired.name.as_str());
    others.find(|name| guards(name)).map_or(Ok(()), |found| {
        Err(PlanError::StillGuarded { found: found.clone(), name: desired.name.clone() })
    })
}

/// A new link has no key, no port and no address, and comes up last.
fn set_up_new_link(desired: &DesiredInterface, steps: &mut Vec<Step>) {
    steps.push(Step::SetMtu { bytes: desired.mtu_bytes });
    steps.push(Step::SetPrivateKey { private_key: desired.private_key.clone() });
    steps.push(Step::SetListenPort { port: desired.listen_port });
    if desired.fwmark != 0 {
        steps.push(Step::SetFwmark { fwmark: desired.fwmark });
    }
    steps.extend(desired.addresses.iter().map(|address| Step::AddAddress { address: *address }));
    steps.push(Step::SetUp);
}

/// Takes over a link that is evidently this gateway's, and refuses every other.
fn claim_link(
    desired: &DesiredInterface,
    observed: &ObservedInterface,
    has_no_peers: bool,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let name = observed.name.clone();
    let renamed = *name != *desired.name.as_str();
    let ours = desired.private_key.public_key();
    match &observed.owner {
        LinkOwner::Ours(gateway_id) if *gateway_id == desired.gateway_id => Ok(()),
        LinkOwner::Ours(owner) if renamed => {
            Err(PlanError::TwoGateways { found: name, owner: *owner, ours: desired.gateway_id })
        }
        LinkOwner::Ours(owner) => {
            Err(PlanError::OtherGateway { name, owner: *owner, ours: desired.gateway_id })
        }
        LinkOwner::Foreign(kind) => Err(PlanError::ForeignLink { name, kind: kind.clone() }),
        LinkOwner::Unmarked => match observed.public_key {
            // Holding our private key is proof enough: an earlier run died between making the
            // link and marking it, or wg-quick ran this gateway before.
            Some(found) if found == ours => {
                steps.push(Step::ClaimLink { gateway_id: desired.gateway_id });
                Ok(())
            }
            Some(found) => Err(PlanError::OtherKey { name, found: found.to_string() }),
            // A device that was started and never configured, as a userspace device is when its
            // service comes before us, or when an earlier run died right after it started one.
            None if has_no_peers => {
                steps.push(Step::ClaimLink { gateway_id: desired.gateway_id });
                Ok(())
            }
            None => Err(PlanError::OtherKey { name, found: "none, but peers".into() }),
        },
    }
}
