//! When the agent looks at the kernel, and what a beat of `last_sync_at` rests on.

use std::time::Duration;

use gatepost::reconcile::{Action, Event};

use super::machine::quiet_world;

#[test]
fn nothing_is_due_that_waits_for_the_job_under_way() {
    let mut world = quiet_world();
    let began = world.machine.handle(Event::Resync, world.now());
    assert!(matches!(began[..], [Action::Read(_)]), "{began:?}");
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
