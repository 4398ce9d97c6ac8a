//! What is said of policies: explanations and changes, in words and in JSON.

use std::net::IpAddr;

use gatepost::model::policy::{
    Direction, Explanation, PolicyBook, PolicyChange, ReachChange, Target, Verdict,
    describe_changes, reference,
};
use gatepost::model::{
    Effect, PolicyId, PolicyRow, Profile, Settings, TargetRow, TargetType, UserId,
};
use proptest::prelude::*;
use uuid::Uuid;

use crate::world::{boundaries, device, group, memberships, policy_id, rows, senders, user};

const ALLOW: Effect = Effect::Allow;
const DENY: Effect = Effect::Deny;

fn policy(n: u128, name: &str, priority: i32, effect: Effect, destinations: &[&str]) -> PolicyRow {
    let target =
        TargetRow { target_type: TargetType::Group, target_id: group(0).0, dangling: false };
    PolicyRow {
        id: policy_id(n),
        name: name.into(),
        priority,
        effect,
        full_tunnel: destinations.contains(&"internet"),
        destinations: destinations.iter().filter_map(|text| text.parse().ok()).collect(),
        targets: vec![target],
        beyond: None,
    }
}

/// A book in which users 0 to `users` are members of the group that all policies name.
fn book(rows: &[PolicyRow], users: u128) -> PolicyBook {
    let mut book = PolicyBook::new(&Settings::default());
    for row in rows {
        book.set_policy(row.id, Some(row));
    }
    for n in 0..users {
        book.set_membership(user(n), [group(0)].into());
    }
    book
}

fn explain(rows: &[PolicyRow], to: &str) -> Explanation {
    let dns: IpAddr = "10.0.0.53".parse().unwrap();
    book(rows, 1).explain(user(0), device(0, 0), &[dns], to.parse().unwrap())
}

const GROUP: &str = "for group 00000000-0000-0000-0000-000000000300";

#[test]
fn an_explanation_names_the_deciding_policy_and_why_the_others_do_not_decide() {
    let rows = [
        policy(1, "staff", 100, ALLOW, &["10.0.0.0/8", "10.1.0.0/16"]),
        policy(2, "no finance", 100, DENY, &["10.1.2.0/24"]),
        policy(3, "no finance either", 100, DENY, &["10.1.2.3/32"]),
        policy(4, "all", 200, ALLOW, &["0.0.0.0/0"]),
        policy(5, "web", 50, ALLOW, &["internet"]),
        policy(6, "lab", 10, ALLOW, &["172.16.0.0/12"]),
    ];
    let expected = format!(
        "\
deny 10.1.2.3
  decided by policy \"no finance\" (priority 100, deny, {GROUP}): destination 10.1.2.0/24
  not policy \"lab\" (priority 10, allow, {GROUP}): no destination contains the address
  not policy \"web\" (priority 50, allow, {GROUP}): full tunnel leads to the internet, and 10.0.0.0/8 is private (RFC 1918): add it as a destination if it is meant
  not policy \"no finance either\" (priority 100, deny, {GROUP}): destination 10.1.2.3/32, and says the same
  not policy \"staff\" (priority 100, allow, {GROUP}): destination 10.1.0.0/16, but at the same priority deny goes first
  not policy \"all\" (priority 200, allow, {GROUP}): destination 0.0.0.0/0, but priority 100 goes first
"
    );
    assert_eq!(explain(&rows, "10.1.2.3").to_string(), expected);
}

#[test]
fn full_tunnel_the_default_and_dns_are_explained() {
    let web = [policy(5, "web", 50, ALLOW, &["internet"])];
    assert_eq!(
        explain(&web, "9.9.9.9").to_string(),
        format!(
            "allow 9.9.9.9\n  decided by policy \"web\" (priority 50, allow, {GROUP}): \
             full tunnel, the internet\n"
        )
    );
    assert_eq!(
        explain(&[], "10.0.0.53").to_string(),
        "deny 10.0.0.53\n  decided by setting policy.default_effect (deny): no policy that \
         applies contains the address\n  port 53 is open in any case: it is a DNS server listed for the peer\n"
    );
}

#[test]
fn policies_that_allow_it_to_others_are_named_where_it_is_denied() {
    let target = |target_type, target_id| TargetRow { target_type, target_id, dangling: false };
    let aimed = |row: PolicyRow, targets| PolicyRow { targets, ..row };
    let ops = vec![
        target(TargetType::User, user(7).0),
        target(TargetType::Group, group(1).0),
        target(TargetType::Group, group(2).0),
    ];
    let rows = [
        aimed(policy(1, "ops", 10, ALLOW, &["10.20.0.0/16"]), ops),
        aimed(policy(2, "elsewhere", 10, ALLOW, &["10.30.0.0/16"]), vec![]),
        aimed(policy(3, "no ops", 10, DENY, &["10.20.0.0/16"]), vec![]),
        aimed(policy(4, "draft", 10, ALLOW, &["10.20.0.0/16"]), vec![]),
    ];
    let mut denied = explain(&rows, "10.20.0.5");
    let named = [Target::User(user(7)), Target::Group(group(1))];
    denied.names = named.into_iter().zip(["bob", "o\nps"].map(str::to_owned)).collect();
    let unknown = Uuid::from_u128(0x302);
    assert_eq!(
        denied.to_string(),
        format!(
            "\
deny 10.20.0.5
  decided by setting policy.default_effect (deny): no policy that applies contains the address
  policy \"ops\" allows it (destination 10.20.0.0/16), but to user bob, group \"o\\nps\", group {unknown}: it names neither the device, nor its user, nor a group of the user
  policy \"draft\" allows it (destination 10.20.0.0/16), but to no user, device or group: it names neither the device, nor its user, nor a group of the user
"
        )
    );
    let all = policy(5, "all", 20, ALLOW, &["0.0.0.0/0"]);
    let allowed = explain(&[rows[0].clone(), all], "10.20.0.5");
    assert_eq!((allowed.verdict, allowed.for_others), (Verdict::Allow, vec![]));
}

#[test]
fn an_explanation_serializes_flat() {
    let rows = [
        policy(1, "staff", 100, ALLOW, &["10.0.0.0/8"]),
        policy(5, "web", 50, ALLOW, &["internet"]),
    ];
    let json = serde_json::to_value(explain(&rows, "10.0.0.1")).unwrap();
    let id = |n| Uuid::from_u128(n).to_string();
    let applies_to = serde_json::json!([{"group": id(0x300)}]);
    let expected = serde_json::json!({
        "user_id": id(0x100),
        "device_id": id(0x200),
        "destination": "10.0.0.1",
        "verdict": "allow",
        "decided_by": {
            "policy_id": id(0x401),
            "policy_name": "staff",
            "priority": 100,
            "effect": "allow",
            "applies_to": applies_to,
            "contains_it": {"destination": "10.0.0.0/8"},
        },
        "others": [{
            "policy_id": id(0x405),
            "policy_name": "web",
            "priority": 50,
            "effect": "allow",
            "applies_to": applies_to,
            "why": "not_the_internet",
            "block": "10.0.0.0/8",
            "purpose": "private (RFC 1918)",
        }],
        "for_others": [],
        "is_dns_server": false,
    });
    assert_eq!(json, expected);
}

fn told(before: &[PolicyRow], after: &[PolicyRow], users: u128) -> Vec<PolicyChange> {
    let (mut before, mut after) = (book(before, users), book(after, users));
    let names: Vec<String> = (0..users).map(|n| format!("user{n}")).collect();
    let profiles: Vec<_> = (0..users)
        .map(|n| {
            let of = |book: &mut PolicyBook| book.profile_for(user(n), device(n, 0), &[]);
            (of(&mut before), of(&mut after))
        })
        .collect();
    let shifts =
        (0..users).zip(&names).zip(&profiles).map(|((n, username), (old, new))| ReachChange {
            user_id: user(n),
            device_id: device(n, 0),
            username,
            device_name: "laptop",
            old: Some(old),
            new: Some(new),
        });
    describe_changes(&after, shifts)
}

fn lines(changes: &[PolicyChange]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_change_is_told_once_for_all_it_concerns() {
    let staff = policy(1, "staff", 100, ALLOW, &["10.0.0.0/8"]);
    let narrowed = policy(1, "staff", 100, ALLOW, &["10.0.0.0/9", "fd00::/8"]);
    let block = policy(2, "no\nfinance", 50, DENY, &["10.1.0.0/16"]);
    assert_eq!(
        lines(&told(std::slice::from_ref(&staff), &[narrowed, block], 6)),
        [
            "user0/laptop, user1/laptop, user2/laptop, user3/laptop and 2 more lose \
             10.1.0.0/16: policy \"no\\nfinance\" denies it",
            "user0/laptop, user1/laptop, user2/laptop, user3/laptop and 2 more lose \
             10.128.0.0/9: no policy grants it any more",
            "user0/laptop, user1/laptop, user2/laptop, user3/laptop and 2 more gain \
             fd00::/8 by policy \"staff\"",
        ]
    );
    let same = std::slice::from_ref(&staff);
    assert_eq!(told(same, same, 2), []);
}

#[test]
fn the_internet_has_a_name_and_long_lists_are_cut() {
    let web = policy(5, "web", 50, ALLOW, &["internet", "10.0.0.7/32"]);
    assert_eq!(
        lines(&told(&[], &[web], 1)),
        ["user0/laptop gains the IPv4 internet, 10.0.0.7, the IPv6 internet by policy \"web\""]
    );
    let texts: Vec<String> = (0..99).map(|n| format!("10.0.{n}.1/32")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let many = policy(5, "many", 50, ALLOW, &texts);
    assert_eq!(
        lines(&told(&[many], &[], 1)),
        ["user0/laptop loses 10.0.0.1, 10.0.1.1, 10.0.2.1, 10.0.3.1, 10.0.4.1, 10.0.5.1, \
          93 more ranges: no policy grants it any more"]
    );
    let all = policy(5, "all", 50, ALLOW, &["0.0.0.0/0"]);
    assert_eq!(lines(&told(&[], &[all], 1)), ["user0/laptop gains 0.0.0.0/0 by policy \"all\""]);
}

#[test]
fn dns_and_removed_peers_have_their_own_words() {
    let book = book(&[], 1);
    let server: IpAddr = "10.0.0.53".parse().unwrap();
    let dns = Profile { dns_servers: [server].into(), ..Profile::default() };
    let nothing = Profile::default();
    let shift = |old, new| ReachChange {
        user_id: UserId(Uuid::nil()),
        device_id: device(0, 0),
        username: "ann lee",
        device_name: "mac",
        old,
        new,
    };
    let line = |old, new| lines(&describe_changes(&book, [shift(old, new)]));
    assert_eq!(
        line(Some(&nothing), Some(&dns)),
        ["\"ann lee\"/mac gains 10.0.0.53 port 53: listed for the peer"]
    );
    assert_eq!(
        line(Some(&dns), None),
        ["\"ann lee\"/mac loses 10.0.0.53 port 53: the peer is removed"]
    );
    let json = serde_json::to_value(describe_changes(&book, [shift(None, Some(&dns))])).unwrap();
    let expected = serde_json::json!([{
        "turn": "gains",
        "cause": "dns_servers",
        "destinations": [],
        "dns_servers": ["10.0.0.53"],
        "who": {"ann lee": ["mac"]},
    }]);
    assert_eq!(json, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn an_explanation_gives_the_reference_verdict_and_a_policy_that_says_it(
        rows in rows(), groups in memberships(),
    ) {
        let mut book = book(&rows, 0);
        for (n, group_ids) in (0..).zip(&groups) {
            book.set_membership(user(n), group_ids.clone());
        }
        for sender in senders(&groups) {
            for at in boundaries(&rows) {
                let told = book.explain(sender.user_id, sender.device_id, &[], at);
                let expected = reference::verdict(&rows, &sender, at, Verdict::Deny);
                prop_assert_eq!(told.verdict, expected);
                prop_assert!(told.decided_by.is_none_or(|voice| voice.policy.effect == expected));
            }
        }
    }

    #[test]
    fn what_is_told_is_all_that_changes(before in rows(), after in rows()) {
        let changes = told(&before, &after, 1);
        let profile = |rows: &[PolicyRow]| book(rows, 1).profile_for(user(0), device(0, 0), &[]);
        let (old, new) = (profile(&before), profile(&after));
        let ranges = |turn| {
            let facts = changes.iter().map(|change| &change.fact);
            let facts = facts.filter(move |fact| fact.direction == turn);
            facts.flat_map(|fact| fact.what.allow4.as_slice().to_vec()).collect()
        };
        prop_assert_eq!(old.allow4.difference(&new.allow4), ranges(Direction::Loses));
        prop_assert_eq!(new.allow4.difference(&old.allow4), ranges(Direction::Gains));
        let granted: Vec<PolicyId> = after.iter().map(|row| row.id).collect();
        for change in &changes {
            if let gatepost::model::policy::Cause::Policy { id, .. } = &change.fact.cause {
                prop_assert!(granted.contains(id));
            }
        }
    }
}
