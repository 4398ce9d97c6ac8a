//! A host whose firewall refuses every change lets no peer in, and one that refuses a profile loads
//! all others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gatepost::dataplane::nft::{Difference, Nft, NftError, ProfileCounters};
use gatepost::dataplane::{
    Backend, Dataplane, Firewall, Host, HostSettings, RefusedStep, SharedObserved,
};
use gatepost::model::{
    FirewallBase, FirewallChange, InterfaceName, Masquerade, Networks, ObservedFirewall,
    ObservedState, Profile, ProfileId,
};
use gatepost::plan::{Phase, Plan, Step};
use nix::errno::Errno;

use crate::netns::Netns;
use crate::rig::{Gateway, add, interface, ours};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("without_a_fence_there_is_no_link_and_no_peer", no_fence),
    ("a_profile_that_the_kernel_refuses_keeps_no_other_back", one_profile),
];

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
        let change = FirewallChange { load_base: Some(base(&name)), ..FirewallChange::default() };
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
        assert_eq!(ours(host.observe().unwrap().state), ObservedState::default());
        assert!(!netns.exec("ip link").contains(name.as_str()));
    });
}

fn base(name: &InterfaceName) -> FirewallBase {
    FirewallBase {
        interface: name.clone(),
        masquerade: Masquerade::All,
        deny_log: Some(gatepost::model::NflogGroup::DEFAULT),
        allow_inbound: false,
        gateway_opens: Some(Default::default()),
        networks: Networks::new("10.64.0.0/24".parse().unwrap(), [].iter()),
        flows_per_address: None,
        gate: None,
    }
}

/// So many single addresses: more than 32 are a set.
fn profile(count: u32) -> Arc<Profile> {
    let allow4 = (0..count).map(|number| (number * 2, number * 2)).collect();
    Arc::new(Profile { allow4, ..Profile::default() })
}

/// The kernel's firewall, but for one profile that it refuses, as a kernel does whose sets take fewer
/// elements.
struct WithoutOne(Nft, Arc<Profile>);

impl Firewall for WithoutOne {
    fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError> {
        self.0.observe()
    }

    fn difference(&self) -> Option<&Difference> {
        self.0.difference()
    }

    fn is_current(&mut self) -> Result<bool, NftError> {
        self.0.is_current()
    }

    fn apply(
        &mut self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> Result<(), NftError> {
        let mut profiles = change.put_profiles.iter();
        match profiles.find(|(_, (_, profile))| *profile == self.1) {
            Some((id, _)) => {
                let request = format!("add 1 elements of set p_{}_4", id.0);
                Err(NftError::Refused { request, errno: Errno::ENFILE })
            }
            None => self.0.apply(change, observed),
        }
    }

    fn slow_profiles(
        &self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> BTreeSet<ProfileId> {
        self.0.slow_profiles(change, observed)
    }

    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, NftError> {
        self.0.counters_of(id)
    }

    fn remove(&mut self) -> Result<bool, NftError> {
        self.0.remove()
    }
}

fn one_profile(backend: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let name = interface();
        let device_exe = std::env::current_exe().unwrap();
        let settings = HostSettings { interface: name.clone(), backend, device_exe };
        let firewall = WithoutOne(Nft::open().unwrap(), profile(43));
        let mut host = Host::open(settings, firewall).unwrap();
        let observed = SharedObserved::from(ObservedState::default());
        let mut apply = |phase, change| {
            host.apply(&Plan::new(vec![Step::Firewall { phase, change }]), &observed)
        };
        let prefix = |number: u32| format!("10.7.0.{number}/32").parse().unwrap();
        let before = FirewallChange {
            load_base: Some(base(&name)),
            put_profiles: [(ProfileId(1), (true, profile(1)))].into(),
            assign: [2, 3, 60].map(|number| (prefix(number), ProfileId(1))).into(),
            ..FirewallChange::default()
        };
        assert_eq!(apply(Phase::Fence, before).applied, 1);

        // All but one of these profiles fit.
        let numbers = 10..50u32;
        let change = FirewallChange {
            unassign: vec![prefix(60)],
            put_profiles: numbers
                .clone()
                .map(|number| (ProfileId(number), (true, profile(20 + number))))
                .collect(),
            assign: numbers.map(|number| (prefix(number), ProfileId(number))).collect(),
            ..FirewallChange::default()
        };
        let outcome = apply(Phase::Policy, change);
        assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
        let [refused] = &outcome.unloadable[..] else { panic!("{outcome:?}") };
        assert_eq!(refused.profile, profile(43));
        assert!(refused.why.contains("set p_23_4"), "{}", refused.why);

        let read = host.observe().unwrap().state.firewall.unwrap();
        let known = observed.read().firewall.clone().unwrap();
        assert_eq!(read.assignments(), known.assignments());
        assert_eq!(read.profiles(), known.profiles());
        let mut places: BTreeMap<_, _> = [2, 3].map(|it| (prefix(it), ProfileId(1))).into();
        places.extend((10..50).map(|number| (prefix(number), ProfileId(number))));
        places.insert(prefix(23), ProfileId::NOTHING);
        assert_eq!(known.assignments(), &places);
        assert_eq!(known.profiles().len(), 40, "the one before, and 39 of 40 new ones");
    });
}
