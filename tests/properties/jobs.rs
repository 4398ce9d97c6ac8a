//! Long jobs on the kernel, and what rows say meanwhile.

use std::time::Duration;

use gatepost::dataplane::{Outcome, SharedObserved};
use gatepost::plan::{Plan, Step};
use gatepost::reconcile::{Action, Event, ReadKind};

use super::trouble::{MINUTE, key};
use super::world::{World, quiet_world};

/// A job that lasts so long is a long one.
const LONG: Duration = Duration::from_millis(250);

/// A world whose agent adds the peers 1 to 9, and has not applied a step of that yet.
fn adding() -> (World, Plan, SharedObserved) {
    let mut world = quiet_world();
    world.revoke(1..=9);
    world.tell(Event::Notified);
    world.pass_time(MINUTE);
    world.restore_all();
    world.tell(Event::Notified);
    let (plan, observed) = job(&mut world);
    (world, plan, observed)
}

/// Goes on until a job on the kernel begins.
fn job(world: &mut World) -> (Plan, SharedObserved) {
    loop {
        match world.queue.pop_front().expect("a job begins") {
            Action::Apply(plan, observed) => return (plan, observed),
            action => world.carry_out(action),
        }
    }
}

/// Carries out the reads that are due, and says how many there were.
fn read(world: &mut World) -> usize {
    let (mut reads, mut others) = (0, Vec::new());
    while let Some(action) = world.queue.pop_front() {
        match action {
            Action::Read(_) => {
                reads += 1;
                world.carry_out(action);
            }
            other => others.push(other),
        }
    }
    world.queue.extend(others);
    reads
}

fn removes(plan: &Plan, number: u8) -> bool {
    plan.steps().contains(&Step::RemovePeer { key: key(number) })
}

#[test]
fn a_revocation_during_a_long_job_is_read_and_interrupts_it() {
    let (mut world, plan, observed) = adding();
    assert_eq!(observed.stops_after(), None);
    world.revoke([12]);
    world.tell(Event::Notified);
    assert_eq!(read(&mut world), 0, "a short job is awaited");
    assert!(world.machine.next_wakeup(world.now()) <= world.now().instant + LONG);
    world.elapsed += LONG;
    world.tell(Event::Tick);
    assert_eq!(read(&mut world), 1, "a long job holds up no read");
    assert!(observed.stops_after().is_some_and(|after| after < Duration::from_secs(1)));
    // The job stops after its first addition.
    let is_grant = |step: &&Step| matches!(step, Step::AddPeer { .. });
    let last = plan.steps().iter().position(|step| is_grant(&step)).expect("peers are added");
    for step in &plan.steps()[..=last] {
        world.kernel.apply_step(step).unwrap();
        observed.apply(step);
    }
    let observations = world.observations;
    let untried = plan.steps().len() - last - 1;
    world.tell(Event::Applied(Outcome { applied: last + 1, untried, ..Outcome::default() }));
    let (next, observed) = job(&mut world);
    assert_eq!(world.observations, observations, "nothing is read before that");
    assert!(removes(&next, 12));
    assert_eq!(next.steps().iter().filter(is_grant).count(), 8, "and the rest is not forgotten");
    assert_eq!(observed.stops_after(), None, "the next job begins without a limit");
    world.queue.push_front(Action::Apply(next, observed));
    world.settle();
    assert!(world.kernel_equals_database());
}

#[test]
fn one_change_is_read_during_a_job_and_the_next_after_it() {
    let (mut world, ..) = adding();
    world.elapsed += LONG;
    for (number, reads) in [(12, 1), (13, 0), (14, 0)] {
        world.revoke([number]);
        world.tell(Event::Notified);
        assert_eq!(read(&mut world), reads);
    }
}

#[test]
fn jobs_that_are_interrupted_again_and_again_last_longer() {
    let (mut world, mut plan, mut observed) = adding();
    let mut lasted = Vec::new();
    for number in 11..=18 {
        world.elapsed += LONG;
        world.revoke([number]);
        world.tell(Event::Notified);
        read(&mut world);
        lasted.push(observed.stops_after().expect("it is interrupted"));
        let step = &plan.steps()[0];
        world.kernel.apply_step(step).unwrap();
        observed.apply(step);
        let untried = plan.steps().len() - 1;
        let outcome = Outcome { applied: 1, untried, ..Outcome::default() };
        world.tell(Event::Applied(outcome));
        (plan, observed) = job(&mut world);
    }
    assert!(lasted.is_sorted() && lasted[0] < lasted[3], "{lasted:?}");
    assert!(lasted.iter().all(|at_least| *at_least <= Duration::from_secs(8)), "{lasted:?}");
    world.queue.push_front(Action::Apply(plan, observed));
    world.settle();
    assert!(world.kernel_equals_database());
    assert!(world.reads.contains(&ReadKind::Changes));
}
