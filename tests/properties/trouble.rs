//! What fails, goes wrong or comes too fast, one thing at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost::model::{GatewayId, LinkOwner, PeerId, PublicKey, Tag};
use gatepost::reconcile::status::State;
use gatepost::reconcile::{Action, Event, Note, Obstacle, ReadKind};
use gatepost::store::{AuditEntry, AuditEvent};

use super::machine::Happening;
use super::rows::id;
use super::world::{Trouble, World, quiet_world};

pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3_600);

pub fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

fn syncs(world: &World) -> usize {
    world.reports.iter().filter(|report| report.synced_as_of.is_some()).count()
}

pub fn audited(world: &World, event: AuditEvent) -> Vec<&AuditEntry> {
    let entries = world.reports.iter().flat_map(|report| &report.audit);
    entries.filter(|entry| entry.event == event).collect()
}

pub fn said(world: &World, note: fn(&Note) -> bool) -> usize {
    world.notes.iter().filter(|it| note(it)).count()
}

#[test]
fn without_announcements_everything_is_read_until_they_return() {
    let mut world = quiet_world();
    let full =
        |world: &World| world.reads.iter().filter(|kind| **kind == ReadKind::Everything).count();
    let (tables, before) = (vec!["devices".to_owned()], full(&world));
    let (synced, proven) = (syncs(&world), world.machine.view().status().sync.last_sync_at);
    for _ in 0..3 {
        world.tell(Event::Unannounced { tables: tables.clone() });
        world.pass_time(MINUTE);
    }
    assert_eq!(syncs(&world), synced, "what is not told is not proven");
    assert_eq!(world.machine.view().status().sync.last_sync_at, proven);
    let State::Degraded { why } = world.machine.view().status().state else {
        panic!("it is not degraded")
    };
    assert!(why.contains("changes to devices are not announced"), "{why}");
    assert_eq!(full(&world), before + 3);
    assert_eq!(said(&world, |note| matches!(note, Note::Unannounced { .. })), 1);
    let warnings = world.machine.view().status().warnings;
    assert!(
        warnings.iter().any(|it| it.contains("changes to devices are not announced")),
        "{warnings:?}"
    );
    for _ in 0..3 {
        world.tell(Event::Unannounced { tables: Vec::new() });
        world.settle();
    }
    assert_eq!(full(&world), before + 4, "what happened meanwhile, once");
    assert_eq!(said(&world, |note| matches!(note, Note::AnnouncedAgain)), 1);
    assert!(world.machine.view().status().warnings.is_empty());
    world.pass_time(MINUTE);
    assert!(syncs(&world) > synced);
    assert!(world.machine.view().status().sync.last_sync_at > proven);
    assert_eq!(world.machine.view().status().state, State::Ready);
}

#[test]
fn rows_that_cannot_be_built_withdraw_and_change_nothing_else_until_some_can() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::GatewayRow);
    world.tell(Event::Resync);
    world.settle();
    // It is in the snapshot that could not be built, and in no change since.
    world.revoke([1]);
    world.tell(Event::Resync);
    world.pass_time(MINUTE);
    assert!(!world.kernel.state.peers.contains_key(&key(1)), "a revocation waits for nothing");
    assert_eq!(world.kernel.state.peers.len(), 19);
    assert_eq!(audited(&world, AuditEvent::PeerRevoked).len(), 1);
    world.restore_all();
    world.tell(Event::Resync);
    world.pass_time(MINUTE);
    assert_eq!(world.kernel.state.peers.len(), 19, "no peer is added");
    world.revoke([1]);
    world.reports.clear();
    world.happen(Happening::FlushFirewall);
    world.pass_time(MINUTE);
    let table = world.kernel.state.firewall.as_ref();
    assert!(table.is_some_and(|table| table.guards("gatepost0")), "all packets would pass");
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Build(_))));
    assert_eq!(syncs(&world), 0);
    assert_eq!(said(&world, |note| matches!(note, Note::CannotBuild(_))), 1);
    // A read that fails meanwhile makes changes no more worth.
    world.troubles = BTreeSet::from([Trouble::Reads]);
    world.reads.clear();
    world.pass_time(MINUTE);
    assert!(!world.reads.contains(&ReadKind::Changes), "{:?}", world.reads);
    world.troubles.clear();
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
    assert!(world.machine.view().obstacle().is_none());
}

/// A read of the database is under way and does not end.
fn world_with_a_hanging_read() -> World {
    let mut world = quiet_world();
    world.pass_time(SECOND);
    world.tell(Event::Notified);
    let hangs = world.queue.pop_front();
    assert!(matches!(hangs, Some(Action::Read(_))), "{hangs:?}");
    world
}

#[test]
fn a_revocation_by_the_first_pass_of_an_agent_is_audited() {
    let mut world = quiet_world();
    world.revoke([1]);
    world.happen(Happening::Kill);
    world.reports.clear();
    world.pass_time(SECOND);
    assert!(world.kernel_equals_database());
    let [entry] = audited(&world, AuditEvent::PeerRevoked)[..] else { panic!("not audited") };
    assert!(entry.message.starts_with("user-1/laptop"), "{}", entry.message);
}

#[test]
fn an_emptied_table_beside_a_gateways_row_that_cannot_be_built_removes_no_peer() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::GatewayRow);
    world.tables.peers.clear();
    world.tell(Event::Resync);
    world.pass_time(MINUTE);
    assert_eq!(world.kernel.state.peers.len(), 20);
    assert_eq!(world.kept.last(), Some(&gatepost::reconcile::Keep::All), "of the rows before");
}

#[test]
fn a_link_that_cannot_be_planned_loses_revoked_peers_all_the_same() {
    let mut world = quiet_world();
    let link = world.kernel.state.interface.as_mut().unwrap();
    link.owner = LinkOwner::Ours(GatewayId(id(9, 9)));
    world.tell(Event::KernelChanged { why: "its alias was changed".into() });
    world.pass_time(SECOND);
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Plan(_))));
    world.revoke([1]);
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    assert!(!world.kernel.state.peers.contains_key(&key(1)), "a revocation waits for nothing");
    assert_eq!(world.kernel.state.peers.len(), 19);
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Plan(_))));
}

#[test]
fn a_revocation_that_comes_while_steps_are_refused_does_not_wait_for_their_retry() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Steps);
    world.revoke(1..=9);
    world.tell(Event::Notified);
    world.pass_time(MINUTE);
    // At the next attempt a read begins beside the reading, and ends beside the plan.
    while !world.queue.iter().any(|action| matches!(action, Action::Observe)) {
        world.settle();
        let due = world.machine.next_wakeup(world.now()).duration_since(world.now().instant);
        world.elapsed += due;
        world.tell(Event::Tick);
    }
    world.queue.retain(|action| !matches!(action, Action::Report(_)));
    world.tell(Event::Notified);
    let observe = world.queue.iter().position(|action| matches!(action, Action::Observe)).unwrap();
    let observe = world.queue.remove(observe).unwrap();
    world.carry_out(observe);
    let apply = world.queue.iter().position(|action| matches!(action, Action::Apply(..)));
    let apply = world.queue.remove(apply.expect("what was refused is tried again")).unwrap();
    world.revoke([10]);
    let read = world.queue.iter().position(|action| matches!(action, Action::Read(_)));
    let read = world.queue.remove(read.expect("the notification is followed")).unwrap();
    world.carry_out(read);
    world.carry_out(apply);
    let observations = world.observations;
    world.pass_time(Duration::from_millis(100));
    assert!(world.observations > observations, "it is planned at once, from a new reading");
}

#[test]
fn a_read_that_hangs_holds_up_no_repair() {
    let mut world = world_with_a_hanging_read();
    world.happen(Happening::FlushFirewall);
    world.pass_time(SECOND);
    assert!(world.kernel.state.firewall.is_some(), "the table is repaired");
    world.happen(Happening::LoseLink);
    world.pass_time(SECOND);
    assert!(world.kernel_equals_database());
}

#[test]
fn a_read_that_hangs_holds_up_no_scheduled_revocation() {
    let mut world = quiet_world();
    let revoked_at = world.database_now() + MINUTE;
    world.tables.peers.get_mut(&PeerId(id(2, 1))).unwrap().revoked_at = Some(revoked_at);
    world.tell(Event::Notified);
    world.pass_time(MINUTE - SECOND);
    world.tell(Event::Notified);
    assert!(matches!(world.queue.pop_front(), Some(Action::Read(_))), "it hangs");
    assert!(revoked_at > world.database_now() && world.kernel.state.peers.contains_key(&key(1)));
    world.pass_time(2 * SECOND);
    assert!(!world.kernel.state.peers.contains_key(&key(1)), "the revocation acts");
}

#[test]
fn what_a_slow_read_found_is_not_persisted_by_a_verdict_on_older_rows() {
    let mut world = world_with_a_hanging_read();
    world.kept.clear();
    world.happen(Happening::FlushFirewall);
    world.pass_time(SECOND);
    assert_eq!(world.kept, [], "no rows were read since the last verdict");
}

#[test]
fn a_full_read_that_fails_is_made_again_in_full() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Reads);
    world.tell(Event::Resync);
    world.settle();
    world.troubles.clear();
    world.reads.clear();
    world.pass_time(MINUTE);
    assert!(world.reads.contains(&ReadKind::Everything), "{:?}", world.reads);
}

#[test]
fn a_storm_of_notifications_starves_neither_the_kernel_nor_a_look_at_it() {
    let mut world = quiet_world();
    let (mut reads, mut looks_waited) = (0, 0);
    world.tell(Event::Notified);
    world.tell(Event::Resync);
    let (asked, mut answered) = (world.machine.view().resyncs_asked(), None);
    world.reports.clear();
    for round in 0..2_000u32 {
        let Some(action) = world.queue.pop_front() else {
            world.elapsed += Duration::from_millis(1);
            world.tell(Event::Tick);
            continue;
        };
        if matches!(action, Action::Read(_)) {
            reads += 1;
            let read = world.read.clone().unwrap();
            assert!(world.kernel_is(&read), "read {reads} began before the last was carried out");
        }
        looks_waited = if matches!(action, Action::Observe) { 0 } else { looks_waited + 1 };
        // Somebody commits, and something happens to the kernel, while each job is under way.
        let number = u8::try_from(round % 20).unwrap() + 1;
        if world.tables.peers[&PeerId(id(2, number))].bars.is_empty() {
            world.revoke([number]);
        } else {
            world.restore_all();
        }
        world.elapsed += Duration::from_millis(7);
        world.tell(Event::Notified);
        if round % 25 == 0 {
            world.tell(Event::KernelChanged { why: "somebody".into() });
        }
        world.carry_out(action);
        assert!(looks_waited < 50, "no look at the kernel");
        answered =
            answered.or_else(|| world.machine.view().resync_end(asked).map(|end| (round, end)));
    }
    let (round, end) = answered.expect("a comparison that was asked for comes to its end");
    assert!(round < 200 && end == Ok(()), "{end:?} after {round} rounds");
    assert!(reads > 100, "{reads} reads");
    assert!(syncs(&world) > 10, "{} proofs were told", syncs(&world));
}

#[test]
fn while_the_kernel_cannot_be_read_a_change_acts_and_proves_nothing() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Observations);
    world.pass_time(MINUTE / 2);
    world.reports.clear();
    world.revoke([1]);
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    assert!(!world.kernel.state.peers.contains_key(&key(1)), "a revocation acts all the same");
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Observe(_))));
    world.tell(Event::Resync);
    world.pass_time(MINUTE);
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Observe(_))));
    assert_eq!(syncs(&world), 0);
    world.troubles.clear();
    world.pass_time(MINUTE);
    assert!(world.machine.view().obstacle().is_none());
    assert!(syncs(&world) > 0);
}

#[test]
fn flows_are_counted_as_a_peers_own_only_if_it_was_alone() {
    let mut world = quiet_world();
    world.revoke([1]);
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    let alone = audited(&world, AuditEvent::PeerRevoked);
    assert!(alone[0].metadata.get("flows_cut").is_some(), "{alone:?}");
    world.reports.clear();
    world.revoke([2, 3]);
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    let together = audited(&world, AuditEvent::PeerRevoked);
    assert_eq!(together.len(), 2);
    for entry in together {
        assert!(entry.metadata.get("flows_cut").is_none(), "{entry:?}");
        assert!(entry.metadata.get("flows_cut_in_pass").is_some(), "{entry:?}");
    }
}

#[test]
fn a_route_of_another_program_costs_its_prefix_and_nothing_else() {
    let mut world = quiet_world();
    let theirs = "192.168.1.0/24".parse().unwrap();
    world.foreign_routes.insert(theirs);
    for (number, site) in [(1, "192.168.1.0/24"), (2, "192.168.4.0/24")] {
        let row = world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
        row.allowed_ips = Box::new([site.parse().unwrap()]);
    }
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    let status = world.machine.view().status();
    assert!(status.state.is_ready(), "{:?}", status.state);
    assert!(status.warnings.iter().any(|warning| warning.contains("192.168.1.0/24")));
    let ours = world.kernel.state.routes.iter().filter(|(_, tag)| **tag == Tag::Ours);
    assert!(ours.map(|(prefix, _)| prefix.to_string()).eq(["192.168.4.0/24"]));
    let told = world.reports.last().unwrap().synced_as_of;
    assert!(told.is_some(), "the rest is proven");
    let (steps, notes) = (world.applied_steps, world.notes.len());
    world.reports.clear();
    world.pass_time(20 * MINUTE);
    assert_eq!(said(&world, |note| matches!(note, Note::StepRefused { .. })), 1);
    assert_eq!((world.applied_steps, world.notes.len()), (steps, notes), "and quiet");
    assert!(syncs(&world) > 100, "{} beats in 20 min", syncs(&world));
    world.foreign_routes.clear();
    world.tell(Event::Resync);
    world.pass_time(SECOND);
    assert!(world.kernel_equals_database());
    assert!(world.machine.view().status().warnings.is_empty());
}
