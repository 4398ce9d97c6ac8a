//! A kernel made of values, with the real one's quirks, for tests and simulation.
//!
//! Its quirks were seen in the kernel and are checked there by the same random plans: see
//! `tests/dataplane`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{CutArea, Plan, Step};
use crate::model::{LinkOwner, ObservedState, Peer, Profile, PublicKey, Tag};

/// Why the model kernel refused a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such link (ENODEV)")]
    NoLink,
    #[error("the link exists (EEXIST)")]
    LinkExists,
    #[error("the link is no WireGuard device (EOPNOTSUPP)")]
    NotWireGuard,
    #[error("the route exists (EEXIST)")]
    RouteExists,
    #[error("no such route or address (ESRCH)")]
    NotThere,
    #[error("the link is down (ENETDOWN)")]
    LinkDown,
    #[error("no such table (ENOENT)")]
    NoTable,
    #[error("a profile cannot be loaded (ENFILE)")]
    Unloadable,
    #[error("no memory for a profile (ENOMEM)")]
    NoMemory,
}

/// How the model kernel fails a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing.
    Refuse,
    /// The kernel carries out the whole step, and the acknowledgement is lost.
    LoseAnswer,
    /// It does a part and refuses the rest: of a step that names several prefixes, those whose bit
    /// is set, counted from the lowest. A new link stays unmarked. Other steps are refused whole.
    Partly { prefixes: u64 },
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was applied and acknowledged.
    Applied,
    /// It was applied without the profiles that the kernel refuses.
    AppliedInPart,
    /// It was not acknowledged.
    Refused,
    /// The [`Interlock`] did not let it reach the kernel.
    Withheld,
}

/// The model kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelKernel {
    /// The state that a complete reading would show.
    pub state: ObservedState,
    /// Connection tracking, which no reading shows and no loss of a link or a table empties: the
    /// address that each flow was opened from, and by whom.
    pub flows: BTreeSet<(IpAddr, PublicKey)>,
    /// Profiles that it refuses, with the whole transaction that brings one.
    pub unloadable: BTreeSet<Arc<Profile>>,
    /// Profiles that it has no memory for, so that it refuses the whole transaction, too.
    pub too_large: BTreeSet<Arc<Profile>>,
    /// It has no memory for a whole table beside the one that is there.
    pub is_full: bool,
}

impl ModelKernel {
    /// Applies the first `count` steps of a plan, as a process would that is killed after them.
    ///
    /// # Errors
    /// The first [`Refusal`]; the steps applied before it stay applied.
    pub fn apply_first(&mut self, plan: &Plan, count: usize) -> Result<(), Refusal> {
        plan.steps().iter().take(count).try_for_each(|step| self.apply_step(step))
    }

    /// Applies one step.
    ///
    /// # Errors
    /// A [`Refusal`] with the error number the real kernel gives.
    pub fn apply_step(&mut self, step: &Step) -> Result<(), Refusal> {
        self.check(step)?;
        match step {
            // `set_peer` in drivers/net/wireguard/netlink.c: a peer with the device's own key is
            // skipped, and the answer is success.
            Step::AddPeer { key, .. } if self.own_key() == Some(*key) => return Ok(()),
            // `allowedips_insert`: a prefix that another peer holds moves silently.
            Step::AddPeer { key, peer } => {
                self.steal(*key, &peer.allowed_ips);
                if let Some(had) = self.state.peers.get(key) {
                    let mut merged = peer.clone();
                    merged.allowed_ips =
                        had.allowed_ips.iter().chain(peer.allowed_ips.iter()).collect();
                    self.state.peers.insert(*key, merged);
                    return Ok(());
                }
            }
            Step::WidenPeer { key, allowed_ips } if self.state.peers.contains_key(key) => {
                self.steal(*key, allowed_ips);
            }
            // `wg_set_device`: a peer with the new private key's public key is removed.
            Step::SetPrivateKey { private_key } => {
                self.state.peers.remove(&private_key.public_key());
            }
            Step::CutFlows { prefixes } => {
                let area = CutArea::new(prefixes, &self.state, BTreeSet::new);
                self.flows.retain(|(source, _)| !area.contains(*source));
            }
            _ => {}
        }
        self.state.apply(step);
        Ok(())
    }

    /// Applies the part of a failing step that the kernel carries out before it fails.
    pub(super) fn fail(&mut self, step: &Step, fault: Fault) {
        let done = match fault {
            Fault::Refuse => None,
            Fault::LoseAnswer => Some(step.clone()),
            Fault::Partly { prefixes } => self.part_of(step, prefixes),
        };
        let made = done.is_some_and(|done| self.apply_step(&done).is_ok());
        if let (true, Fault::Partly { .. }, Some(link)) = (made, fault, &mut self.state.interface)
            && matches!(step, Step::CreateLink { .. })
        {
            link.owner = LinkOwner::Unmarked;
        }
    }

    fn part_of(&self, step: &Step, bits: u64) -> Option<Step> {
        let mut index = 0..;
        let mut chosen = |_: &IpNet| index.next().is_some_and(|bit| bits >> (bit % 64) & 1 == 1);
        Some(match step {
            Step::CreateLink { .. } => step.clone(),
            Step::CutFlows { prefixes } => {
                Step::CutFlows { prefixes: prefixes.iter().copied().filter(chosen).collect() }
            }
            Step::AddPeer { key, peer } => {
                let allowed_ips = peer.allowed_ips.iter().filter(chosen).collect();
                Step::AddPeer { key: *key, peer: Peer { allowed_ips, ..peer.clone() } }
            }
            Step::WidenPeer { key, allowed_ips } => {
                let allowed_ips = allowed_ips.iter().filter(chosen).collect();
                Step::WidenPeer { key: *key, allowed_ips }
            }
            Step::NarrowPeer { key, allowed_ips } => {
                let had = self.state.peers.get(key)?.allowed_ips.iter();
                let kept = had.filter(|prefix| allowed_ips.contains(prefix) || chosen(prefix));
                Step::NarrowPeer { key: *key, allowed_ips: kept.collect() }
            }
            _ => return None,
        })
    }

    /// The link is deleted: its peers, addresses and routes go with it. Our table stays.
    pub fn lose_link(&mut self) {
        self.state.interface = None;
        self.state.peers.clear();
        self.state.routes.clear();
    }

    pub(super) fn check(&self, step: &Step) -> Result<(), Refusal> {
        let link = self.state.interface.as_ref();
        match (step, link) {
            (Step::Firewall { change, .. }, _) => {
                let exists = self.state.firewall.is_some() || change.load_base.is_some();
                let replaces = self.state.firewall.is_some() && change.load_base.is_some();
                let brings = |refused: &BTreeSet<Arc<Profile>>| {
                    change.put_profiles.values().any(|(_, profile)| refused.contains(profile))
                };
                match exists {
                    false => Err(Refusal::NoTable),
                    true if brings(&self.too_large) || replaces && self.is_full => {
                        Err(Refusal::NoMemory)
                    }
                    true if brings(&self.unloadable) => Err(Refusal::Unloadable),
                    true => Ok(()),
                }
            }
            (Step::CutFlows { .. } | Step::AddRules { .. } | Step::RemoveRules { .. }, _) => Ok(()),
            (Step::FreeLink { name }, Some(link)) if link.name != *name => Err(Refusal::NoLink),
            (Step::TakeDown { name }, _) if self.state.strays.contains_key(name) => Ok(()),
            (Step::TakeDown { .. }, _) => Err(Refusal::NoLink),
            (Step::RenameLink { from, .. }, Some(link)) if link.name != *from => {
                Err(Refusal::NoLink)
            }
            (Step::CreateLink { .. }, Some(_)) => Err(Refusal::LinkExists),
            (Step::CreateLink { .. }, None) => Ok(()),
            (_, None) => Err(Refusal::NoLink),
            (Step::AddRoute { .. }, Some(link)) if !link.up => Err(Refusal::LinkDown),
            (Step::AddRoute { prefix }, _) if self.state.routes.contains_key(prefix) => {
                Err(Refusal::RouteExists)
            }
            (Step::RemoveRoute { prefix }, _)
                if self.state.routes.get(prefix) != Some(&Tag::Ours) =>
            {
                Err(Refusal::NotThere)
            }
            (Step::RemoveAddress { address }, Some(link))
                if !link.addresses.contains_key(address) =>
            {
                Err(Refusal::NotThere)
            }
            (_, Some(link)) if matches!(link.owner, LinkOwner::Foreign(_)) => {
                Err(Refusal::NotWireGuard)
            }
            _ => Ok(()),
        }
    }

    fn own_key(&self) -> Option<PublicKey> {
        self.state.interface.as_ref().and_then(|link| link.public_key)
    }

    fn steal(&mut self, key: PublicKey, prefixes: &crate::model::AllowedIps) {
        for (_, peer) in self.state.peers.iter_mut().filter(|(other, _)| **other != key) {
            if prefixes.iter().any(|prefix| peer.allowed_ips.contains(&prefix)) {
                peer.allowed_ips = peer.allowed_ips.difference(prefixes);
            }
        }
    }
}
