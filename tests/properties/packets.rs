//! What a plan promises about packets, at every moment while it is carried out: nothing passes that
//! neither the old nor the new policy allows.
//!
//! Every packet that passes opens a flow. When the plan is carried out, no peer holds an address from
//! which another peer opened one. Flows from an address that keeps its holder are not cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gatepost::model::{
    DesiredState, FirewallChange, FixedRules, LinkOwner, ObservedFirewall, PublicKey,
};
use gatepost::plan::{Held, ModelKernel, Plan, Scope, plan, plan_around};
use proptest::prelude::*;

use super::guard::unwanted;
use super::incremental::{change, make};
use super::probes::{Filter, Packet, Probes, holding, judged_by, send_all, sender};
use super::rows::{Tables, tables};

/// What somebody's hand made possible before the plan was made, while a table judges it.
pub fn opened_by_hand(
    kernel: &mut ModelKernel,
    probes: &Probes,
    old: &DesiredState,
) -> BTreeSet<Packet> {
    match Filter::of(&kernel.state, old) {
        Filter::Table(_) => send_all(kernel, probes, old),
        Filter::Missing => BTreeSet::new(),
    }
}

/// Applies a plan step by step and looks at all packets after each, and at all flows in the end.
pub fn assert_no_leak(
    kernel: &mut ModelKernel,
    plan: &Plan,
    [old, new]: [&DesiredState; 2],
    before: Before,
) -> Result<(), TestCaseError> {
    let probes = Probes::of([old, new]);
    let mut allowed = probes.allowed_by(old);
    allowed.extend(probes.allowed_by(new));
    allowed.extend(opened_by_hand(kernel, &probes, old));
    for step in plan.steps() {
        let flows = kernel.flows.clone();
        kernel.apply_step(step).unwrap();
        if matches!(before, Before::Nothing) {
            let keeps_holder = |(source, _): &&(IpAddr, PublicKey)| {
                let [before, after] = [old, new].map(|state| holding(state.peers(), *source));
                before.is_some() && before == after
            };
            let lost = flows.difference(&kernel.flows).find(keeps_holder);
            prop_assert!(lost.is_none(), "{step} cut {lost:?}\nof {:#?}", plan.steps());
        }
        let passing = send_all(kernel, &probes, new);
        let leak = passing.difference(&allowed).next();
        prop_assert!(leak.is_none(), "after {step}: {leak:?}\nof {:#?}", plan.steps());
    }
    let passing = send_all(kernel, &probes, new);
    prop_assert_eq!(passing, probes.allowed_by(new));
    assert_nothing_inherited(kernel, plan, |source, holder| {
        before.forgives([old, new], source, holder)
    })
}

pub fn assert_nothing_inherited(
    kernel: &ModelKernel,
    plan: &Plan,
    forgiven: impl Fn(IpAddr, Option<PublicKey>) -> bool,
) -> Result<(), TestCaseError> {
    for (source, opener) in &kernel.flows {
        let holder = sender(&kernel.state.peers, *source);
        prop_assert!(
            holder == Some(*opener) || forgiven(*source, holder),
            "{holder:?} has {source}, from where {opener} opened a flow, after {:#?}",
            plan.steps()
        );
    }
    Ok(())
}

pub fn kernel_of(desired: &DesiredState) -> ModelKernel {
    let mut kernel = ModelKernel::default();
    let plan = plan(desired, &kernel.state, &Scope::Everything).unwrap();
    kernel.apply_first(&plan, usize::MAX).unwrap();
    kernel
}

/// What befell the kernel before the plan was made.
#[derive(Debug, Clone, Copy)]
pub enum Before {
    Nothing,
    LinkLost,
    /// Until the first step nothing is filtered; that step must end it, as after all of these.
    TableLost,
    BothLost,
    /// The link of another program, which has forwarded everything, is taken over.
    TakenOver,
    /// Somebody flushed the table: its maps are there, and nobody asks them.
    RulesLost,
    /// Somebody removed every second peer by hand, from the first or from the second on.
    PeersRemoved(usize),
    /// The maps of an earlier run, of which only the first so many prefixes were left.
    MapsTorn(usize),
}

pub fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        4 => Just(Before::Nothing),
        1 => Just(Before::LinkLost),
        1 => Just(Before::TableLost),
        1 => Just(Before::TakenOver),
        1 => Just(Before::BothLost),
        1 => Just(Before::RulesLost),
        2 => (0usize..2).prop_map(Before::PeersRemoved),
        1 => (0usize..8).prop_map(Before::MapsTorn),
    ]
}

impl Before {
    pub fn befall(self, kernel: &mut ModelKernel) {
        if let Self::LinkLost | Self::BothLost = self {
            kernel.lose_link();
        }
        if let (Self::TakenOver, Some(link)) = (self, &mut kernel.state.interface) {
            link.owner = LinkOwner::Unmarked;
        }
        match self {
            Self::TableLost | Self::BothLost | Self::TakenOver => kernel.state.firewall = None,
            Self::RulesLost => {
                let places =
                    kernel.state.firewall.as_ref().map(|table| table.assignments().clone());
                let flushed =
                    |places| ObservedFirewall::new(FixedRules::Open, BTreeMap::new(), places);
                kernel.state.firewall = places.map(flushed);
            }
            Self::MapsTorn(kept) => {
                let prefixes = kernel.state.firewall.iter().flat_map(|table| {
                    table.assignments().keys().skip(kept).copied().collect::<Vec<_>>()
                });
                let unassign = prefixes.collect();
                let torn = FirewallChange { unassign, ..FirewallChange::default() };
                ObservedFirewall::apply(&mut kernel.state.firewall, &torn);
            }
            Self::PeersRemoved(first) => {
                let mut number = 0..;
                kernel.state.peers.retain(|_, _| number.next().is_some_and(|n| n % 2 != first));
            }
            Self::Nothing | Self::LinkLost => {}
        }
    }

    /// A flow that nobody's data tells of. Without peers, an address that is judged as before is
    /// taken for its peer's, which is put back; without the table too, nothing tells that anybody
    /// had an address that nobody has now.
    pub fn forgives(
        self,
        states: [&DesiredState; 2],
        source: IpAddr,
        holder: Option<PublicKey>,
    ) -> bool {
        let [old, new] = states.map(|state| judged_by(state, source));
        match self {
            Self::LinkLost | Self::PeersRemoved(_) => old == new,
            Self::BothLost => holder.is_none(),
            Self::Nothing
            | Self::TableLost
            | Self::TakenOver
            | Self::RulesLost
            | Self::MapsTorn(_) => false,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_packet_passes_that_neither_the_old_nor_the_new_policy_allows(
        old in tables(), new in tables(), before in before(),
    ) {
        let (old, new) = (old.build(), new.build());
        let mut kernel = kernel_of(&old);
        send_all(&mut kernel, &Probes::of([&old, &new]), &old);
        before.befall(&mut kernel);
        let plan = plan(&new, &kernel.state, &Scope::Everything).unwrap();
        assert_no_leak(&mut kernel, &plan, [&old, &new], before)?;
    }

    #[test]
    fn nor_while_small_changes_follow_each_other(
        mut tables in tables(),
        batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..5),
    ) {
        let mut state = tables.build();
        let mut kernel = kernel_of(&state);
        for batch in &batches {
            let old = tables.build();
            let touched = state.apply(make(&mut tables, batch));
            let scope = Scope::Changed { peers: touched.peers, prefixes: touched.prefixes };
            let small = plan(&state, &kernel.state, &scope).unwrap();
            assert_no_leak(&mut kernel, &small, [&old, &state], Before::Nothing)?;
        }
    }

    #[test]
    fn nor_while_removals_wait(old in tables(), new in tables(), before in before()) {
        let (old, new) = (old.build(), new.build());
        let mut kernel = kernel_of(&old);
        let held = Held::of(unwanted(&new, &kernel.state), &new, &kernel.state, &Held::default());
        before.befall(&mut kernel);
        let held = Held::of(unwanted(&new, &kernel.state), &new, &kernel.state, &held);
        let around = plan_around(&new, &kernel.state, &Scope::Everything, &held).unwrap();
        let probes = Probes::of([&old, &new]);
        // Who stays may also send from what was another's within its own network.
        let mut end = kernel.clone();
        end.apply_first(&around, usize::MAX).unwrap();
        let mut allowed = probes.allowed_by(&new);
        let at_the_end = probes.passing(&end.state, &Filter::of(&end.state, &new));
        for packet in at_the_end.difference(&allowed) {
            prop_assert!(held.peers().contains_key(&packet.sender), "{packet:?}");
        }
        allowed.extend(at_the_end);
        allowed.extend(probes.allowed_by(&old));
        allowed.extend(opened_by_hand(&mut kernel, &probes, &old));
        for step in around.steps() {
            kernel.apply_step(step).unwrap();
            let passing = probes.passing(&kernel.state, &Filter::of(&kernel.state, &new));
            let leak = passing.difference(&allowed).next();
            prop_assert!(leak.is_none(), "after {step}: {leak:?}\nof {:#?}", around.steps());
        }
    }

    #[test]
    fn nor_after_any_number_of_kills(
        old in tables(), new in tables(), newest in tables(), cut in any::<prop::sample::Index>(),
    ) {
        let [old, new, newest] = [&old, &new, &newest].map(Tables::build);
        let mut kernel = kernel_of(&old);
        let all = [&old, &new, &newest];
        send_all(&mut kernel, &Probes::of(all), &old);
        let first = plan(&new, &kernel.state, &Scope::Everything).unwrap();
        for step in &first.steps()[..cut.index(first.steps().len() + 1)] {
            kernel.apply_step(step).unwrap();
            send_all(&mut kernel, &Probes::of(all), &new);
        }
        // What the kill left may be a mixture of both: nothing beyond it may pass now.
        let probes = Probes::of([&new, &newest]);
        let mut allowed = probes.passing(&kernel.state, &Filter::of(&kernel.state, &new));
        allowed.extend(probes.allowed_by(&new));
        allowed.extend(probes.allowed_by(&newest));
        let second = plan(&newest, &kernel.state, &Scope::Everything).unwrap();
        for step in second.steps() {
            kernel.apply_step(step).unwrap();
            let passing = send_all(&mut kernel, &probes, &newest);
            let leak = passing.difference(&allowed).next();
            prop_assert!(leak.is_none(), "after {step}: {leak:?}\nof {:#?}", second.steps());
        }
        assert_nothing_inherited(&kernel, &second, |_, _| false)?;
    }
}
