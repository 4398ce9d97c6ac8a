//! When the agent looks at the kernel, and what a beat of `last_sync_at` rests on.

use std::time::Duration;

use gatepost::reconcile::{Action, Event};

use super::machine::Happening;
use super::world::{World, away, quiet_world};

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
fn a_beat_finds_a_changed_firewall_or_link_that_nobody_told_of() {
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
