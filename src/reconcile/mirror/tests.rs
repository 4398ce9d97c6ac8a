use super::due::READING_GAP;
use super::*;
use crate::dataplane::Glance;
use crate::model::{FirewallChange, HostRouting};
use crate::plan::Phase;

const SECOND: Duration = Duration::from_secs(1);

fn mirror(now: Instant) -> Mirror {
    let timing = Timing { report_interval: 15 * SECOND, heartbeat: 10 * SECOND, ..Timing::SECONDS };
    Mirror::new(timing, "gatepost0".parse().unwrap(), by_both(now))
}

fn by_both(instant: Instant) -> Now {
    Now { instant, wall: SystemTime::UNIX_EPOCH }
}

/// A mirror whose first reading took a second.
fn read_once(now: Instant) -> Mirror {
    let mut mirror = mirror(now - SECOND);
    mirror.begin_reading(now - SECOND).unwrap();
    mirror.end_reading(Reading::default(), by_both(now));
    mirror
}

#[test]
fn a_storm_of_kernel_events_makes_one_reading_in_each_gap() {
    let now = Instant::now();
    let mut mirror = read_once(now);
    mirror.kernel_changed("link removed".into());
    assert!(mirror.begin_reading(now).is_none());
    assert!(mirror.begin_reading(now + READING_GAP).is_some());
    mirror.kernel_changed("link added".into());
    let due = by_both(now + READING_GAP);
    assert_eq!(mirror.due(due), None, "what is wanted waits for the reading under way");
}

#[test]
fn a_reading_that_takes_long_is_made_less_often_and_heartbeats_glance() {
    let now = Instant::now();
    let mut mirror = read_once(now);
    assert_eq!(mirror.interval(), LONG_INTERVAL);
    mirror.want_beat(now);
    assert!(!mirror.wants_reading() && mirror.begin_glance(now).is_some());
    let finds_all = mirror.end_glance(None, |_| false, now);
    assert!(!finds_all, "a glance that fails finds nothing as it was");
    assert!(mirror.wants_reading());
}

#[test]
fn however_often_peers_are_asked_for_readings_take_no_greater_share_of_the_time() {
    const MS: Duration = Duration::from_millis(1);
    let start = Instant::now();
    let mut mirror = mirror(start);
    let (mut began, mut failed) = (0, false);
    // Each reading takes 5 ms, every second one fails, and each millisecond brings a question.
    let mut ends_at = None;
    for now in (0..3_000).map(|ms| start + ms * MS) {
        if ends_at.take_if(|at| *at <= now).is_some() {
            match failed {
                true => mirror.reading_failed("no answer".into(), 30 * SECOND, now),
                false => drop(mirror.end_reading(Reading::default(), by_both(now))),
            }
            failed = !failed;
        }
        mirror.peers_asked(now);
        if mirror.begin_reading(now).is_some() {
            began += 1;
            ends_at = Some(now + 5 * MS);
        }
    }
    assert_eq!(began, 3, "one at once, and one a second");
}

/// A reading that takes a second costs a 200th of the time at most each 200 s, and at least one
/// in 60 s is made.
const LONG_INTERVAL: Duration = Duration::from_secs(60);

#[test]
fn only_a_reading_or_a_glance_reads_the_kernel_back() {
    let now = Instant::now();
    let mut mirror = read_once(now);
    assert!(mirror.prove(false), "it was just read");
    assert!(!mirror.prove(false), "and not since");
    mirror.want_beat(now);
    mirror.begin_glance(now);
    let (routes, routing) = (BTreeMap::new(), HostRouting::default());
    let glance = Glance { interface: None, routes, routing, firewall_is_current: true };
    assert!(mirror.end_glance(Some(glance), |_| unreachable!("the routing is the same"), now));
    assert!(mirror.prove(false));
    mirror.begin_apply(Plan::default(), now);
    assert!(!mirror.can_be_planned(), "in doubt until every step is answered");
    mirror.applied(&Outcome::default());
    assert!(mirror.can_be_planned() && !mirror.prove(false));
}

#[test]
fn a_glance_that_finds_a_change_disturbs_proofs_until_the_next_reading() {
    let now = Instant::now();
    let mut mirror = read_once(now);
    mirror.want_beat(now);
    mirror.begin_glance(now);
    let (routes, routing) = (BTreeMap::new(), HostRouting::default());
    let glance = Glance { interface: None, routes, routing, firewall_is_current: false };
    assert!(!mirror.end_glance(Some(glance), |_| false, now));
    assert!(mirror.is_disturbed());
    mirror.begin_reading(now + READING_GAP).unwrap();
    assert!(!mirror.is_disturbed());
}

#[test]
fn another_routing_is_known_from_the_glance_on_and_wants_a_reading_if_the_gate_differs() {
    for gate_differs in [false, true] {
        let now = Instant::now();
        let mut mirror = read_once(now);
        mirror.routing_changed();
        mirror.begin_glance(now).unwrap();
        let routing = HostRouting { checks_sources: true, ..Default::default() };
        let (routes, interface, firewall_is_current) = (BTreeMap::new(), None, true);
        let glance = Glance { interface, routes, routing, firewall_is_current };
        let judge = |observed: &ObservedState| {
            assert!(observed.routing.checks_sources);
            gate_differs
        };
        assert_eq!(mirror.end_glance(Some(glance), judge, now), !gate_differs);
        let found = (mirror.is_disturbed(), mirror.wants_reading());
        assert_eq!(found, (gate_differs, gate_differs));
        assert_eq!(mirror.is_undisturbed(true), !gate_differs);
    }
}

#[test]
fn however_often_the_routing_changes_glances_take_no_more_than_a_tenth_of_the_time() {
    const MS: Duration = Duration::from_millis(1);
    let start = Instant::now();
    let mut mirror = read_once(start);
    let (mut glances, mut ends_at) = (0_u16, None);
    for now in (0..10_000).map(|ms| start + ms * MS) {
        if ends_at.take_if(|at| *at <= now).is_some() {
            let routing = HostRouting { checks_sources: glances % 2 == 1, ..Default::default() };
            let (routes, interface, firewall_is_current) = (BTreeMap::new(), None, true);
            let glance = Glance { interface, routes, routing, firewall_is_current };
            assert!(mirror.end_glance(Some(glance), |_| false, now));
        }
        mirror.routing_changed();
        assert!(mirror.begin_reading(now).is_none(), "no reading is wanted");
        if mirror.begin_glance(now).is_some() {
            glances += 1;
            ends_at = Some(now + 10 * MS);
        }
    }
    assert_eq!(glances, 100, "each takes 10 ms");
}

#[test]
fn a_repair_of_the_firewall_names_what_was_edited() {
    let now = Instant::now();
    let mut mirror = mirror(now);
    mirror.kernel_changed("nft, pid 7, changed our firewall".into());
    mirror.begin_reading(now);
    let edited = nft::Difference::Chain("forward".into());
    let reading = Reading { firewall_difference: Some(edited), ..Reading::default() };
    mirror.end_reading(reading, by_both(now));
    let change = FirewallChange::default();
    let repair = Plan::new(vec![Step::Firewall { phase: Phase::Policy, change }]);
    assert_eq!(mirror.drift(&repair), "nft, pid 7, changed our firewall: chain forward");
    let other = Plan::new(vec![Step::SetUp]);
    assert_eq!(mirror.drift(&other), "nft, pid 7, changed our firewall");
}
