//! Which chains of other programs drop our packets.

use gatepost::dataplane::nft::{ForeignDrop, Hook, Manager, Nft, foreign_drops};

use super::netns::Netns;
use super::table::{base, load};

/// What is found in a ruleset that is loaded beside our table.
fn found(text: &str) -> Vec<ForeignDrop> {
    let netns = Netns::new();
    netns.enter();
    Nft::open().unwrap().apply(&load(&base(), &Default::default()), None).unwrap();
    netns.load(text);
    foreign_drops(&"gatepost0".parse().unwrap(), Some(51820)).unwrap()
}

fn drop(family: &'static str, table: &str, chain: &str, hook: Hook) -> ForeignDrop {
    ForeignDrop { family, table: table.into(), chain: chain.into(), hook, manager: None }
}

fn chain(hook: &str, policy: &str, rules: &str) -> String {
    format!(
        "table inet theirs {{ chain it {{ type filter hook {hook} priority 0; policy {policy}; {rules}\n}}\n}}"
    )
}

#[test]
fn foreign_chains_that_end_in_a_drop_are_found() {
    let forward = [drop("inet", "theirs", "it", Hook::Forward)];
    assert_eq!(found(&chain("forward", "drop", "")), forward);
    assert_eq!(found(&chain("forward", "drop", "iifname \"eth0\" accept")), forward);
    assert_eq!(
        found(&chain("forward", "accept", "iifname \"eth0\" accept; counter drop")),
        forward
    );
    assert_eq!(found(&chain("forward", "accept", "reject with icmpx admin-prohibited")), forward);
    let elsewhere = "table inet theirs {
        chain ours { iifname gatepost0 accept\n}
        chain it { type filter hook forward priority 0; policy drop;\n}
    }";
    assert_eq!(found(elsewhere), forward);
    let input = [drop("inet", "theirs", "it", Hook::Input)];
    assert_eq!(found(&chain("input", "drop", "tcp dport 22 accept")), input);
}

#[test]
fn foreign_chains_that_let_us_through_are_not_found() {
    for text in [
        &chain("forward", "accept", "iifname \"eth0\" drop"),
        &chain("forward", "drop", "iifname \"gatepost0\" accept"),
        &chain("forward", "drop", "iifname \"gate*\" accept"),
        &chain("forward", "drop", "iifname { \"eth0\", \"gatepost0\" } accept"),
        &chain("input", "drop", "udp dport 51820 accept"),
        &chain("input", "drop", "udp dport { 53, 51820 } accept"),
        &chain("output", "drop", ""),
        // One rule anywhere on the way is enough, also when a map leads there.
        "table inet theirs {
            chain ours { iifname gatepost0 accept\n}
            chain zones { iifname vmap { gatepost0 : jump ours }\n}
            chain it { type filter hook forward priority 0; policy drop; jump zones\n}
        }",
        "table bridge theirs { chain it { type filter hook forward priority 0; policy drop;
}
}",
    ] {
        assert_eq!(found(text), [], "{text}");
    }
}

#[test]
fn every_family_is_searched_and_the_manager_is_recognised() {
    let docker = "table ip filter {
        chain DOCKER-USER { }
        chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
    }";
    let docker = (docker, drop("ip", "filter", "FORWARD", Hook::Forward), Manager::Docker);
    let ufw = "table ip6 filter {
        chain ufw6-before-forward { }
        chain FORWARD { type filter hook forward priority 0; policy drop; jump ufw6-before-forward; }
    }";
    let ufw = (ufw, drop("ip6", "filter", "FORWARD", Hook::Forward), Manager::Ufw);
    let firewalld = "table inet firewalld { chain filter_INPUT {
        type filter hook input priority 10; ct state established accept; iifname lo accept; reject
}
}";
    let firewalld =
        (firewalld, drop("inet", "firewalld", "filter_INPUT", Hook::Input), Manager::Firewalld);
    for (text, expected, manager) in [docker, ufw, firewalld] {
        assert_eq!(found(text), [ForeignDrop { manager: Some(manager), ..expected }]);
    }
}
