//! Whether the gate may be in force beside the rules of other programs, as hosts with these have them.

use gatepost::model::{GateObstacle, HostRouting, IpFamily, MarkBit, RoutingRule, RuleAction, Tag};
use gatepost::plan::gate;

/// Rules as `ip rule` lists them. What our rules do not look at is left out.
fn rules(listing: &str) -> HostRouting {
    let rule = |line: &str| {
        let (priority, rest) = line.trim().split_once(':').unwrap();
        let words: Vec<&str> = rest.split_whitespace().collect();
        let after = |word| words.iter().position(|it| *it == word).map(|at| words[at + 1]);
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
            None => text.parse().unwrap(),
        };
        let mark = after("fwmark").map(|mark| match mark.split_once('/') {
            Some((value, mask)) => (number(value), number(mask)),
            None => (number(mark), u32::MAX),
        });
        RoutingRule {
            family: IpFamily::V4,
            priority: priority.parse().unwrap(),
            iif: after("iif").map(Into::into),
            to: None,
            mark,
            action: RuleAction::Other(1),
            tag: Tag::Foreign,
        }
    };
    HostRouting { rules: listing.trim().lines().map(rule).collect(), ..HostRouting::default() }
}

/// Every host has these, and Docker, firewalld and kube-proxy add none.
const PLAIN: &str = "0: from all lookup local
    32766: from all lookup main
    32767: from all lookup default";
const TAILSCALE: &str = "0: from all lookup local
    5210: from all fwmark 0x80000/0xff0000 lookup main
    5230: from all fwmark 0x80000/0xff0000 lookup default
    5250: from all fwmark 0x80000/0xff0000 unreachable
    5270: from all lookup 52
    32766: from all lookup main
    32767: from all lookup default";
const CALICO: &str = "0: from all lookup local
    99: not from all fwmark 0x100000/0x100000 lookup 1
    32766: from all lookup main";
const KUBE_ROUTER: &str = "0: from all lookup local
    32762: from all lookup 79
    32764: from all fwmark 0x5a lookup 78
    32766: from all lookup main";
const MULLVAD: &str = "0: from all lookup local
    32764: from all lookup main suppress_prefixlength 0
    32765: not from all fwmark 0x6d6f6c65 lookup 1836018789
    32766: from all lookup main";
const WG_QUICK: &str = "0: from all lookup local
    32764: from all lookup main suppress_prefixlength 0
    32765: not from all fwmark 0xca6c lookup 51820
    32766: from all lookup main";
const CILIUM: &str = "9: from all fwmark 0x200/0xf00 lookup 2004
    100: from all lookup local
    32766: from all lookup main";
/// As the kernel's documentation of VRFs advises.
const LATE_LOCAL: &str = "1000: from all lookup [l3mdev-table]
    32765: from all lookup local
    32766: from all lookup main";
const VRF: &str = "0: from all lookup local
    1000: from all lookup [l3mdev-table]
    32766: from all lookup main";

#[test]
fn gate_is_in_force_beside_rules_that_do_not_look_at_its_mark() {
    for listing in [PLAIN, TAILSCALE, CALICO, VRF] {
        assert_eq!(gate::obstacle(&rules(listing), MarkBit::default()), None, "{listing}");
    }
    let of_tailscale = MarkBit::new(0x8_0000).unwrap();
    let obstacle = gate::obstacle(&rules(TAILSCALE), of_tailscale);
    assert!(matches!(obstacle, Some(GateObstacle::SharedMark(_))), "{obstacle:?}");
}

#[test]
fn rule_that_looks_at_the_whole_mark_keeps_the_gate_away_and_is_named() {
    for (listing, named) in [
        (KUBE_ROUTER, "IPv4 32764: fwmark 0x5a"),
        (MULLVAD, "IPv4 32765: fwmark 0x6d6f6c65"),
        (WG_QUICK, "IPv4 32765: fwmark 0xca6c"),
        (
            "0: from all lookup local\n100: from all fwmark 0x1000/0x1000 lookup 7",
            "IPv4 100: fwmark 0x1000/0x1000",
        ),
    ] {
        let why = gate::obstacle(&rules(listing), MarkBit::default()).unwrap().to_string();
        assert!(why.contains(&format!("\"{named}\"")), "{why}");
    }
}

#[test]
fn rule_before_the_gate_keeps_it_away() {
    let obstacle = gate::obstacle(&rules("1: from all iif eth0 lookup 7"), MarkBit::default());
    let why = obstacle.unwrap().to_string();
    assert!(why.contains("\"IPv4 1: iif eth0\" of another program comes before"), "{why}");
}

/// The rules of the gate would then come before the host's own addresses.
#[test]
fn local_rule_that_was_moved_keeps_the_gate_away() {
    for listing in [CILIUM, LATE_LOCAL] {
        let obstacle = gate::obstacle(&rules(listing), MarkBit::default());
        assert_eq!(obstacle, Some(GateObstacle::LocalRuleMoved), "{listing}");
    }
}

#[test]
fn source_checks_and_networkd_keep_the_gate_away() {
    let obstacle = |host: HostRouting| gate::obstacle(&host, MarkBit::default());
    let checks = HostRouting { checks_sources: true, ..rules(PLAIN) };
    assert_eq!(obstacle(checks), Some(GateObstacle::SourceChecks));
    let networkd = HostRouting { networkd_removes_rules: true, ..rules(PLAIN) };
    assert_eq!(obstacle(networkd), Some(GateObstacle::Networkd));
    let none = HostRouting { has_no_rules: true, ..HostRouting::default() };
    assert_eq!(obstacle(none), Some(GateObstacle::NoRules));
}
