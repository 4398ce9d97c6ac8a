//! The matrix: sets of policies by senders by destinations by protocols, judged twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gatepost::dataplane::Backend;
use gatepost::model::policy::Verdict;

use crate::exchange::Exchange;
use crate::gateway::Gateway;
use crate::lab::{Lab, Place};
use crate::packet::{PROTOCOLS, Protocol};
use crate::probe::{Probe, Reach, always_allowed, choose};
use crate::runner::Test;
use crate::seed::seed;
use crate::set::{Chance, PolicySet};

pub const TESTS: &[Test] = &[
    ("a_difference_is_seen", a_difference_is_seen),
    ("packets_go_where_the_reference_says", packets_go_where_the_reference_says),
];

const SETS: usize = 200;
/// An emulated processor is twenty times slower.
const SETS_EMULATED: usize = 50;
const SHOWN: usize = 20;

fn packets_go_where_the_reference_says(backend: Backend) {
    let seed = seed();
    let sets = sets(backend);
    let lab = Lab::new(backend);
    lab.gateway.enter(|| {
        let started = Instant::now();
        let mut chance = Chance::new(seed);
        let mut gateway = Gateway::open(&lab);
        let mut set = PolicySet::first(&mut chance);
        gateway.follow(set.news(None, &lab.interface));
        let mut exchange = Exchange::open(&lab);
        let (mut doubts, mut of_blocks, mut of_chains) = (0, 0, 0);
        for number in 1.. {
            let denied_before = gateway.denied_packets();
            let judged = exchange.judge(choose(&set, &mut chance));
            let denied = gateway.denied_packets() - denied_before;
            assert_none(&differences(judged), &format!("set {number}: {set:#?}"));
            assert_eq!(denied, denials(judged), "what was denied had come as far as the firewall");
            doubts += doubts_of_a_wrong_reference(&set, judged);
            let [in_blocks, in_chains] = gateway.judges(&lab);
            of_blocks += in_blocks;
            of_chains += in_chains;
            if number % SHOWN == 0 {
                println!("{number} of {sets} sets, {:.1} s", started.elapsed().as_secs_f64());
            }
            if number == sets {
                break;
            }
            let next = set.next(&mut chance);
            gateway.shift(chance.numbers.u8(..4) > 0);
            gateway.follow(next.news(Some(&set), &lab.interface));
            set = next;
        }
        // Also what came late, in whatever set it was sent.
        assert_none(&differences(exchange.probes()), "all sets");
        assert_none(exchange.strays(), "where nothing should come");
        assert!(doubts > sets, "a wrong verdict shows: {doubts}");
        println!("{of_blocks} profiles in blocks, {of_chains} with chains");
        assert!(of_blocks > sets / 2 && of_chains > sets / 2, "both judged packets");
        println!("{sets} sets, {}", totals(sets, exchange.probes(), started.elapsed()));
    });
}

/// How many sets: `GATEPOST_TEST_SETS`, or what takes less than a minute or two.
fn sets(backend: Backend) -> usize {
    let usual = match backend {
        Backend::Kernel => SETS_EMULATED,
        Backend::Auto | Backend::Userspace => SETS,
    };
    std::env::var("GATEPOST_TEST_SETS").map_or(usual, |text| text.parse().unwrap())
}

/// How many packets of peers a profile must have denied.
fn denials(judged: &[Probe]) -> u64 {
    let denied = |probe: &&Probe| probe.from != Place::Lan && probe.expected == Verdict::Deny;
    judged.iter().filter(denied).count() as u64
}

/// Compares the same packets with a reference that says the opposite where no policy decides. It
/// must find every changed verdict; returns how many there are.
fn doubts_of_a_wrong_reference(set: &PolicySet, judged: &[Probe]) -> usize {
    let wrong = set.reference().falsified();
    let doubt = |probe: &Probe| {
        let expected = wrong.verdict(probe.from, &probe.request);
        Probe { expected, ..probe.clone() }
    };
    let doubted: Vec<Probe> = judged.iter().map(doubt).collect();
    let changed = judged.iter().zip(&doubted).filter(|(a, b)| a.expected != b.expected).count();
    assert_eq!(differences(&doubted).len(), changed);
    changed
}

fn a_difference_is_seen(_: Backend) {
    let probe = |expected, reach| Probe { expected, reach, ..always_allowed(Place::Peer(0)) };
    let seen = |expected, reach| differences(&[probe(expected, reach)]).len();
    assert_eq!(seen(Verdict::Allow, Reach::Answered), 0);
    assert_eq!(seen(Verdict::Deny, Reach::Nowhere), 0);
    assert_eq!(seen(Verdict::Allow, Reach::Nowhere), 1, "cut off");
    assert_eq!(seen(Verdict::Allow, Reach::Arrived), 1, "its answer was cut off");
    assert_eq!(seen(Verdict::Deny, Reach::Arrived), 1, "leaked");
    assert_eq!(seen(Verdict::Deny, Reach::Answered), 1, "leaked");
}

/// Where the packets and the reference disagree.
fn differences(probes: &[Probe]) -> Vec<String> {
    let wrong = probes.iter().filter(|probe| !probe.is_as_expected());
    wrong.map(|probe| format!("{probe:?}")).collect()
}

fn assert_none(differences: &[String], of: &str) {
    let shown = differences[..differences.len().min(SHOWN)].join("\n");
    assert!(differences.is_empty(), "{} differences:\n{shown}\n{of}", differences.len());
}

/// One line; each protocol of each family must have seen both verdicts.
fn totals(sets: usize, probes: &[Probe], took: Duration) -> String {
    let mut counts: BTreeMap<(Protocol, bool), [usize; 2]> = BTreeMap::new();
    for probe in probes {
        let kind = (probe.request.protocol, probe.request.is_ipv4());
        counts.entry(kind).or_default()[usize::from(probe.expected == Verdict::Deny)] += 1;
    }
    assert_eq!(counts.len(), 2 * PROTOCOLS.len());
    let show = |((protocol, ipv4), [allowed, denied]): (&(Protocol, bool), &[usize; 2])| {
        let family = if *ipv4 { "IPv4" } else { "IPv6" };
        assert!(*allowed > sets && *denied > sets, "{protocol:?} {family}: {allowed}, {denied}");
        format!("{protocol:?} {family} {allowed}+{denied}")
    };
    let counts: Vec<String> = counts.iter().map(show).collect();
    format!(
        "{} probes (allowed+denied: {}), {:.1} s",
        probes.len(),
        counts.join(", "),
        took.as_secs_f64()
    )
}
