//! The book against the reference evaluator, and against itself filled in another order.

use std::collections::BTreeSet;
use std::sync::Arc;

use gatepost::model::policy::{PolicyBook, Subject, Verdict, reference};
use gatepost::model::{
    Effect, GroupId, PolicyId, PolicyRow, Profile, Settings, TargetRow, TargetType,
};
use proptest::prelude::*;
use reference::Sender;

use crate::world::{USERS, boundaries, group, memberships, policy_id, row, rows, senders, user};

fn settings(default_effect: Verdict) -> Settings {
    Settings { default_effect, ..Settings::default() }
}

fn default_effect() -> impl Strategy<Value = Verdict> {
    prop_oneof![4 => Just(Verdict::Deny), 1 => Just(Verdict::Allow)]
}

fn book(settings: &Settings, rows: &[PolicyRow], groups: &[BTreeSet<GroupId>]) -> PolicyBook {
    let mut book = PolicyBook::new(settings);
    for (n, group_ids) in (0..USERS).zip(groups) {
        book.set_membership(user(n), group_ids.clone());
    }
    for row in rows {
        book.set_policy(row.id, Some(row));
    }
    book
}

fn profile(book: &mut PolicyBook, sender: &Sender) -> Arc<Profile> {
    book.profile_for(sender.user_id, sender.device_id, &[])
}

/// Everybody's profile.
fn profiles(book: &mut PolicyBook, groups: &[BTreeSet<GroupId>]) -> Vec<(Sender, Arc<Profile>)> {
    let with_profile = |sender: Sender| {
        let profile = profile(book, &sender);
        (sender, profile)
    };
    senders(groups).into_iter().map(with_profile).collect()
}

/// One thing that the database may say next.
#[derive(Debug, Clone)]
enum Edit {
    Policy(PolicyId, Option<PolicyRow>),
    Rename(usize),
    Membership(usize, BTreeSet<GroupId>),
}

fn edit() -> impl Strategy<Value = Edit> {
    let policy = (0u128..7).prop_flat_map(|n| {
        let id = policy_id(n);
        proptest::option::weighted(0.8, row(id)).prop_map(move |row| Edit::Policy(id, row))
    });
    let membership = (0..USERS as usize, memberships())
        .prop_map(|(user, groups)| Edit::Membership(user, groups[0].clone()));
    prop_oneof![4 => policy, 1 => (0usize..7).prop_map(Edit::Rename), 3 => membership]
}

fn apply(
    edit: Edit,
    book: &mut PolicyBook,
    rows: &mut Vec<PolicyRow>,
    groups: &mut [BTreeSet<GroupId>],
) -> BTreeSet<Subject> {
    match edit {
        Edit::Policy(id, row) => {
            rows.retain(|row| row.id != id);
            rows.extend(row.clone());
            book.set_policy(id, row.as_ref())
        }
        Edit::Rename(n) => {
            let Some(row) = rows.get_mut(n) else { return BTreeSet::new() };
            row.name.push('!');
            let affected = book.set_policy(row.id, Some(row));
            assert_eq!(affected, BTreeSet::new(), "a name decides nothing");
            affected
        }
        Edit::Membership(n, group_ids) => {
            groups[n] = group_ids.clone();
            book.set_membership(user(n as u128), group_ids)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn at_every_boundary_address_the_ranges_say_what_the_reference_says(
        rows in rows(), groups in memberships(), default in default_effect(),
    ) {
        let mut book = book(&settings(default), &rows, &groups);
        let boundaries = boundaries(&rows);
        for sender in senders(&groups) {
            let profile = profile(&mut book, &sender);
            for at in &boundaries {
                let expected = reference::verdict(&rows, &sender, *at, default) == Verdict::Allow;
                prop_assert_eq!(profile.allows(*at), expected, "{} to {}", sender.device_id, at);
            }
        }
    }

    #[test]
    fn ranges_are_ascending_disjoint_and_apart(rows in rows(), groups in memberships()) {
        let mut book = book(&settings(Verdict::Deny), &rows, &groups);
        for sender in senders(&groups) {
            let profile = profile(&mut book, &sender);
            for range in profile.allow4.as_slice() {
                prop_assert!(range.0 <= range.1);
            }
            for pair in profile.allow4.as_slice().windows(2) {
                prop_assert!(u64::from(pair[0].1) + 1 < u64::from(pair[1].0));
            }
            for pair in profile.allow6.as_slice().windows(2) {
                prop_assert!(pair[0].1.checked_add(1).is_some_and(|after| after < pair[1].0));
            }
        }
    }

    #[test]
    fn edits_lead_to_the_book_of_the_rows_that_remain_and_name_all_they_affect(
        mut rows in rows(),
        mut groups in memberships(),
        edits in proptest::collection::vec(edit(), 1..12),
    ) {
        let settings = settings(Verdict::Deny);
        let mut edited = book(&settings, &rows, &groups);
        for edit in edits {
            let before = profiles(&mut edited, &groups);
            let affected = apply(edit, &mut edited, &mut rows, &mut groups);
            let after = profiles(&mut edited, &groups);
            let mut fresh = book(&settings, &rows, &groups);
            for ((sender, old), (_, new)) in before.into_iter().zip(after) {
                prop_assert_eq!(&new, &profile(&mut fresh, &sender));
                let named = affected.contains(&Subject::User(sender.user_id))
                    || affected.contains(&Subject::Device(sender.device_id));
                prop_assert!(named || Arc::ptr_eq(&old, &new), "{sender:?} was not named");
            }
            prop_assert!(edited.notes().eq(fresh.notes()));
        }
    }

    #[test]
    fn without_the_changed_policies_every_peer_reaches_the_same(
        old in rows(), new in rows(), groups in memberships(), effect in default_effect(),
    ) {
        let settings = settings(effect);
        let (mut before, after) = (book(&settings, &old, &groups), book(&settings, &new, &groups));
        prop_assert!(after.changed_since(&after).is_empty());
        let changed = after.changed_since(&before);
        let mut undone = new;
        undone.retain(|row| !changed.contains_key(&row.id));
        undone.extend(old.into_iter().filter(|row| changed.contains_key(&row.id)));
        let mut undone = book(&settings, &undone, &groups);
        prop_assert_eq!(profiles(&mut undone, &groups), profiles(&mut before, &groups));
    }

    #[test]
    fn equal_reach_is_one_allocation(rows in rows(), groups in memberships()) {
        let mut book = book(&settings(Verdict::Deny), &rows, &groups);
        let profiles = profiles(&mut book, &groups);
        for (_, one) in &profiles {
            for (_, other) in &profiles {
                prop_assert_eq!(one == other, Arc::ptr_eq(one, other));
            }
        }
    }
}

#[test]
fn a_change_names_the_present_members() {
    let mut book = PolicyBook::new(&Settings::default());
    let subjects = |users: &[u128]| users.iter().map(|n| Subject::User(user(*n))).collect();
    let row = PolicyRow {
        id: policy_id(0),
        name: "staff".into(),
        priority: 1,
        effect: Effect::Allow,
        full_tunnel: true,
        destinations: vec![],
        targets: vec![TargetRow {
            target_type: TargetType::Group,
            target_id: group(0).0,
            dangling: false,
        }],
        beyond: None,
    };
    assert_eq!(book.set_membership(user(0), [group(0)].into()), subjects(&[]));
    assert_eq!(book.set_membership(user(1), [group(0)].into()), subjects(&[]));
    assert_eq!(book.set_policy(row.id, Some(&row)), subjects(&[0, 1]));
    assert_eq!(book.set_policy(row.id, Some(&row)), subjects(&[]), "nothing changed");
    assert_eq!(book.set_membership(user(0), [group(1)].into()), subjects(&[0]));
    assert_eq!(book.set_membership(user(0), [group(2)].into()), subjects(&[]));
    assert_eq!(book.set_policy(row.id, None), subjects(&[1]), "user 0 left the group");
}
