//! The agent, as far as it changes the kernel.

use std::sync::Arc;

use gatepost::dataplane::nft::{Nft, Ownership};
use gatepost::dataplane::{Dataplane, Host, HostSettings, RefusedStep, SharedObserved};
use gatepost::model::{DesiredState, FailClosed, Gate, MarkBit};
use gatepost::plan::{Plan, Scope, Step, plan};

use super::mutation::Tampering;
use crate::lab::Lab;
use crate::set::{Chance, PolicySet};

/// Dropping it is killing it.
pub struct Agent {
    host: Host<Nft>,
    observed: SharedObserved,
}

impl Agent {
    /// Starts one, on a thread of the gateway's namespace. Now and then other programs may change its
    /// table.
    pub fn start(lab: &Lab, chance: &mut Chance, tampering: &Tampering) -> Self {
        let settings = HostSettings {
            interface: lab.interface.clone(),
            backend: lab.backend,
            device_exe: std::env::current_exe().unwrap(),
        };
        let owns = chance.once_in(2) && !tampering.edits();
        let ownership = if owns { Ownership::Taken } else { Ownership::Shared };
        let host = Host::open(settings, Nft::open_with(ownership).unwrap()).unwrap();
        Self { host, observed: SharedObserved::default() }
    }

    /// Reads the kernel.
    pub fn look(&mut self, tampering: &Tampering) {
        let mut state = self.host.observe().unwrap().state;
        tampering.hide(&mut state);
        self.observed = state.into();
    }

    /// What is to be done for these rows.
    pub fn plan(&self, lab: &Lab, set: &PolicySet, tampering: &Tampering) -> Plan {
        let mut local = set.local(&lab.interface);
        if tampering.leaves_gate() {
            local.gate = Gate::new(FailClosed::Always, MarkBit::default());
        }
        let desired = DesiredState::build(Arc::new(local), set.snapshot()).unwrap();
        plan(&desired, &self.observed.read(), &Scope::Everything).unwrap()
    }

    pub fn apply(&mut self, step: &Step, lab: &Lab, tampering: &mut Tampering) -> Vec<RefusedStep> {
        let refused = self.host.apply(&Plan::new(vec![step.clone()]), &self.observed).refused;
        tampering.tamper(lab, step);
        refused
    }

    /// Makes the kernel match the rows, undisturbed.
    pub fn settle(&mut self, lab: &Lab, set: &PolicySet, tampering: &mut Tampering) {
        self.look(tampering);
        let all = self.plan(lab, set, tampering);
        for step in all.steps() {
            assert!(self.apply(step, lab, tampering).is_empty(), "{step}");
        }
    }
}
