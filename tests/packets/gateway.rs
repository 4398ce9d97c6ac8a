//! The gateway under test: rows, desired state, plan, kernel, as the agent does it.

use gatepost::dataplane::nft::Nft;
use gatepost::dataplane::{Dataplane, Host, HostSettings, SharedObserved};
use gatepost::model::DesiredState;
use gatepost::plan::{Scope, plan};

use crate::lab::Lab;
use crate::set::News;

/// Use it on one thread of the gateway's namespace.
pub struct Gateway {
    host: Host<Nft>,
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
        let host = Host::open(settings, Nft::open().unwrap()).unwrap();
        Self { host, observed: SharedObserved::default(), desired: None }
    }

    /// Makes the kernel what the rows say, and proves it.
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
        assert_eq!((outcome.applied, &outcome.refused[..]), (steps.steps().len(), &[][..]));
        let reading = self.host.observe().unwrap().state;
        assert_eq!(reading, *self.observed.read(), "what was acknowledged is what is read back");
        let left = plan(desired, &reading, &Scope::Everything).unwrap();
        assert!(left.is_empty(), "left to do: {left:?}");
    }
    /// How many packets of peers the present profiles have denied so far.
    pub fn denied_packets(&mut self) -> u64 {
        let counters = self.host.firewall().read_counters().unwrap();
        counters.values().map(|counter| counter.denied.packets).sum()
    }
}
