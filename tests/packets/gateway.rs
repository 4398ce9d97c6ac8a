//! The gateway under test: rows, desired state, plan, kernel, as the agent does it.

use std::collections::BTreeMap;

use gatepost::dataplane::nft::{Nft, ProfileCounters};
use gatepost::dataplane::{Dataplane, Host, HostSettings, SharedObserved};
use gatepost::model::{DesiredState, ProfileId};
use gatepost::plan::{Scope, plan};

use crate::lab::Lab;
use crate::set::News;
use crate::shifted::Shifted;

/// Use it on one thread of the gateway's namespace.
pub struct Gateway {
    host: Host<Shifted>,
    observed: SharedObserved,
    desired: Option<DesiredState>,
}

impl Gateway {
    pub fn open(lab: &Lab) -> Self {
        let settings = HostSettings {
            interface: lab.interface.clone(),
            backend: lab.backend,
            device_exe: std::env::current_exe().unwrap(),
        };
        let firewall = Shifted { nft: Nft::open().unwrap(), shifted: false };
        let host = Host::open(settings, firewall).unwrap();
        Self { host, observed: SharedObserved::default(), desired: None }
    }

    /// From now on new profiles stand in a block, or each in a chain of its own. The others stay
    /// where they are.
    pub fn shift(&mut self, shifted: bool) {
        self.host.firewall().shifted = shifted;
        self.observed = self.host.observe().unwrap().state.into();
    }

    /// Makes the kernel match the rows, and proves it.
    pub fn follow(&mut self, news: News) {
        let scope = match (news, &mut self.desired) {
            (News::Changed(rows), Some(desired)) => {
                let touched = desired.apply(rows);
                Scope::Changed { peers: touched.peers, prefixes: touched.prefixes }
            }
            (News::Everything(local, rows), desired) => {
                *desired = Some(DesiredState::build(local, rows).unwrap());
                self.observed = self.host.observe().unwrap().state.into();
                Scope::Everything
            }
            (News::Changed(_), None) => panic!("nothing to change yet"),
        };
        let desired = self.desired.as_ref().unwrap();
        let steps = plan(desired, &self.observed.read(), &scope).unwrap();
        let outcome = self.host.apply(&steps, &self.observed);
        let count = steps.steps().len();
        assert_eq!((outcome.applied, outcome.refused.len()), (count, 0), "{outcome:?}");
        let reading = self.host.observe().unwrap().state;
        assert_eq!(reading, *self.observed.read(), "what was acknowledged is what is read back");
        let left = plan(desired, &reading, &Scope::Everything).unwrap();
        assert!(left.is_empty(), "left to do: {left:?}");
    }

    /// How many packets of peers the present profiles have denied so far.
    pub fn denied_packets(&mut self) -> u64 {
        self.counters().values().map(|counter| counter.denied.packets).sum()
    }

    /// How many profiles that judged packets stand in blocks, and how many have a chain.
    pub fn judges(&mut self, lab: &Lab) -> [usize; 2] {
        let mut counters = self.counters();
        counters.retain(|_, counter| counter.allowed.packets + counter.denied.packets > 0);
        let listed = lab.gateway.exec("nft list table inet gatepost");
        let with_chain =
            counters.keys().filter(|id| listed.contains(&format!("chain p_{} {{", id.0)));
        let with_chain = with_chain.count();
        [counters.len() - with_chain, with_chain]
    }

    /// Of every profile that the kernel has.
    fn counters(&mut self) -> BTreeMap<ProfileId, ProfileCounters> {
        let nft = &mut self.host.firewall().nft;
        let table = nft.observe().unwrap().unwrap();
        table
            .profiles()
            .keys()
            .map(|id| (*id, nft.read_counters_of(*id).unwrap().unwrap()))
            .collect()
    }
}
