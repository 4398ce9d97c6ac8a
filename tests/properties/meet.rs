//! What the meet promises: it only takes away, whatever the rows say and the kernel holds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gatepost::model::{DesiredState, ObservedState, Profile};
use gatepost::plan::{Allowed, Fate, ModelKernel, Phase, Plan, Step, meet, narrow};
use proptest::prelude::*;

use super::packets::{before, kernel_of};
use super::probes::{Filter, Packet, Probes, lets_through};
use super::refusals::faults;
use super::rows::{private_key, tables};

fn narrowing(desired: &DesiredState, observed: &ObservedState) -> Plan {
    let met = meet(&Allowed::from(desired), observed);
    narrow(&met, observed, private_key().public_key(), true)
}

fn passing(kernel: &ModelKernel, probes: &Probes, desired: &DesiredState) -> BTreeSet<Packet> {
    probes.passing(&kernel.state, &Filter::of(&kernel.state, desired))
}

/// Few addresses, of which the profiles allow or list some.
fn addresses() -> impl Iterator<Item = IpAddr> {
    (0..8)
        .map(|number| Ipv4Addr::new(10, 0, 0, number).into())
        .chain((0..8).map(|number| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number).into()))
}

fn profile() -> impl Strategy<Value = Profile> {
    let ranges = || prop::collection::vec((0u8..8, 0u8..3), 0..3);
    let servers = prop::sample::subsequence(addresses().collect::<Vec<_>>(), 0..6);
    (ranges(), ranges(), servers).prop_map(|(four, six, servers)| Profile {
        allow4: four.into_iter().map(|(at, more)| range(0x0a00_0000, at, more)).collect(),
        allow6: six.into_iter().map(|(at, more)| range(0xfd00 << 112, at, more)).collect(),
        dns_servers: servers.into(),
    })
}

fn range<T: Copy + From<u8> + std::ops::Add<Output = T>>(base: T, at: u8, more: u8) -> (T, T) {
    (base + T::from(at), base + T::from(at + more))
}

fn is_guarded(kernel: &ModelKernel, desired: &DesiredState) -> bool {
    matches!(Filter::of(&kernel.state, desired), Filter::Table(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_meet_never_adds_and_is_idempotent(
        old in tables(), new in tables(), before in before(),
    ) {
        let (old, new) = (old.build(), new.build());
        let mut kernel = kernel_of(&old);
        before.befall(&mut kernel);
        let met = meet(&Allowed::from(&new), &kernel.state);
        for (key, kept) in &met.peers {
            let had = &kernel.state.peers[key].allowed_ips;
            prop_assert_eq!(&kept.intersection(had), kept);
            prop_assert_eq!(&kept.intersection(&new.peers()[key].allowed_ips), kept);
        }
        prop_assert_eq!(meet(&met, &kernel.state), met);
    }

    #[test]
    fn what_passes_after_a_narrowing_step_passed_before_it_whatever_is_refused(
        old in tables(), new in tables(), before in before(), faults in faults(),
    ) {
        let (old, new) = (old.build(), new.build());
        let probes = Probes::of([&old, &new]);
        let mut kernel = kernel_of(&old);
        before.befall(&mut kernel);
        let guarded = is_guarded(&kernel, &new);
        let first = narrowing(&new, &kernel.state);
        for step in first.steps() {
            prop_assert!(
                matches!(
                    step,
                    Step::Firewall { phase: Phase::Revoke, .. }
                        | Step::CutFlows { .. }
                        | Step::RemovePeer { .. }
                        | Step::NarrowPeer { .. }
                ),
                "{step}"
            );
        }
        let mut observed = kernel.state.clone();
        let mut passed = passing(&kernel, &probes, &new);
        let began_with = passed.clone();
        let (mut faults, mut all_applied) = (faults.iter().cycle(), true);
        let mut leak = None;
        kernel.apply_plan(
            &first,
            &mut observed,
            |_| faults.next().copied().flatten(),
            |kernel, step, fate| {
                let now = passing(kernel, &probes, &new);
                let more = now.difference(&passed).next().copied();
                leak = leak.take().or(more.map(|packet| (step.to_string(), packet)));
                passed = now;
                all_applied &= fate == Fate::Applied;
            },
        );
        // Without rules of ours, the addresses of a removed peer fall to the one around it.
        prop_assert!(!guarded || leak.is_none(), "{leak:?}\nof {:#?}", first.steps());
        if guarded && all_applied {
            let left = passed.difference(&probes.allowed_by(&new)).next().copied();
            prop_assert!(left.is_none(), "still passes: {left:?}\nof {:#?}", first.steps());
            // Inside the pool no peer has a prefix within another's: nothing else is taken.
            let pool = new.gateway().vpn_cidr;
            let allowed = probes.allowed_by(&new);
            let mut kept = began_with.intersection(&allowed).copied();
            let lost = kept.find(|it| pool.contains(&it.source) && !passed.contains(it));
            prop_assert!(lost.is_none(), "taken away: {lost:?}\nof {:#?}", first.steps());
        }
        // The refusals stop.
        let again = narrowing(&new, &kernel.state);
        kernel.apply_first(&again, usize::MAX).unwrap();
        let left = narrowing(&new, &kernel.state);
        prop_assert!(left.is_empty(), "left to do: {:#?}", left.steps());
        prop_assert!(kernel.state.peers.keys().all(|key| new.peers().contains_key(key)));
    }

    #[test]
    fn what_two_profiles_both_allow_is_what_each_of_them_allows(one in profile(), other in profile()) {
        let both = one.meet(&other);
        for address in addresses() {
            for dns in [false, true] {
                let each = lets_through(&one, address, dns) && lets_through(&other, address, dns);
                prop_assert_eq!(lets_through(&both, address, dns), each, "{} {}", address, dns);
            }
        }
        prop_assert!(both.dns_servers.is_sorted_by(|one, next| one < next));
        prop_assert_eq!(&both, &other.meet(&one));
        prop_assert!(both.is_within(&one) && both.is_within(&other));
    }

    #[test]
    fn a_kernel_that_is_what_is_desired_has_nothing_to_withdraw(tables in tables()) {
        let desired = tables.build();
        let kernel = kernel_of(&desired);
        prop_assert!(narrowing(&desired, &kernel.state).is_empty());
    }
}
