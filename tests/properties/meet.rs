//! What the meet promises: it only takes away, whatever the rows say and the kernel holds.

use std::collections::BTreeSet;

use gatepost::model::{DesiredState, ObservedState};
use gatepost::plan::{Allowed, Fate, ModelKernel, Phase, Plan, Step, meet, narrow};
use proptest::prelude::*;

use super::packets::{before, kernel_of};
use super::probes::{Filter, Packet, Probes};
use super::refusals::faults;
use super::rows::{private_key, tables};

fn narrowing(desired: &DesiredState, observed: &ObservedState) -> Plan {
    let met = meet(&Allowed::from(desired), observed);
    narrow(&met, observed, private_key().public_key(), true)
}

fn passing(kernel: &ModelKernel, probes: &Probes, desired: &DesiredState) -> BTreeSet<Packet> {
    probes.passing(&kernel.state, &Filter::of(&kernel.state, desired))
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
        }
        // The refusals stop.
        let again = narrowing(&new, &kernel.state);
        kernel.apply_first(&again, usize::MAX).unwrap();
        let left = narrowing(&new, &kernel.state);
        prop_assert!(left.is_empty(), "left to do: {:#?}", left.steps());
        prop_assert!(kernel.state.peers.keys().all(|key| new.peers().contains_key(key)));
    }

    #[test]
    fn a_kernel_that_is_what_is_desired_has_nothing_to_withdraw(tables in tables()) {
        let desired = tables.build();
        let kernel = kernel_of(&desired);
        prop_assert!(narrowing(&desired, &kernel.state).is_empty());
    }
}
