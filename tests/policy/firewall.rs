//! The firewall diff: what it leads to, what it never does on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use gatepost::model::{
    DesiredFirewall, FirewallBase, FirewallChange, FixedRules, Masquerade, Networks,
    ObservedFirewall, Profile, ProfileId,
};
use gatepost::plan::firewall::{self, FirewallDiff};
use ipnet::IpNet;
use proptest::prelude::*;

const PREFIXES: u8 = 8;

fn prefix(n: u8) -> IpNet {
    IpNet::from(std::net::IpAddr::from(Ipv4Addr::new(10, 64, 0, n)))
}

/// Contents are told apart by one address each; a fresh `Arc` each time, as after a restart.
fn profile(content: u8) -> Arc<Profile> {
    let address = u32::from(content);
    Arc::new(Profile {
        allow4: [(0, 0), (address, address)].into_iter().collect(),
        ..Profile::default()
    })
}

fn base(interface: &str, deny_log: bool) -> FirewallBase {
    FirewallBase {
        interface: interface.parse().unwrap(),
        masquerade: Masquerade::All,
        deny_log: deny_log.then_some(gatepost::model::NflogGroup::DEFAULT),
        allow_inbound: false,
        gateway_opens: Some(Default::default()),
        networks: Networks::new("10.64.0.0/24".parse().unwrap(), [].iter()),
        flows_per_address: None,
        gate: None,
    }
}

fn ours() -> FirewallBase {
    base("gatepost0", true)
}

fn desired_of(contents: &[(u8, u8)]) -> DesiredFirewall {
    let assignments = contents.iter().map(|(at, content)| (prefix(*at), profile(*content)));
    DesiredFirewall { base: ours(), assignments: assignments.collect() }
}

fn table_of(profiles: &[(u32, u8)], assignments: &[(u8, u32)]) -> ObservedFirewall {
    ObservedFirewall::new(
        FixedRules::Ours(ours()),
        profiles.iter().map(|(id, content)| (ProfileId(*id), profile(*content))).collect(),
        assignments.iter().map(|(at, id)| (prefix(*at), ProfileId(*id))).collect(),
    )
}

fn desired() -> impl Strategy<Value = DesiredFirewall> {
    (proptest::collection::btree_map(0..PREFIXES, 0u8..5, 0..8), any::<bool>()).prop_map(
        |(contents, shared)| {
            let pool: Vec<_> = (0..5).map(profile).collect();
            let content = |n: u8| if shared { pool[usize::from(n)].clone() } else { profile(n) };
            let assignments = contents.iter().map(|(at, n)| (prefix(*at), content(*n)));
            DesiredFirewall { base: ours(), assignments: assignments.collect() }
        },
    )
}

/// Any table with this base: duplicate contents, unheld profiles, assignments to profiles that
/// are not there.
fn table(rules: impl Strategy<Value = FixedRules>) -> impl Strategy<Value = ObservedFirewall> {
    let profiles = proptest::collection::btree_map(1u32..9, 0u8..6, 0..8);
    let assignments = proptest::collection::btree_map(0..PREFIXES, 1u32..9, 0..8);
    (rules, profiles, assignments).prop_map(|(rules, profiles, assignments)| {
        ObservedFirewall::new(
            rules,
            profiles.into_iter().map(|(id, n)| (ProfileId(id), profile(n))).collect(),
            assignments.into_iter().map(|(at, id)| (prefix(at), ProfileId(id))).collect(),
        )
    })
}

fn observed() -> impl Strategy<Value = Option<ObservedFirewall>> {
    let rules = prop_oneof![
        5 => Just(FixedRules::Ours(ours())),
        1 => Just(FixedRules::Open),
        1 => Just(FixedRules::Other(ours().interface)),
        1 => Just(FixedRules::Ours(base("gatepost0", false))),
        1 => Just(FixedRules::Ours(base("other0", true))),
    ];
    proptest::option::weighted(0.9, table(rules))
}

/// No prefix changes hands within another peer's.
fn diff(
    desired: &DesiredFirewall,
    observed: Option<&ObservedFirewall>,
    prefixes: Option<&BTreeSet<IpNet>>,
) -> FirewallDiff {
    firewall::diff(desired, observed, prefixes, &BTreeSet::new(), &BTreeSet::new())
}

fn applied(table: Option<&ObservedFirewall>, diff: &FirewallDiff) -> Option<ObservedFirewall> {
    let mut table = table.cloned();
    for change in diff.fence.iter().chain(&diff.close).chain(&diff.policy) {
        ObservedFirewall::apply(&mut table, change);
    }
    table
}

/// What every prefix reaches.
fn reach(table: Option<&ObservedFirewall>) -> BTreeMap<IpNet, Arc<Profile>> {
    let Some(table) = table else { return BTreeMap::new() };
    let reach = |at: &IpNet| Some((*at, table.profile_of(at)?.clone()));
    table.assignments().keys().filter_map(reach).collect()
}

fn assert_counts_follow(table: &ObservedFirewall) {
    let fresh = ObservedFirewall::new(
        table.rules().clone(),
        table.profiles().clone(),
        table.assignments().clone(),
    );
    assert!(table.free_ids().take(20).eq(fresh.free_ids().take(20)));
    for (id, profile) in table.profiles() {
        assert_eq!(table.holders(*id), fresh.holders(*id));
        assert_eq!(table.id_of(profile), fresh.id_of(profile));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn obeying_gives_what_is_desired_and_then_nothing_differs(
        desired in desired(), observed in observed(),
    ) {
        let change = diff(&desired, observed.as_ref(), None);
        let table = applied(observed.as_ref(), &change).unwrap();
        prop_assert_eq!(table.base(), Some(&desired.base));
        prop_assert_eq!(reach(Some(&table)), desired.assignments.clone());
        prop_assert!(table.assignments().keys().eq(desired.assignments.keys()));
        prop_assert!(table.profiles().keys().all(|id| table.holders(*id) > 0));
        prop_assert_eq!(diff(&desired, Some(&table), None), FirewallDiff::default());
        assert_counts_follow(&table);
    }

    #[test]
    fn on_the_way_no_peer_reaches_what_neither_policy_grants(
        desired in desired(), observed in observed(),
    ) {
        let old = reach(observed.as_ref());
        let change = diff(&desired, observed.as_ref(), None);
        let mut table = observed;
        for step in change.fence.iter().chain(&change.policy) {
            ObservedFirewall::apply(&mut table, step);
            for (at, profile) in reach(table.as_ref()) {
                let was = old.get(&at).is_some_and(|old| *old == profile);
                let will = desired.assignments.get(&at).is_some_and(|new| *new == profile);
                prop_assert!(was || will, "{at} reaches {profile:?}");
            }
        }
    }

    #[test]
    fn numbers_are_stable_and_never_mean_two_things_in_one_change(
        desired in desired(), observed in observed(),
    ) {
        let change = diff(&desired, observed.as_ref(), None).policy.unwrap_or_default();
        for id in &change.remove_profiles {
            prop_assert!(!change.put_profiles.contains_key(id));
        }
        let Some(table) = observed.filter(|table| table.base() == Some(&desired.base)) else {
            return Ok(());
        };
        for (id, (new, _)) in &change.put_profiles {
            let was_used = table.profiles().contains_key(id)
                || table.assignments().values().any(|used| used == id);
            prop_assert_eq!(*new, !was_used);
        }
        for wanted in desired.assignments.values() {
            if table.id_of(wanted).is_some() {
                prop_assert!(!change.put_profiles.values().any(|(_, put)| put == wanted));
            }
        }
    }

    #[test]
    fn a_scope_touches_only_what_it_names(
        desired in desired(),
        observed in table(Just(FixedRules::Ours(ours()))),
        scope in proptest::collection::btree_set((0..PREFIXES).prop_map(prefix), 0..5),
    ) {
        let change = diff(&desired, Some(&observed), Some(&scope));
        let before = reach(Some(&observed));
        let table = applied(Some(&observed), &change).unwrap();
        let after = reach(Some(&table));
        for at in (0..PREFIXES).map(prefix) {
            let expected = if scope.contains(&at) { &desired.assignments } else { &before };
            prop_assert_eq!(after.get(&at), expected.get(&at));
        }
        assert_counts_follow(&table);
    }

    #[test]
    fn the_scope_of_all_that_differs_does_the_whole(desired in desired(), observed in observed()) {
        let scope: BTreeSet<IpNet> = (0..PREFIXES).map(prefix).collect();
        let table = applied(observed.as_ref(), &diff(&desired, observed.as_ref(), Some(&scope)));
        prop_assert_eq!(reach(table.as_ref()), desired.assignments);
    }
}

#[test]
fn a_policy_edit_rewrites_one_profile_in_place_for_all_its_holders() {
    let table = table_of(&[(1, 1), (2, 2)], &[(1, 1), (2, 1), (3, 1), (4, 2)]);
    let desired = desired_of(&[(1, 3), (2, 3), (4, 2)]);
    let change = diff(&desired, Some(&table), None).policy.unwrap();
    let expected = FirewallChange {
        unassign: vec![prefix(3)],
        put_profiles: BTreeMap::from([(ProfileId(1), (false, profile(3)))]),
        ..FirewallChange::default()
    };
    assert_eq!(change, expected);
    assert_eq!(change.to_string(), "profiles +0 ~1 -0, prefixes +0 -1");
}

#[test]
fn a_holder_that_stays_keeps_the_old_content_under_the_old_number() {
    let table = table_of(&[(1, 1), (3, 2)], &[(1, 1), (2, 1), (4, 3)]);
    let desired = desired_of(&[(1, 9), (2, 1), (4, 2)]);
    let change = diff(&desired, Some(&table), None).policy.unwrap();
    assert_eq!(change.put_profiles, BTreeMap::from([(ProfileId(2), (true, profile(9)))]));
    assert_eq!(change.assign, BTreeMap::from([(prefix(1), ProfileId(2))]));
    assert!(change.remove_profiles.is_empty());
}

#[test]
fn of_two_profiles_that_become_one_the_larger_keeps_its_number() {
    let table = table_of(&[(1, 1), (2, 2)], &[(1, 1), (2, 2), (3, 2)]);
    let desired = desired_of(&[(1, 9), (2, 9), (3, 9)]);
    let change = diff(&desired, Some(&table), None).policy.unwrap();
    assert_eq!(change.put_profiles, BTreeMap::from([(ProfileId(2), (false, profile(9)))]));
    assert_eq!(change.assign, BTreeMap::from([(prefix(1), ProfileId(2))]));
    assert_eq!(change.remove_profiles, [ProfileId(1)]);
}

#[test]
fn a_profile_that_splits_leaves_its_number() {
    // A packet that has found the number is judged by the old content, never by another's new one.
    let table = table_of(&[(1, 1)], &[(1, 1), (2, 1), (3, 1)]);
    let desired = desired_of(&[(1, 8), (2, 9), (3, 9)]);
    let change = diff(&desired, Some(&table), None).policy.unwrap();
    let expected = [(ProfileId(2), (true, profile(8))), (ProfileId(3), (true, profile(9)))];
    assert_eq!(change.put_profiles, BTreeMap::from(expected));
    assert_eq!(change.remove_profiles, [ProfileId(1)]);
}

#[test]
fn what_is_taken_loses_its_place_first_and_its_next_holder_gets_one() {
    let table = table_of(&[(1, 1), (2, 2)], &[(1, 1), (2, 2)]);
    let desired = desired_of(&[(1, 2)]);
    let (taken, none) = (BTreeSet::from([prefix(1), prefix(2)]), BTreeSet::new());
    let diff = firewall::diff(&desired, Some(&table), Some(&none), &taken, &none);
    let close =
        FirewallChange { unassign: vec![prefix(1), prefix(2)], ..FirewallChange::default() };
    assert_eq!(diff.close, Some(close));
    let policy = FirewallChange {
        assign: BTreeMap::from([(prefix(1), ProfileId(2))]),
        remove_profiles: vec![ProfileId(1)],
        ..FirewallChange::default()
    };
    assert_eq!((diff.fence, diff.policy, diff.open), (None, Some(policy), None));
}

#[test]
fn a_number_freed_in_a_change_waits_for_the_next_one() {
    let table = table_of(&[(1, 1)], &[(1, 1)]);
    let change = diff(&desired_of(&[(2, 2)]), Some(&table), None).policy.unwrap();
    assert_eq!(change.remove_profiles, [ProfileId(1)]);
    assert_eq!(change.assign, BTreeMap::from([(prefix(2), ProfileId(2))]));
}

#[test]
fn only_a_table_that_does_not_guard_our_interface_is_fenced_first() {
    let desired = desired_of(&[(1, 1)]);
    let fence = FirewallChange { load_base: Some(ours()), ..FirewallChange::default() };
    let table = |rules| {
        ObservedFirewall::new(
            rules,
            BTreeMap::from([(ProfileId(7), profile(1))]),
            BTreeMap::from([(prefix(1), ProfileId(7))]),
        )
    };
    let elsewhere = table(FixedRules::Ours(base("other0", true)));
    let (edited, open) = (FixedRules::Other(base("other0", true).interface), FixedRules::Open);
    for missing in [None, Some(elsewhere), Some(table(edited)), Some(table(open))] {
        assert_eq!(diff(&desired, missing.as_ref(), None).fence.as_ref(), Some(&fence));
    }
    let other_option = FixedRules::Ours(base("gatepost0", false));
    for rules in [FixedRules::Other(ours().interface), other_option] {
        let table = table(rules);
        let FirewallDiff { fence, policy, .. } =
            diff(&desired, Some(&table), Some(&BTreeSet::new()));
        let policy = policy.unwrap();
        assert_eq!((fence, &policy.load_base), (None, &Some(ours())));
        assert_eq!(policy.assign, BTreeMap::from([(prefix(1), ProfileId(7))]));
    }
}
