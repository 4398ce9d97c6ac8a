//! What a plan promises about packets, at every moment while it is carried out: nothing passes that
//! neither the old nor the new policy allows.
//!
//! A packet passes when the device takes it and the firewall lets it through. WireGuard takes it
//! when the longest allowed prefix around its source is its sender's; the firewall, when the longest
//! assigned prefix around its source has a profile that allows its destination. Without a table, or
//! with one that guards another interface, everything that the device takes passes.
//!
//! Whoever may send a packet opens a flow with it, at every moment. When the plan is carried out,
//! nobody holds an address from which somebody else opened one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gatepost::model::{
    Address, DesiredState, FirewallChange, FixedRules, ObservedFirewall, ObservedState, Peer,
    Profile, PublicKey, Ranges,
};
use gatepost::plan::{Held, ModelKernel, Plan, Scope, plan, plan_around};
use ipnet::IpNet;
use proptest::prelude::*;

use super::guard::unwanted;
use super::incremental::{change, make};
use super::rows::{Tables, tables};

/// A packet as far as anybody judges it: who sent it, from which address, to which, and whether it
/// is a question to a DNS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    sender: PublicKey,
    source: IpAddr,
    destination: IpAddr,
    dns: bool,
}

/// The longest of these prefixes around an address, with what stands beside it.
fn longest<T>(prefixes: impl IntoIterator<Item = (IpNet, T)>, address: IpAddr) -> Option<T> {
    let around = prefixes.into_iter().filter(|(prefix, _)| prefix.contains(&address));
    around.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, beside)| beside)
}

fn sender(peers: &BTreeMap<PublicKey, Peer>, source: IpAddr) -> Option<PublicKey> {
    let held = peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(|net| (net, *key)));
    longest(held, source)
}

fn lets_through(profile: &Profile, destination: IpAddr, dns: bool) -> bool {
    profile.allows(destination) || dns && profile.dns_servers.contains(&destination)
}

/// Everything worth trying: from the edges of every prefix to the edges of every range that either
/// state knows. Between two neighbouring edges nothing differs.
struct Probes {
    sources: BTreeSet<IpAddr>,
    destinations: BTreeSet<IpAddr>,
}

impl Probes {
    fn of<const N: usize>(states: [&DesiredState; N]) -> Self {
        let mut probes = Self { sources: BTreeSet::new(), destinations: BTreeSet::new() };
        for firewall in states.map(DesiredState::firewall) {
            for (prefix, profile) in &firewall.assignments {
                probes.sources.extend(edges_of_prefix(*prefix));
                edges_of_ranges(&profile.allow4, &mut probes.destinations);
                edges_of_ranges(&profile.allow6, &mut probes.destinations);
                probes.destinations.extend(&profile.dns_servers);
            }
        }
        probes
    }

    /// What passes in the kernel as it is.
    fn passing(&self, state: &ObservedState, firewall: &Filter) -> BTreeSet<Packet> {
        if !state.interface.as_ref().is_some_and(|link| link.up) {
            return BTreeSet::new();
        }
        self.let_through(&state.peers, |source, destination, dns| match firewall {
            Filter::Missing => true,
            Filter::Table(table) => table
                .judged_by(source)
                .and_then(|(_, id)| table.profiles().get(&id))
                .is_some_and(|profile| lets_through(profile, destination, dns)),
        })
    }

    /// What the rows of a database allow.
    fn allowed_by(&self, desired: &DesiredState) -> BTreeSet<Packet> {
        let assignments = &desired.firewall().assignments;
        self.let_through(desired.peers(), |source, destination, dns| {
            longest(assignments.iter().map(|(prefix, profile)| (*prefix, profile)), source)
                .is_some_and(|profile| lets_through(profile, destination, dns))
        })
    }

    fn let_through(
        &self,
        peers: &BTreeMap<PublicKey, Peer>,
        judge: impl Fn(IpAddr, IpAddr, bool) -> bool,
    ) -> BTreeSet<Packet> {
        let mut passed = BTreeSet::new();
        for source in &self.sources {
            let Some(sender) = sender(peers, *source) else { continue };
            for destination in &self.destinations {
                for dns in [false, true] {
                    if judge(*source, *destination, dns) {
                        let (source, destination) = (*source, *destination);
                        passed.insert(Packet { sender, source, destination, dns });
                    }
                }
            }
        }
        passed
    }
}

enum Filter {
    Missing,
    Table(ObservedFirewall),
}

impl Filter {
    fn of(state: &ObservedState, desired: &DesiredState) -> Self {
        let ours = &desired.firewall().base.interface;
        match &state.firewall {
            Some(table) if table.guards(ours.as_str()) => Self::Table(table.clone()),
            _ => Self::Missing,
        }
    }
}

fn edges_of_prefix(prefix: IpNet) -> Vec<IpAddr> {
    match prefix {
        IpNet::V4(net) => around::<u32>(net.network().into(), net.broadcast().into()),
        IpNet::V6(net) => around::<u128>(net.network().into(), net.broadcast().into()),
    }
}

fn edges_of_ranges<T: Address>(ranges: &Ranges<T>, edges: &mut BTreeSet<IpAddr>) {
    edges.extend(ranges.as_slice().iter().flat_map(|(first, last)| around(*first, *last)));
}

fn around<T: Address>(first: T, last: T) -> Vec<IpAddr> {
    [first.previous(), Some(first), Some(last), last.next()]
        .into_iter()
        .flatten()
        .map(Address::to_ip)
        .collect()
}

/// What passes now. Each of these packets opens a flow.
fn send_all(kernel: &mut ModelKernel, probes: &Probes, desired: &DesiredState) -> BTreeSet<Packet> {
    let passing = probes.passing(&kernel.state, &Filter::of(&kernel.state, desired));
    kernel.flows.extend(passing.iter().map(|packet| (packet.source, packet.sender)));
    passing
}

/// What somebody's hand made possible before the plan was made, while a table judges it.
fn opened_by_hand(
    kernel: &mut ModelKernel,
    probes: &Probes,
    old: &DesiredState,
) -> BTreeSet<Packet> {
    match Filter::of(&kernel.state, old) {
        Filter::Table(_) => send_all(kernel, probes, old),
        Filter::Missing => BTreeSet::new(),
    }
}

/// Obeys a plan step by step and looks at all packets after each, and at all flows in the end.
fn assert_no_leak(
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
        kernel.obey(step).unwrap();
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

fn assert_nothing_inherited(
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

fn kernel_of(desired: &DesiredState) -> ModelKernel {
    let mut kernel = ModelKernel::default();
    let plan = plan(desired, &kernel.state, &Scope::Everything).unwrap();
    kernel.obey_prefix(&plan, usize::MAX).unwrap();
    kernel
}

/// What befell the kernel before the plan was made.
#[derive(Debug, Clone, Copy)]
enum Before {
    Nothing,
    LinkLost,
    /// Until the first step nothing is filtered; that step must end it, as after all of these.
    TableLost,
    BothLost,
    /// Somebody flushed the table: its maps are there, and nobody asks them.
    RulesLost,
    /// Somebody removed every second peer by hand, from the first or from the second on.
    PeersRemoved(usize),
    /// The maps of an earlier run, of which only the first so many prefixes were left.
    MapsTorn(usize),
}

fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        4 => Just(Before::Nothing),
        1 => Just(Before::LinkLost),
        1 => Just(Before::TableLost),
        1 => Just(Before::BothLost),
        1 => Just(Before::RulesLost),
        2 => (0usize..2).prop_map(Before::PeersRemoved),
        1 => (0usize..8).prop_map(Before::MapsTorn),
    ]
}

impl Before {
    fn befall(self, kernel: &mut ModelKernel) {
        if let Self::LinkLost | Self::BothLost = self {
            kernel.lose_link();
        }
        match self {
            Self::TableLost | Self::BothLost => kernel.state.firewall = None,
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
                ObservedFirewall::obey(&mut kernel.state.firewall, &torn);
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
    fn forgives(
        self,
        states: [&DesiredState; 2],
        source: IpAddr,
        holder: Option<PublicKey>,
    ) -> bool {
        let [old, new] = states.map(|state| {
            let assigned = state.firewall().assignments.iter();
            longest(assigned.map(|(prefix, profile)| (*prefix, (prefix, profile))), source)
        });
        match self {
            Self::LinkLost | Self::PeersRemoved(_) => old == new,
            Self::BothLost => holder.is_none(),
            Self::Nothing | Self::TableLost | Self::RulesLost | Self::MapsTorn(_) => false,
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
        let held = Held::of(unwanted(&new, &kernel.state), &kernel.state, &Held::default());
        before.befall(&mut kernel);
        let held = Held::of(unwanted(&new, &kernel.state), &kernel.state, &held);
        let around = plan_around(&new, &kernel.state, &Scope::Everything, &held).unwrap();
        let probes = Probes::of([&old, &new]);
        // Who stays may also send from what was another's within its own network.
        let mut end = kernel.clone();
        end.obey_prefix(&around, usize::MAX).unwrap();
        let mut allowed = probes.allowed_by(&new);
        let at_the_end = probes.passing(&end.state, &Filter::of(&end.state, &new));
        for packet in at_the_end.difference(&allowed) {
            prop_assert!(held.peers().contains(&packet.sender), "{packet:?}");
        }
        allowed.extend(at_the_end);
        allowed.extend(probes.allowed_by(&old));
        allowed.extend(opened_by_hand(&mut kernel, &probes, &old));
        for step in around.steps() {
            kernel.obey(step).unwrap();
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
            kernel.obey(step).unwrap();
            send_all(&mut kernel, &Probes::of(all), &new);
        }
        // What the kill left may be a mixture of both: nothing beyond it may pass now.
        let probes = Probes::of([&new, &newest]);
        let mut allowed = probes.passing(&kernel.state, &Filter::of(&kernel.state, &new));
        allowed.extend(probes.allowed_by(&new));
        allowed.extend(probes.allowed_by(&newest));
        let second = plan(&newest, &kernel.state, &Scope::Everything).unwrap();
        for step in second.steps() {
            kernel.obey(step).unwrap();
            let passing = send_all(&mut kernel, &probes, &newest);
            let leak = passing.difference(&allowed).next();
            prop_assert!(leak.is_none(), "after {step}: {leak:?}\nof {:#?}", second.steps());
        }
        assert_nothing_inherited(&kernel, &second, |_, _| false)?;
    }
}
