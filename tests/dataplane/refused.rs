//! A host whose firewall refuses every change lets no peer in.

use gatepost::dataplane::nft::{Difference, NftError, ProfileCounters};
use gatepost::dataplane::{
    Backend, Dataplane, Firewall, Host, HostSettings, RefusedStep, SharedObserved,
};
use gatepost::model::{
    FirewallBase, FirewallChange, Masquerade, ObservedFirewall, ObservedState, ProfileId,
};
use gatepost::plan::{Phase, Plan, Step};
use nix::errno::Errno;

use crate::netns::Netns;
use crate::rig::{Gateway, add, interface};
use crate::runner::Test;

pub const TESTS: &[Test] = &[("without_a_fence_there_is_no_link_and_no_peer", no_fence)];

/// Refuses, as a kernel does that has no memory for the first transaction.
struct RefusingFirewall;

impl Firewall for RefusingFirewall {
    fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError> {
        Ok(None)
    }

    fn difference(&self) -> Option<&Difference> {
        None
    }

    fn is_current(&mut self) -> Result<bool, NftError> {
        Ok(true)
    }

    fn apply(&mut self, _: &FirewallChange, _: Option<&ObservedFirewall>) -> Result<(), NftError> {
        Err(NftError::Refused { request: "add the table".into(), errno: Errno::ENOMEM })
    }

    fn counters_of(&mut self, _: ProfileId) -> Result<Option<ProfileCounters>, NftError> {
        Ok(None)
    }

    fn remove(&mut self) -> Result<bool, NftError> {
        Ok(false)
    }
}

fn no_fence(backend: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let name = interface();
        let device_exe = std::env::current_exe().unwrap();
        let settings = HostSettings { interface: name.clone(), backend, device_exe };
        let mut host = Host::open(settings, RefusingFirewall).unwrap();
        let base = FirewallBase {
            interface: name.clone(),
            masquerade: Masquerade::All,
            deny_log: true,
            allow_inbound: false,
        };
        let change = FirewallChange { load_base: Some(base), ..FirewallChange::default() };
        let mut steps = vec![Step::Firewall { phase: Phase::Fence, change }];
        steps.extend(Gateway::open(name.clone(), backend).steps_up());
        steps.push(add(1, &["10.7.0.2/32"]));
        let observed = SharedObserved::from(ObservedState::default());
        let outcome = host.apply(&Plan::new(steps), &observed);
        let [RefusedStep { step: Step::Firewall { phase: Phase::Fence, .. }, .. }] =
            &outcome.refused[..]
        else {
            panic!("{outcome:?}");
        };
        assert_eq!(outcome.applied, 0);
        assert_eq!(*observed.read(), ObservedState::default());
        assert_eq!(host.observe().unwrap().state, ObservedState::default());
        assert!(!netns.exec("ip link").contains(name.as_str()));
    });
}
