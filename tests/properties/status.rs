//! What the agent says of itself while it is at work.

use std::time::Duration;

use gatepost::dataplane::{Outcome, Reading};
use gatepost::model::{Allocation, BarredBy, ChangedRows, PolicyRow, TargetRow, TargetType};
use gatepost::reconcile::status::PeerState;
use gatepost::reconcile::{Action, Event, ReadAnswer};
use nix::errno::Errno;

use super::machine::Happening;
use super::rows::support;
use super::world::{World, quiet_world, refused};

/// The plan by which the kernel is about to revoke the first peer.
fn revoking(world: &mut World) -> Action {
    world.revoke([1]);
    let row = world.tables.peers.values().next().unwrap().clone();
    let rows = ChangedRows {
        marks: Vec::new(),
        peers: [(row.device_id, vec![row])].into(),
        memberships: std::collections::BTreeMap::new(),
        policies: std::collections::BTreeMap::new(),
        taken_at: world.now().wall,
    };
    world.machine.handle(Event::Notified, world.now());
    let read = Event::Read(Ok(ReadAnswer::Changed(rows)));
    let mut actions = world.machine.handle(read, world.now());
    actions.retain(|action| matches!(action, Action::Apply(..)));
    actions.pop().unwrap()
}

#[test]
fn the_lag_is_counted_from_the_notification_and_a_repair_has_none() {
    let mut world = quiet_world();
    let revoked = world.tables.peers.values_mut().next().unwrap();
    revoked.bars = BarredBy::DEVICE_STATUS;
    // It waits for a reading that is under way.
    world.tell(Event::KernelChanged { why: "a storm".into() });
    world.tell(Event::Notified);
    world.elapsed += Duration::from_millis(300);
    world.pass_time(Duration::from_secs(1));
    let status = world.machine.view().status().sync;
    assert_eq!(status.lag_ms, Some(300), "the pass alone took {:?}", status.last_pass);

    world.happen(Happening::FlushFirewall);
    world.pass_time(Duration::from_secs(1));
    let status = world.machine.view().status().sync;
    assert_eq!((status.drift_repaired, status.lag_ms), (1, None));
}

#[test]
fn what_the_kernel_refused_is_counted_and_the_last_proof_still_shown() {
    let mut world = quiet_world();
    let proven = world.machine.view().status().sync.last_sync_at;
    let Action::Apply(plan, _) = revoking(&mut world) else { panic!("nothing to do") };
    let refused = vec![refused(&plan.steps()[0], Errno::EIO)];
    let outcome = Outcome { refused, ..Outcome::default() };
    world.machine.handle(Event::Applied(outcome), world.now());
    let status = world.machine.view().status();
    assert!(!status.state.is_ready());
    assert_eq!(status.sync.last_pass.unwrap().refused, 1);
    assert_eq!((status.sync.refused_steps, status.sync.lag_ms), (1, None));
    assert_eq!(status.sync.last_sync_at, proven);
}

#[test]
fn a_resync_is_answered_by_its_own_comparison_and_not_by_an_old_obstacle() {
    let mut world = quiet_world();
    let Action::Apply(plan, _) = revoking(&mut world) else { panic!("nothing to do") };
    let refused = vec![refused(&plan.steps()[0], Errno::EIO)];
    world.tell(Event::Applied(Outcome { refused, ..Outcome::default() }));
    assert!(world.machine.view().stuck().is_some());
    world.tell(Event::Resync);
    let asked = world.machine.view().resyncs_asked();
    assert_eq!(world.machine.view().resync_end(asked), None);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.machine.view().resync_end(asked), Some(Ok(())));
    assert!(world.kernel_equals_database());
}

#[test]
fn a_change_while_no_session_listened_counts_as_no_missed_notification() {
    let mut world = quiet_world();
    world.happen(Happening::DatabaseGone(60));
    world.revoke([1]);
    world.pass_time(Duration::from_secs(60));
    assert!(world.kernel_equals_database());
    assert_eq!(world.machine.view().status().sync.notify_missed, 0);
}

/// Asks by the timer, with this change there is to find, and hears `while_reading`.
fn notify_missed(change: impl Fn(&mut World), while_reading: Option<Event>) -> u64 {
    let mut world = quiet_world();
    change(&mut world);
    // The read of a heartbeat waits behind a look at the kernel.
    while !world.queue.iter().any(|action| matches!(action, Action::Read(_))) {
        world.settle();
        let due = world.machine.next_wakeup(world.now());
        world.elapsed = due.duration_since(world.now().instant) + world.elapsed;
        world.tell(Event::Tick);
    }
    while_reading.into_iter().for_each(|event| world.tell(event));
    world.pass_time(Duration::from_secs(10));
    assert!(world.kernel_equals_database());
    world.machine.view().status().sync.notify_missed
}

#[test]
fn a_notification_that_comes_while_its_change_is_read_was_not_missed() {
    let revoke = |world: &mut World| world.revoke([1]);
    assert_eq!(notify_missed(revoke, Some(Event::Notified)), 0);
    assert_eq!(notify_missed(revoke, None), 1);
}

/// The database announces no target of a policy that is inserted without a peer.
#[test]
fn a_change_without_effect_counts_as_no_missed_notification() {
    let name_a_group = |world: &mut World| {
        let id = uuid::Uuid::from_u128(1);
        let target = TargetRow { target_type: TargetType::Group, target_id: id, dangling: false };
        let policy = PolicyRow { targets: vec![target], ..support::policy_row(1) };
        world.tables.policies.insert(policy.id, policy);
    };
    assert_eq!(notify_missed(name_a_group, None), 0);
}

#[test]
fn warnings_follow_the_rows() {
    let mut world = quiet_world();
    assert_eq!(world.machine.view().status().warnings, [""; 0]);
    world.tables.peers.values_mut().next().unwrap().allocation = Allocation::Missing;
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    let warnings = world.machine.view().status().warnings;
    let row = world.tables.peers.values().next().unwrap();
    let (name, address) = (format!("{}/{}", row.username, row.device_name), row.assigned_ip.addr());
    let told = format!("does not give its address to 1 peer: {name} ({address}); write a row");
    assert!(warnings[0].contains(&told), "{told}: {warnings:?}");
}

#[test]
fn a_database_is_away_since_the_first_failure_not_the_last() {
    let mut world = quiet_world();
    let up = world.machine.view().status().database;
    let gone = world.now().wall;
    world.happen(Happening::DatabaseGone(7_200));
    let away = world.machine.view().status().database;
    assert!(up.connected && !away.connected);
    assert_eq!(away.since, Some(gone.into()));
    world.pass_time(Duration::from_secs(60));
    let back = world.machine.view().status().database;
    assert!(back.connected && back.since > away.since, "{back:?}");
}

#[test]
fn key_and_port_are_those_that_were_read_back() {
    let mut world = quiet_world();
    let interface = world.machine.view().status().interface;
    assert_eq!(interface.listen_port, Some(51_820));
    world.kernel.state.interface.as_mut().unwrap().listen_port = 7;
    world.machine.handle(Event::KernelChanged { why: "a storm".into() }, world.now());
    let state = world.kernel.state.clone();
    let reading = Reading { state, ..Reading::default() };
    world.machine.handle(Event::Observed(Ok(Box::new(reading))), world.now());
    assert_eq!(world.machine.view().status().interface.listen_port, Some(7));
}

#[test]
fn readers_see_the_progress_while_the_kernel_is_changed() {
    let mut world = quiet_world();
    let Action::Apply(plan, observed) = revoking(&mut world) else { panic!("nothing to do") };
    let in_kernel = |world: &World| {
        let peers = world.machine.view().peers();
        peers.iter().filter(|peer| peer.state == PeerState::InKernel).count()
    };
    assert_eq!(world.machine.view().status().peers.in_kernel, 20);
    assert_eq!(in_kernel(&world), 19, "the 20th is not wanted any more");
    plan.steps().iter().for_each(|step| observed.apply(step));
    assert_eq!(world.machine.view().status().peers.in_kernel, 19);
    assert_eq!(in_kernel(&world), 19);
}
