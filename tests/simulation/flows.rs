//! No peer inherits flows: none has an address from which another opened a flow that is still tracked.
//!
//! Known limits are left out. Where the kernel refused to close a prefix, or another program took it from its peer,
//! the next holder may get the flows of the former one, if both reach the same. And a cut holds only if nobody else
//! changes the table until the prefix has left its peer.

use std::collections::BTreeSet;

use gatepost::model::{FirewallChange, ObservedState, ProfileId};
use gatepost::plan::{Plan, Step};
use ipnet::IpNet;

use super::bytes::Bytes;
use super::reach::{Reach, holder, is_judged};
use super::world::World;

/// Prefixes whose flows are left out.
#[derive(Default)]
pub struct LeftOut {
    /// Their closing was refused.
    unclosed: BTreeSet<IpNet>,
    /// Another program interfered, and the agent has not put that right yet.
    disturbed: BTreeSet<IpNet>,
}

impl LeftOut {
    /// Takes in a change that was to close prefixes, and that the kernel refused.
    pub fn unclosed(&mut self, change: &FirewallChange) {
        let closed = change.assign.iter().filter(|(_, id)| **id == ProfileId::NOTHING);
        self.unclosed.extend(closed.map(|(prefix, _)| *prefix));
        self.unclosed.extend(&change.unassign);
    }

    /// Takes in prefixes whose flows were cut while another program changed something.
    pub fn disturbed(&mut self, prefixes: BTreeSet<IpNet>) {
        self.disturbed.extend(prefixes);
    }
}

/// The prefixes whose flows a plan cuts.
pub fn cut_by(plan: &Plan) -> BTreeSet<IpNet> {
    let cuts = plan.steps().iter().filter_map(|step| match step {
        Step::CutFlows { prefixes } => Some(prefixes),
        _ => None,
    });
    cuts.flatten().copied().collect()
}

fn held(state: &ObservedState) -> BTreeSet<IpNet> {
    state.peers.values().flat_map(|peer| peer.allowed_ips.iter()).collect()
}

impl World {
    /// Another program changes the kernel.
    pub fn edit(&mut self, bytes: &mut Bytes<'_>) {
        let before = held(&self.host.kernel.state);
        let what = self.host.edit(bytes);
        let now = held(&self.host.kernel.state);
        self.oracle.left_out.disturbed.extend(before.difference(&now));
        self.note(|| format!("another program: {what}"));
    }

    /// Packets open flows, except while no table judges them: then the gate drops them.
    pub fn flows_open(&mut self) {
        let kernel = &mut self.host.kernel;
        if is_judged(&kernel.state) {
            kernel.flows.extend(Reach::of_kernel(&kernel.state).flows());
        }
    }

    /// No peer has the flows of another.
    pub fn check_flows(&mut self) {
        let state = &self.host.kernel.state;
        let LeftOut { unclosed, disturbed } = &self.oracle.left_out;
        let inherited = self.host.kernel.flows.iter().find_map(|(source, opener)| {
            if unclosed.union(disturbed).any(|prefix| prefix.contains(source)) {
                return None;
            }
            let holder = holder(state, *source).filter(|holder| holder != opener)?;
            Some(format!("{holder} has {source}, from where {opener} opened a flow"))
        });
        if let Some(inherited) = inherited {
            self.fail(inherited);
        }
    }

    /// The agent has put right all that other programs did. From now on the flows of those prefixes count, but for
    /// those that there are.
    pub fn all_is_put_right(&mut self) {
        let disturbed = std::mem::take(&mut self.oracle.left_out.disturbed);
        let flows = &mut self.host.kernel.flows;
        flows.retain(|(source, _)| !disturbed.iter().any(|prefix| prefix.contains(source)));
        self.flows_open();
    }
}
