//! When the agent looks at the kernel, and what a beat of `last_sync_at` rests on.

use std::time::Duration;

use gatepost::model::{IpFamily, KeyText, PeerId, RoutingRule, RuleAction, Tag};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::{Action, Event, MachineOptions, Sent};
use proptest::prelude::*;

use super::machine::Happening;
use super::rows::{id, local_with_gate, peer_row, tables};
use super::trouble::{SECOND, key};
use super::world::{World, away, options, quiet_tables, quiet_world};

/// So many peers that reading all of them takes a quarter of a second.
fn large_quiet_world() -> World {
    let mut world = quiet_world();
    world.reading_takes = Duration::from_millis(250);
    world.pass_time(Duration::from_secs(60));
    world.reports.clear();
    world.observations = 0;
    world
}

#[test]
fn a_large_gateway_beats_as_often_and_is_read_less_often() {
    let mut world = large_quiet_world();
    world.pass_time(Duration::from_secs(300));
    assert!((5..=7).contains(&world.observations), "{} readings", world.observations);
    let beats: Vec<_> = world.reports.iter().filter_map(|report| report.synced_as_of).collect();
    assert!((27..=32).contains(&beats.len()), "{} beats in 300 s", beats.len());
    let gaps = beats.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap());
    assert!(gaps.max().unwrap() <= Duration::from_secs(11));
}

#[test]
fn peers_lost_on_a_large_gateway_are_back_within_a_minute() {
    let mut world = large_quiet_world();
    world.happen(Happening::ForgetPeers);
    world.pass_time(Duration::from_secs(61));
    assert!(world.kernel_equals_database());
}

#[test]
fn a_beat_finds_an_unannounced_change_of_firewall_or_link() {
    let losses: [fn(&mut World); 2] = [
        |world| world.kernel.state.firewall = None,
        |world| world.kernel.state.interface.as_mut().unwrap().up = false,
    ];
    for lose in losses {
        let mut world = large_quiet_world();
        // Between two readings, so that it is a beat that comes first.
        world.pass_time(Duration::from_secs(1));
        lose(&mut world);
        world.pass_time(Duration::from_secs(11));
        assert!(world.kernel_equals_database());
    }
}

/// Another program adds and removes rules of its own.
fn others_change_the_routing(world: &mut World) {
    let rules = &mut world.kernel.state.routing.rules;
    let (family, action, tag) = (IpFamily::V4, RuleAction::Other(1), Tag::Foreign);
    let rule = |priority| {
        let (iif, to, mark) = (None, None, None);
        RoutingRule { family, priority, iif, to, mark, action, tag }
    };
    if !rules.remove(&rule(1_000)) {
        rules.insert(rule(1_000));
    }
    world.tell(Event::RoutingChanged);
}

#[test]
fn rules_of_other_programs_cost_no_reading_of_the_peers_and_delay_no_proof() {
    let mut world = large_quiet_world();
    for number in 0..2_000 {
        others_change_the_routing(&mut world);
        if number == 1_000 {
            // In the middle, as the proof of a whole comparison is awaited.
            world.tell(Event::Resync);
        }
        world.pass_time(Duration::from_millis(70));
    }
    assert!((2..=4).contains(&world.observations), "{} readings in 140 s", world.observations);
    let beats: Vec<_> = world.reports.iter().filter_map(|report| report.synced_as_of).collect();
    let gaps = beats.windows(2).map(|pair| pair[1].duration_since(pair[0]).unwrap());
    assert!(gaps.max().unwrap() <= Duration::from_secs(11), "{beats:?}");
    assert_eq!(world.machine.view().totals().drift_repairs, 0);
}

#[test]
fn first_proof_waits_for_a_look_at_what_the_kernel_announced() {
    let mut world = World::new(quiet_tables(20), ModelKernel::default());
    world.reading_takes = Duration::from_millis(250);
    world.tell(Event::Tick);
    for _ in 0..40 {
        others_change_the_routing(&mut world);
        world.pass_time(Duration::from_millis(110));
    }
    assert!(world.machine.view().status().state.is_ready());
    assert!(world.observations <= 3, "{} readings", world.observations);
}

/// Rows that are read during the glance which the first proof awaits need a proof of their own.
#[test]
fn first_proof_does_not_starve_if_rows_change_during_the_look_that_it_awaits() {
    let mut world = World::new(quiet_tables(20), ModelKernel::default());
    world.tell(Event::Tick);
    let is_glance = |action: &Action| matches!(action, Action::Glance);
    for _ in 0..10_000 {
        if let Some(at) = world.queue.iter().position(is_glance) {
            let glance = world.queue.remove(at).unwrap();
            world.revoke([1]);
            world.tell(Event::Notified);
            let read = world.queue.iter().position(|it| matches!(it, Action::Read(_))).unwrap();
            let read = world.queue.remove(read).unwrap();
            world.carry_out(read);
            world.carry_out(glance);
            world.pass_time(SECOND);
            assert!(world.machine.view().status().state.is_ready());
            return;
        }
        match world.queue.pop_front() {
            // The kernel announces a change of its routing during each reading.
            Some(action @ Action::Observe) => {
                world.tell(Event::RoutingChanged);
                world.carry_out(action);
            }
            Some(action) => world.carry_out(action),
            None => {
                world.elapsed += Duration::from_millis(10);
                world.tell(Event::Tick);
            }
        }
    }
    panic!("nothing was glanced at");
}

#[test]
fn rules_of_the_gate_that_another_program_removes_are_back_at_once() {
    let options = MachineOptions { local: local_with_gate(), ..options() };
    let mut world = World::with(options, quiet_tables(20), ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database() && !world.kernel.state.routing.rules.is_empty());
    world.kernel.state.routing.rules.clear();
    world.tell(Event::RoutingChanged);
    world.pass_time(Duration::from_millis(200));
    assert!(world.kernel_equals_database());
    assert_eq!(world.machine.view().totals().drift_repairs, 1);
}

/// A pass ends before the agent knows that another program removed peers, and the next reading shows it before
/// the pass is reported. The world sees to it that what is reported was so.
#[test]
fn a_proof_that_the_next_reading_contradicts_is_not_reported() {
    let mut repaired = 0;
    for after_millis in (8_600..9_100).step_by(20) {
        let mut world = quiet_world();
        world.happen(Happening::Pause(after_millis));
        world.happen(Happening::ForgetPeers);
        // The audit entry of a row that cannot be used is reported at once, and the end of the pass a moment later.
        let row = world.tables.peers.get_mut(&PeerId(id(2, 1))).unwrap();
        row.public_key = KeyText::parse("not a key");
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(12));
        assert!(world.kernel_equals_database());
        repaired += world.machine.view().totals().drift_repairs;
    }
    assert!(repaired > 10, "{repaired} repairs");
}

#[test]
fn nothing_is_due_that_waits_for_the_job_under_way() {
    let mut world = quiet_world();
    let began = world.machine.handle(Event::Resync, world.now());
    assert!(matches!(began[..], [Action::Observe, Action::Read(_)]), "{began:?}");
    let mut wakeups = 0;
    let end = world.elapsed + Duration::from_secs(60);
    while world.elapsed < end {
        let wait = world.machine.next_wakeup(world.now()).duration_since(world.now().instant);
        world.elapsed += wait.max(Duration::from_millis(1));
        let now = world.now();
        world.machine.handle(Event::Tick, now);
        wakeups += 1;
    }
    assert!(wakeups < 60, "{wakeups} wake-ups while a read took 60 s");
}

/// A world in which a heartbeat has just begun, and what it asked for: the look and the read.
fn beating_world() -> (World, Action, Action) {
    let mut world = quiet_world();
    world.reports.clear();
    loop {
        world.elapsed = world.machine.next_wakeup(world.now()).duration_since(world.now().instant)
            + world.elapsed;
        world.tell(Event::Tick);
        let is_look = |action: &Action| matches!(action, Action::Observe | Action::Glance);
        let look = world.queue.iter().position(is_look);
        let read = world.queue.iter().position(|action| matches!(action, Action::Read(_)));
        if let (Some(look), Some(read)) = (look, read) {
            let (first, last) = (look.min(read), look.max(read));
            let last = world.queue.remove(last).unwrap();
            let first = world.queue.remove(first).unwrap();
            return if look < read { (world, first, last) } else { (world, last, first) };
        }
        world.settle();
    }
}

/// Whether a proof is reported now.
fn tells_proof(world: &mut World) -> bool {
    // Reports are batched.
    world.elapsed += Duration::from_millis(300);
    world.tell(Event::Tick);
    let told =
        |action: &Action| matches!(action, Action::Report(report) if report.synced_as_of.is_some());
    world.queue.iter().any(told)
}

#[test]
fn heartbeat_is_complete_once_rows_and_kernel_are_read_in_whichever_order() {
    for look_first in [true, false] {
        let (mut world, look, read) = beating_world();
        let (first, last) = if look_first { (look, read) } else { (read, look) };
        world.carry_out(first);
        assert!(!tells_proof(&mut world), "half of it was read");
        world.carry_out(last);
        assert!(tells_proof(&mut world));
    }
}

#[test]
fn heartbeat_is_not_told_while_a_kernel_event_waits_for_its_reading() {
    let (mut world, look, read) = beating_world();
    world.carry_out(look);
    let shown = world.machine.view().status().sync.last_sync_at;
    world.kernel.state.firewall = None;
    world.tell(Event::KernelChanged { why: "the table was deleted".into() });
    world.carry_out(read);
    assert!(!tells_proof(&mut world), "the table is gone");
    assert_eq!(world.machine.view().status().sync.last_sync_at, shown);
    world.pass_time(Duration::from_secs(11));
    assert!(world.kernel_equals_database());
    assert!(world.machine.view().status().sync.last_sync_at > shown);
}

#[test]
fn end_of_a_pass_is_not_told_while_a_kernel_event_waits_for_its_reading() {
    let mut world = quiet_world();
    // Just read: the next reading must wait for a moment.
    world.tell(Event::KernelChanged { why: "an address changed".into() });
    world.settle();
    world.reports.clear();
    world.revoke([1]);
    world.tell(Event::Notified);
    while !matches!(world.queue.front(), Some(Action::Apply(..))) {
        let action = world.queue.pop_front().unwrap();
        world.carry_out(action);
    }
    let apply = world.queue.pop_front().unwrap();
    let shown = world.machine.view().status().sync.last_sync_at;
    world.tell(Event::KernelChanged { why: "the table was deleted".into() });
    world.carry_out(apply);
    world.kernel.state.firewall = None;
    assert!(!tells_proof(&mut world), "the table is gone");
    assert_eq!(world.machine.view().status().sync.last_sync_at, shown);
    // Told once the kernel was read, and not only at the next heartbeat.
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    assert!(world.machine.view().status().sync.last_sync_at > shown);
    assert!(world.reports.iter().any(|report| report.synced_as_of.is_some()));
}

fn flurry() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => peer_row().prop_map(|row| Happening::Commit(Box::new(row), true)),
        1 => Just(Happening::FlushFirewall),
        1 => Just(Happening::LoseLink),
        4 => (1u8..4).prop_map(Happening::Act),
        2 => (1u64..60).prop_map(Happening::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The world checks it, whatever it is told.
    #[test]
    fn no_proof_is_told_while_a_kernel_event_waits(
        first in tables(), flurry in prop::collection::vec(flurry(), 0..40),
    ) {
        let mut world = World::new(first, ModelKernel::default());
        world.tell(Event::Tick);
        world.pass_time(Duration::from_secs(1));
        for happening in flurry {
            world.happen(happening);
        }
        world.pass_time(Duration::from_secs(60));
        prop_assert!(world.kernel_equals_database());
    }
}

#[test]
fn reads_alone_prove_nothing_while_an_observation_hangs() {
    let (mut world, _, read) = beating_world();
    world.carry_out(read);
    let shown = world.machine.view().status().sync.last_sync_at;
    world.pass_time(Duration::from_secs(60));
    assert!(world.reads.len() > 2, "the database is read all the time");
    assert_eq!(world.machine.view().status().sync.last_sync_at, shown);
    assert!(world.reports.iter().all(|report| report.synced_as_of.is_none()));
}

#[test]
fn nothing_is_due_that_waits_for_a_proof() {
    let mut world = quiet_world();
    world.machine.handle(Event::Notified, world.now());
    world.machine.handle(Event::Read(Err(away())), world.now());
    let retry = world.machine.next_wakeup(world.now()).duration_since(world.now().instant);
    assert!(retry < Duration::from_millis(200), "{retry:?}");
    // The firewall is put back just before, and that is verified some time after.
    world.elapsed += retry - Duration::from_millis(10);
    world.happen(Happening::FlushFirewall);
    world.pass_time(Duration::from_millis(100));
    assert!(world.kernel_equals_database());
}

/// Carries out what is to be done until this is to be done.
fn carry_out_until(world: &mut World, is_it: fn(&Action) -> bool) -> Action {
    for _ in 0..1_000 {
        match world.queue.pop_front() {
            Some(action) if is_it(&action) => return action,
            Some(action) => world.carry_out(action),
            None => {
                let now = world.now();
                world.elapsed += world.machine.next_wakeup(now).duration_since(now.instant);
                world.tell(Event::Tick);
            }
        }
    }
    panic!("it is never to be done");
}

#[test]
fn a_proof_that_a_reading_disproves_is_not_reported_after_its_report_failed() {
    let mut world = quiet_world();
    let tells = |it: &Action| matches!(it, Action::Report(it) if it.synced_as_of.is_some());
    let Action::Report(left) = carry_out_until(&mut world, tells) else { panic!() };
    // Another program has taken a peer away, which is not put back yet.
    world.kernel.state.peers.remove(&key(1));
    world.meddled = true;
    world.tell(Event::Resync);
    carry_out_until(&mut world, |it| matches!(it, Action::Apply(..)));
    let (error, before) = (Some(away()), world.reports.len());
    world.tell(Event::Reported(Sent { left, error, ..Sent::default() }));
    world.pass_time(5 * SECOND);
    assert!(world.reports[before..].iter().all(|report| report.synced_as_of.is_none()));
}
