//! A change of the firewall of which the kernel refuses some profiles.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use gatepost::model::{
    FirewallBase, FirewallChange, FixedRules, Masquerade, Networks, ObservedFirewall, Profile,
    ProfileId,
};
use gatepost::plan::{Blame, Parted, before_slow, load_in_parts};
use ipnet::IpNet;
use proptest::prelude::*;

fn base() -> FirewallBase {
    FirewallBase {
        interface: "gatepost0".parse().unwrap(),
        masquerade: Masquerade::All,
        deny_log: Some(gatepost::model::NflogGroup::DEFAULT),
        allow_inbound: false,
        gateway_opens: Some(Default::default()),
        networks: Networks::new("10.64.0.0/24".parse().unwrap(), [].iter()),
        flows_per_address: None,
        gate: None,
    }
}

fn prefix(number: u32) -> IpNet {
    IpNet::from(IpAddr::from(Ipv4Addr::from(0x0a40_0000 + number)))
}

/// The addresses from 0 to this one.
fn profile(last: u32) -> Arc<Profile> {
    Arc::new(Profile { allow4: [(0, last)].into_iter().collect(), ..Profile::default() })
}

/// A table in which prefix `n` has profile `n + 1`, which allows so much.
fn table(reach: &[u32]) -> ObservedFirewall {
    let numbered = || (0..).zip(reach);
    ObservedFirewall::new(
        FixedRules::Ours(base()),
        numbered().map(|(number, last)| (ProfileId(number + 1), profile(*last))).collect(),
        numbered().map(|(number, _)| (prefix(number), ProfileId(number + 1))).collect(),
    )
}

/// A kernel that refuses each transaction that brings one of these profiles.
struct Kernel {
    table: Option<ObservedFirewall>,
    refuses: BTreeSet<Arc<Profile>>,
    /// What its refusals are about.
    blame: Blame,
    /// What it took, in its order.
    taken: Vec<FirewallChange>,
    asked: usize,
}

impl Kernel {
    fn new(table: ObservedFirewall, refuses: impl IntoIterator<Item = Arc<Profile>>) -> Self {
        let refuses = refuses.into_iter().collect();
        let blame = Blame::Content;
        Self { table: Some(table), refuses, blame, taken: Vec::new(), asked: 0 }
    }

    fn load(&mut self, change: &FirewallChange) -> Result<(), Blame> {
        self.asked += 1;
        if change.put_profiles.values().any(|(_, profile)| self.refuses.contains(profile)) {
            return Err(self.blame);
        }
        ObservedFirewall::apply(&mut self.table, change);
        self.taken.push(change.clone());
        Ok(())
    }

    fn load_in_parts(&mut self, change: &FirewallChange) -> Parted<Blame> {
        let refusal = self.load(change).unwrap_err();
        let before = self.table.clone();
        load_in_parts(change, before.as_ref(), refusal, |blame| *blame, |part| self.load(part))
    }

    fn reach(&self, number: u32) -> Option<Arc<Profile>> {
        self.table.as_ref().and_then(|table| table.profile_of(&prefix(number)).cloned())
    }
}

/// Each of these prefixes gets a profile that allows so much: in place, or under a new number.
fn change(reach: &[u32], in_place: bool) -> FirewallChange {
    let mut change = FirewallChange::default();
    for (number, last) in (0..).zip(reach) {
        let id = ProfileId(if in_place { number + 1 } else { number + 10_001 });
        change.put_profiles.insert(id, (!in_place, profile(*last)));
        if !in_place {
            change.assign.insert(prefix(number), id);
            change.remove_profiles.push(ProfileId(number + 1));
        }
    }
    change
}

proptest! {
    #[test]
    fn one_refused_profile_costs_only_itself_and_few_transactions(
        before in prop::collection::vec(1_000u32..2_000, 1..300),
        bad in any::<prop::sample::Index>(),
        in_place in any::<bool>(),
        loads_base in any::<bool>(),
    ) {
        // Half of them gain and half of them lose, and no two are alike.
        let wanted: Vec<u32> = (0..).zip(&before).map(|(number, _)| 1_200 + 2 * number).collect();
        let bad = bad.index(wanted.len());
        let (count, refused) = (wanted.len(), profile(wanted[bad]));
        let mut kernel = Kernel::new(table(&before), [Arc::clone(&refused)]);
        let mut change = change(&wanted, in_place && !loads_base);
        if loads_base {
            change.load_base = Some(base());
            change.remove_profiles.clear();
        }
        let gone = prefix(9_000);
        change.unassign.push(gone);
        let parted = kernel.load_in_parts(&change);

        prop_assert!(parted.left.is_none());
        let [(_, profile, _)] = &parted.unloadable[..] else { panic!("{:?}", parted.unloadable) };
        prop_assert_eq!(profile, &refused);
        let halvings = count.next_power_of_two().ilog2() as usize;
        prop_assert!(kernel.asked <= 2 * halvings + 4, "{} of {count}", kernel.asked);
        for (number, last) in (0..).zip(&wanted) {
            let before = before[number as usize];
            let expected = match number as usize == bad {
                false => Some(self::profile(*last)),
                true if before <= *last && !loads_base => Some(self::profile(before)),
                true => None,
            };
            prop_assert_eq!(kernel.reach(number), expected, "prefix {}", number);
        }
        if !loads_base {
            prop_assert!(kernel.taken[0].unassign.contains(&gone), "what only withdraws is first");
        }
    }
}

#[test]
fn several_refused_profiles_are_found_and_all_of_them_are_not_searched() {
    let (before, wanted) = (vec![5; 64], (0..64).map(|number| 100 + number).collect::<Vec<_>>());
    let bad = [3, 4, 60].map(|number: u32| profile(100 + number));
    let mut kernel = Kernel::new(table(&before), bad.clone());
    let found = kernel.load_in_parts(&change(&wanted, false)).unloadable;
    let found: BTreeSet<_> = found.into_iter().map(|(_, profile, _)| profile).collect();
    assert_eq!(found, bad.into());

    // It is not their content that such a kernel refuses.
    let mut kernel = Kernel::new(table(&before), wanted.iter().map(|last| profile(*last)));
    let parted = kernel.load_in_parts(&change(&wanted, false));
    assert!(parted.unloadable.is_empty() && kernel.asked < 16, "{}", kernel.asked);
    let (left, _) = parted.left.unwrap();
    assert_eq!(left.put_profiles.len(), 64);
    assert_eq!(kernel.reach(7), Some(profile(5)), "it gains, and keeps what it had");
}

#[test]
fn what_a_refused_change_narrows_reaches_nothing_and_its_profile_stays_for_others() {
    let mut places = BTreeMap::from([(prefix(0), ProfileId(1)), (prefix(1), ProfileId(1))]);
    places.insert(prefix(2), ProfileId(2));
    let profiles = [(ProfileId(1), profile(100)), (ProfileId(2), profile(10))];
    let table = ObservedFirewall::new(FixedRules::Ours(base()), profiles.into(), places);
    let mut kernel = Kernel::new(table, [profile(50)]);
    // All of them are to have the same, and nobody what they had.
    let change = FirewallChange {
        put_profiles: [(ProfileId(3), (true, profile(50)))].into(),
        assign: [0, 1, 2].map(|number| (prefix(number), ProfileId(3))).into(),
        remove_profiles: vec![ProfileId(1), ProfileId(2)],
        ..FirewallChange::default()
    };
    kernel.load_in_parts(&change);
    let reach: Vec<_> = (0..3).map(|number| kernel.reach(number)).collect();
    assert_eq!(reach, [None, None, Some(profile(10))]);
    let table = kernel.table.unwrap();
    assert!(table.profiles().keys().eq(&[ProfileId(2)]), "{:?}", table.profiles());
}

#[test]
fn a_refusal_that_no_content_caused_quarantines_nothing() {
    let mut kernel = Kernel::new(table(&[5]), []);
    let parted = load_in_parts(
        &change(&[100], true),
        kernel.table.clone().as_ref(),
        Blame::Table,
        |blame| *blame,
        |part| kernel.load(part),
    );
    assert!(parted.unloadable.is_empty() && parted.left.is_some());
}

#[test]
fn fixed_rules_that_the_kernel_refuses_are_never_taken_for_loaded() {
    let change = FirewallChange { load_base: Some(base()), ..FirewallChange::default() };
    let refuse = |_: &FirewallChange| Err(Blame::Content);
    let parted = load_in_parts(&change, None, Blame::Content, |blame| *blame, refuse);
    assert_eq!(parted.left.map(|(left, _)| left), Some(change));

    // No profile is blamed for them.
    for count in 1..20 {
        let change = FirewallChange {
            load_base: Some(base()),
            ..self::change(&(0..count).collect::<Vec<_>>(), false)
        };
        let parted = load_in_parts(&change, None, Blame::Content, |blame| *blame, refuse);
        assert!(parted.unloadable.is_empty(), "{count}: {:?}", parted.unloadable);
        assert_eq!(parted.left.map(|(left, _)| left), Some(change));
    }

    // With a profile that is refused, they deny what should have it.
    let mut kernel = Kernel::new(table(&[5]), [profile(100)]);
    let change = FirewallChange { load_base: Some(base()), ..self::change(&[100], false) };
    let parted = kernel.load_in_parts(&change);
    assert!(parted.left.is_none() && parted.unloadable.len() == 1);
    assert_eq!(kernel.table.unwrap().assignments()[&prefix(0)], ProfileId::NOTHING);
}

/// Of a table with four prefixes, prefix 0 gains and has no room, 1 keeps what it has, 2 is narrowed, 3 is
/// taken, and 4 is new.
fn table_anew(base: FirewallBase) -> FirewallChange {
    let mut change = FirewallChange { load_base: Some(base), ..FirewallChange::default() };
    for (number, last) in [(0, 11), (1, 20), (2, 25), (4, 50)] {
        change.put_profiles.insert(ProfileId(number + 1), (true, profile(last)));
        change.assign.insert(prefix(number), ProfileId(number + 1));
    }
    change
}

fn host_without_room(former: FixedRules) -> Kernel {
    let table = table(&[10, 20, 30, 40]);
    let (profiles, places) = (table.profiles().clone(), table.assignments().clone());
    let table = ObservedFirewall::new(former, profiles, places);
    Kernel { blame: Blame::Host, ..Kernel::new(table, [profile(11)]) }
}

#[test]
fn a_host_without_room_for_a_second_table_keeps_the_former_one_less_what_is_taken() {
    let change = table_anew(FirewallBase { masquerade: Masquerade::None, ..base() });
    let mut kernel = host_without_room(FixedRules::Ours(base()));
    let parted = kernel.load_in_parts(&change);
    assert!(parted.unloadable.is_empty(), "no policy is blamed for it");
    assert_eq!(parted.left.map(|(left, _)| left), Some(change));
    let reach: Vec<_> = (0..5).map(|number| kernel.reach(number)).collect();
    let [kept, same, narrowed] = [10, 20, 25].map(|last| Some(profile(last)));
    assert_eq!(reach, [kept, same, narrowed, None, None]);
    assert_eq!(kernel.table.unwrap().base(), Some(&base()));
    assert_eq!(kernel.taken.len(), 1, "in one transaction: {:?}", kernel.taken);
}

#[test]
fn a_table_whose_rules_cannot_be_narrowed_or_allow_more_is_replaced_by_what_there_is_room_for() {
    let other = FixedRules::Other("gatepost0".parse().unwrap());
    let open = FixedRules::Ours(FirewallBase { allow_inbound: true, ..base() });
    for former in [other.clone(), open] {
        let mut kernel = host_without_room(former);
        kernel.load_in_parts(&table_anew(base()));
        let reach: Vec<_> = (0..4).map(|number| kernel.reach(number)).collect();
        assert_eq!(reach, [None, Some(profile(20)), Some(profile(25)), None]);
        assert_eq!(kernel.table.unwrap().base(), Some(&base()));
    }
    // Where nothing is taken, the rules of another version stay as they are.
    let mut kernel = host_without_room(other);
    let mut change = table_anew(base());
    for (number, last) in [(2, 30), (3, 40)] {
        change.put_profiles.insert(ProfileId(number + 1), (true, profile(last)));
        change.assign.insert(prefix(number), ProfileId(number + 1));
    }
    let before = kernel.table.clone();
    assert!(kernel.load_in_parts(&change).left.is_some());
    assert_eq!(kernel.table, before);
}

#[test]
fn a_link_that_no_table_judges_gets_rules_that_deny_everything_where_there_is_room_for_no_policy() {
    let edited = ObservedFirewall::new(FixedRules::Open, BTreeMap::new(), BTreeMap::new());
    for former in [None, Some(edited)] {
        let change = table_anew(base());
        let all = change.put_profiles.values().map(|(_, profile)| Arc::clone(profile));
        let kernel = Kernel::new(table(&[]), all);
        let mut kernel = Kernel { table: former, blame: Blame::Host, ..kernel };
        let parted = kernel.load_in_parts(&change);
        let (left, _) = parted.left.expect("it is tried again");
        assert!(left.put_profiles == change.put_profiles && parted.unloadable.is_empty());
        let table = kernel.table.expect("the rules");
        assert_eq!((table.base(), table.profiles().len()), (Some(&base()), 0));
        assert!((0..5).all(|number| table.profile_of(&prefix(number)).is_none()));
    }
}

proptest! {
    /// In two parts or in one, the table becomes the same, and what takes away comes first.
    #[test]
    fn withdrawals_come_before_profiles_that_take_long_to_load(
        before in prop::collection::vec(1_000u32..2_000, 3..40),
        slow in prop::collection::btree_set(0usize..40, 1..10),
        in_place in any::<bool>(),
    ) {
        let table = table(&before);
        let kept = before.len() - 1;
        let wanted: Vec<u32> = before.iter().take(kept).map(|last| 3_000 - last).collect();
        let mut change = change(&wanted, in_place);
        let gone = prefix(kept as u32);
        change.unassign.push(gone);
        let ids: Vec<ProfileId> = change.put_profiles.keys().copied().collect();
        let slow: BTreeSet<ProfileId> = slow.iter().map(|at| ids[at % ids.len()]).collect();
        let Some([first, rest]) = before_slow(&change, Some(&table), &slow) else {
            panic!("nothing comes first")
        };
        prop_assert!(first.unassign == [gone] && rest.unassign.is_empty());
        prop_assert!(first.put_profiles.keys().all(|id| !slow.contains(id)));
        prop_assert!(rest.put_profiles.keys().all(|id| slow.contains(id)));
        let after = |changes: &[&FirewallChange]| {
            let mut table = Some(table.clone());
            changes.iter().for_each(|change| ObservedFirewall::apply(&mut table, change));
            table
        };
        prop_assert_eq!(after(&[&first, &rest]), after(&[&change]));
    }
}

#[test]
fn change_without_a_profile_that_takes_long_stays_whole() {
    let table = table(&[1_000, 1_001]);
    let change = change(&[1_500, 1_501], true);
    assert!(before_slow(&change, Some(&table), &BTreeSet::new()).is_none());
    let all = change.put_profiles.keys().copied().collect();
    assert!(before_slow(&change, Some(&table), &all).is_none(), "nothing would come first");
    let base = FirewallChange { load_base: Some(base()), ..change };
    assert!(before_slow(&base, None, &all).is_none());
}
