//! What the interlock promises when the kernel refuses steps of a plan, in any combination, whole or
//! after a part was applied.
//!
//! * No packet passes that neither the old nor the new policy allows.
//! * What the new policy does not allow and has stopped passing never passes again.
//! * Every withdrawal is applied that does not depend on a failed step.
//! * Planning anew once the refusals stop makes the kernel what is desired.

use std::collections::BTreeSet;
use std::net::IpAddr;

use gatepost::model::{
    AllowedIps, DesiredState, FirewallChange, ObservedState, ProfileId, PublicKey,
};
use gatepost::plan::{Fate, Fault, ModelKernel, Phase, Plan, Scope, Step, plan};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

use super::packets::{Before, before, kernel_of, opened_by_hand};
use super::probes::{Filter, Packet, Probes, judged_by, send_all, sender};
use super::rows::{Tables, tables};

/// For each step in turn, and then from the first again, how it fails.
pub fn faults() -> impl Strategy<Value = Vec<Option<Fault>>> {
    let fault = prop_oneof![
        2 => Just(Fault::Refuse),
        1 => Just(Fault::LoseAnswer),
        1 => any::<u64>().prop_map(|prefixes| Fault::Partly { prefixes }),
    ];
    prop::collection::vec(prop::option::weighted(0.3, fault), 1..16)
}

/// What became of the steps, in their order.
type Course = Vec<(Step, Fate)>;

/// How long the interlock remembers what failed.
#[derive(Clone, Copy)]
enum Memory {
    /// Until the end of the plan, as it does.
    Plan,
    /// Not beyond the step, which lets every step through: a fault that the property must find.
    Step,
}

/// One attempt to make the kernel what is desired, with a look at all packets after every step.
struct Attempt<'a> {
    probes: &'a Probes,
    desired: &'a DesiredState,
    /// What may pass at any time.
    allowed: BTreeSet<Packet>,
    wanted: BTreeSet<Packet>,
    memory: Memory,
}

impl Attempt<'_> {
    fn run(
        &self,
        kernel: &mut ModelKernel,
        plan: &Plan,
        faults: &[Option<Fault>],
    ) -> Result<Course, TestCaseError> {
        let mut observed = kernel.state.clone();
        let held_before = held(&kernel.state);
        let mut faults = faults.iter().cycle();
        let mut course = Course::new();
        let mut passed = send_all(kernel, self.probes, self.desired);
        let mut unguarded = matches!(self.filter(kernel), Filter::Missing);
        let mut verdict = Ok(());
        for part in self.parts(plan) {
            kernel.apply_plan(
                &part,
                &mut observed,
                |_| faults.next().copied().flatten(),
                |kernel, step, fate| {
                    course.push((step.clone(), fate));
                    let passing = send_all(kernel, self.probes, self.desired);
                    if verdict.is_err() {
                        return;
                    }
                    // Nothing is filtered: what counts is that no peer gets a prefix.
                    if let Filter::Missing = self.filter(kernel) {
                        if !held(&kernel.state).is_subset(&held_before) {
                            verdict =
                                Err(format!("after {step} ({fate:?}) somebody gained a prefix"));
                        }
                        return;
                    }
                    let leak = passing.difference(&self.allowed).next();
                    let returned = passing.iter().find(|packet| {
                        !unguarded && !self.wanted.contains(packet) && !passed.contains(packet)
                    });
                    if let Some(packet) = leak.or(returned) {
                        verdict = Err(format!("after {step} ({fate:?}) passes {packet:?}"));
                    }
                    (passed, unguarded) = (passing, false);
                },
            );
        }
        verdict.map_err(|what| TestCaseError::fail(format!("{what}\nof {course:#?}")))?;
        Ok(course)
    }

    /// What is applied through one interlock.
    fn parts(&self, plan: &Plan) -> Vec<Plan> {
        match self.memory {
            Memory::Plan => vec![plan.clone()],
            Memory::Step => plan.steps().iter().map(|it| Plan::new(vec![it.clone()])).collect(),
        }
    }

    fn filter(&self, kernel: &ModelKernel) -> Filter {
        Filter::of(&kernel.state, self.desired)
    }
}

fn held(state: &ObservedState) -> BTreeSet<(IpNet, PublicKey)> {
    let peers = state.peers.iter();
    peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|prefix| (prefix, *key))).collect()
}

/// What a step takes from its peer, by the reading that it was planned from.
fn taken_by(step: &Step, before: &ObservedState) -> Option<AllowedIps> {
    let had = |key| before.peers.get(key).map(|peer| peer.allowed_ips.clone()).unwrap_or_default();
    match step {
        Step::RemovePeer { key } => Some(had(key)),
        Step::NarrowPeer { key, allowed_ips } => Some(had(key).difference(allowed_ips)),
        _ => None,
    }
}

/// Whether a withdrawal rests on one of the steps that failed before it: what it needs, it needs so
/// that no other peer gets what it takes.
fn depends(step: &Step, failed: &[&Step], before: &ObservedState) -> bool {
    let taken = taken_by(step, before).unwrap_or_default();
    failed.iter().any(|failed| match (step, failed) {
        (Step::RemovePeer { .. } | Step::NarrowPeer { .. }, Step::CreateLink { .. }) => true,
        (Step::RemovePeer { .. } | Step::NarrowPeer { .. }, Step::CutFlows { prefixes }) => {
            taken.iter().any(|prefix| prefixes.contains(&prefix))
        }
        (
            Step::RemovePeer { .. } | Step::NarrowPeer { .. },
            Step::Firewall { phase: Phase::Revoke, change },
        ) => taken.iter().any(|prefix| change.assign.get(&prefix) == Some(&ProfileId::NOTHING)),
        (Step::Firewall { phase: Phase::Policy, .. }, Step::Firewall { .. }) => true,
        (Step::Firewall { phase: Phase::Policy, .. }, Step::CreateLink { .. }) => true,
        (Step::Firewall { phase: Phase::Policy, change }, Step::CutFlows { prefixes }) => {
            moves_any(change, before, prefixes.iter().copied())
        }
        (Step::Firewall { phase: Phase::Policy, change }, failed) => {
            let taken = taken_by(failed, before).unwrap_or_default();
            moves_any(change, before, taken.iter())
        }
        _ => false,
    })
}

/// Whether a change alters what one of these prefixes reaches.
fn moves_any(
    change: &FirewallChange,
    before: &ObservedState,
    mut prefixes: impl Iterator<Item = IpNet>,
) -> bool {
    let place = |prefix: &IpNet| before.firewall.as_ref()?.assignments().get(prefix);
    change.load_base.is_some()
        || prefixes.any(|prefix| {
            change.assign.contains_key(&prefix)
                || change.unassign.contains(&prefix)
                || place(&prefix).is_some_and(|id| change.put_profiles.contains_key(id))
        })
}

const fn is_withdrawal(step: &Step) -> bool {
    matches!(
        step,
        Step::TakeDown { .. }
            | Step::CutFlows { .. }
            | Step::RemovePeer { .. }
            | Step::NarrowPeer { .. }
            | Step::Firewall { phase: Phase::Revoke | Phase::Policy, .. }
    )
}

fn assert_withdrawn(course: &Course, before: &ObservedState) -> Result<(), TestCaseError> {
    let mut failed = Vec::new();
    for (step, fate) in course {
        if *fate == Fate::Withheld && is_withdrawal(step) {
            prop_assert!(depends(step, &failed, before), "withheld: {step}\nof {course:#?}");
        }
        if *fate != Fate::Applied {
            failed.push(step);
        }
    }
    Ok(())
}

/// Whether everything was applied by which a packet can lose its way.
fn all_withdrawn(course: &Course) -> bool {
    let withdraws = |step: &Step| {
        is_withdrawal(step)
            || matches!(step, Step::Firewall { phase: Phase::Fence, .. } | Step::RenameLink { .. })
    };
    course.iter().all(|(step, fate)| !withdraws(step) || *fate == Fate::Applied)
}

/// Whether nothing in the kernel tells of flows that a peer opened before it was removed, while the
/// firewall refused to close its address: the place of an address tells only of a former holder that
/// could reach something else, by the rows or by what is left of the table, and there is none without one, or where the address was closed
/// all the same and its flows could not be cut. Such an address is free, or fell to a peer whose own
/// prefix contains it.
fn is_lost(
    course: &Course,
    before: &ObservedState,
    states: [&DesiredState; 2],
    source: IpAddr,
    holder: Option<PublicKey>,
) -> bool {
    let refused = |phase| {
        course.iter().any(|(step, fate)| {
            matches!(step, Step::Firewall { phase: it, .. } if *it == phase)
                && *fate != Fate::Applied
        })
    };
    let uncut = |(step, fate): &(Step, Fate)| {
        matches!(step, Step::CutFlows { .. }) && *fate != Fate::Applied
    };
    let [old, new] = states.map(|state| judged_by(state, source));
    let found = before.firewall.as_ref().and_then(|table| {
        let (prefix, id) = table.judged_by(source)?;
        Some((prefix, table.profiles().get(&id)?))
    });
    let is_same = old == new || found == new.map(|(prefix, profile)| (*prefix, profile));
    let without_place = refused(Phase::Fence) || refused(Phase::Revoke) && course.iter().any(uncut);
    let contained = || {
        let holder = holder.and_then(|holder| before.peers.get(&holder));
        holder.is_none_or(|peer| peer.allowed_ips.iter().any(|prefix| prefix.contains(&source)))
    };
    refused(Phase::Revoke) && is_same || without_place && contained()
}

/// No peer comes to hold an address from which another opened a flow, and none is free with its
/// flows, unless that is forgiven.
fn assert_nothing_inherited(
    kernel: &ModelKernel,
    course: &Course,
    forgiven: impl Fn(IpAddr, Option<PublicKey>) -> bool,
) -> Result<(), TestCaseError> {
    for (source, opener) in &kernel.flows {
        let holder = sender(&kernel.state.peers, *source);
        prop_assert!(
            holder == Some(*opener) || forgiven(*source, holder),
            "{holder:?} has {source}, from where {opener} opened a flow, after {course:#?}"
        );
    }
    Ok(())
}

/// Brings a kernel from the old policy to the new one, with these refusals on the way.
fn change_with_refusals(
    (old, new): (&Tables, &Tables),
    before: Before,
    faults: &[Option<Fault>],
    memory: Memory,
) -> Result<(), TestCaseError> {
    let (old, new) = (old.build(), new.build());
    let probes = Probes::of([&old, &new]);
    let wanted = probes.allowed_by(&new);
    let mut kernel = kernel_of(&old);
    send_all(&mut kernel, &probes, &old);
    before.befall(&mut kernel);

    let first = plan(&new, &kernel.state, &Scope::Everything).unwrap();
    let planned_from = kernel.state.clone();
    let mut allowed = probes.allowed_by(&old);
    allowed.extend(&wanted);
    allowed.extend(opened_by_hand(&mut kernel, &probes, &old));
    let attempt =
        Attempt { probes: &probes, desired: &new, allowed, wanted: wanted.clone(), memory };
    let course = attempt.run(&mut kernel, &first, faults)?;
    assert_withdrawn(&course, &planned_from)?;
    let passing = probes.passing(&kernel.state, &Filter::of(&kernel.state, &new));
    if all_withdrawn(&course) {
        let left = passing.difference(&wanted).next();
        prop_assert!(left.is_none(), "still passes: {left:?}\nof {course:#?}");
    }
    let forgives = |source, holder: Option<PublicKey>| {
        before.forgives([&old, &new], source, holder)
            || is_lost(&course, &planned_from, [&old, &new], source, holder)
    };
    // Steps that failed may leave flows of addresses that are free, or had got to their holder
    // by somebody's hand before.
    assert_nothing_inherited(&kernel, &course, |source, holder| {
        let before = sender(&planned_from.peers, source);
        holder.is_none() || holder == before || forgives(source, holder)
    })?;

    // The refusals stop.
    let mut allowed = passing;
    allowed.extend(&wanted);
    let attempt =
        Attempt { probes: &probes, desired: &new, allowed, wanted: wanted.clone(), memory };
    let second = plan(&new, &kernel.state, &Scope::Everything).unwrap();
    attempt.run(&mut kernel, &second, &[None])?;
    let left = plan(&new, &kernel.state, &Scope::Everything).unwrap();
    prop_assert!(left.is_empty(), "left to do: {left:?}\nafter {second:#?}");
    let passing = probes.passing(&kernel.state, &Filter::of(&kernel.state, &new));
    prop_assert_eq!(passing, wanted);
    assert_nothing_inherited(&kernel, &course, forgives)?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn no_refusal_lets_a_packet_through_or_stops_a_withdrawal(
        old in tables(), new in tables(), before in before(), faults in faults(),
    ) {
        change_with_refusals((&old, &new), before, &faults, Memory::Plan)?;
    }
}

#[test]
fn an_interlock_that_forgets_refusals_is_found() {
    let config = ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..ProptestConfig::default()
    };
    let cases = (tables(), tables(), before(), faults());
    let found = TestRunner::new(config).run(&cases, |(old, new, before, faults)| {
        change_with_refusals((&old, &new), before, &faults, Memory::Step)
    });
    let Err(TestError::Fail(why, _)) = found else { panic!("not found: {found:?}") };
    // Whichever case comes first: a packet passes, a peer gets what another one has, or an address that has flows.
    let shows = ["passes", "gained a prefix", "opened a flow"];
    let shows = shows.iter().any(|it| why.message().contains(it));
    assert!(shows, "{why}");
}
