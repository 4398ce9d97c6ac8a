//! Steps that the kernel refuses, for a while or for good.

use std::time::Duration;

use gatepost::model::{FirewallBase, FixedRules, Masquerade, ObservedFirewall};
use gatepost::reconcile::{Action, Event, Note, Obstacle};
use gatepost::store::{AuditEvent, AuditStatus};

use super::guard::{reaches, world_of};
use super::rows::allowing;
use super::trouble::{HOUR, MINUTE, SECOND, audited, key, said};
use super::world::{Trouble, World, away, quiet_world};

#[test]
fn what_was_done_beside_a_refused_step_is_audited() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Steps);
    world.pass_time(SECOND);
    world.reports.clear();
    world.revoke(1..=9);
    world.tell(Event::Notified);
    world.pass_time(MINUTE);
    let gone = (1..=9).filter(|number| !world.kernel.state.peers.contains_key(&key(*number)));
    let gone = gone.count();
    assert!((1..9).contains(&gone), "{gone} of 9 were removed, the others refused");
    assert_eq!(audited(&world, AuditEvent::PeerRevoked).len(), gone);
    let parts = audited(&world, AuditEvent::GatewaySynced);
    assert!(parts.iter().all(|entry| entry.status == AuditStatus::Warning), "{parts:?}");
    assert_eq!(parts.len(), 1, "only what changed something: {parts:?}");
    world.troubles.clear();
    world.pass_time(MINUTE);
    assert_eq!(audited(&world, AuditEvent::PeerRevoked).len(), 9);
}

#[test]
fn withdrawals_by_rows_that_cannot_be_used_are_audited_as_such_and_put_no_policy_in_force() {
    let mut world = world_of(20, "172.16.0.0/24");
    world.reports.clear();
    world.troubles.insert(Trouble::GatewayRow);
    let policy = world.tables.policies.values_mut().next().unwrap();
    // It is taken from the peers, and nothing is given to them.
    policy.destinations = vec!["172.17.0.0/24".parse().unwrap()];
    world.tell(Event::Resync);
    world.pass_time(MINUTE);
    assert!(!reaches(&world, 7, "172.16.0.1") && !reaches(&world, 7, "172.17.0.1"));
    assert_eq!(audited(&world, AuditEvent::PolicyApplied).len(), 0);
    let passes = audited(&world, AuditEvent::GatewaySynced);
    let [pass] = &passes[..] else { panic!("{passes:?}") };
    assert!(pass.message.starts_with("withdrawals only"), "{pass:?}");
    assert_eq!(pass.status, AuditStatus::Warning);
    world.troubles.clear();
    world.tell(Event::Resync);
    world.pass_time(MINUTE);
    assert!(reaches(&world, 7, "172.17.0.1"));
    assert_eq!(audited(&world, AuditEvent::PolicyApplied).len(), 1);
}

#[test]
fn audit_log_gets_only_the_events_that_the_setting_names() {
    let mut world = quiet_world();
    let setting = |value: &str| gatepost::model::SettingRow {
        category: "gateway".into(),
        key: "audit_events".into(),
        value: value.into(),
    };
    world.tables.settings = vec![setting("[\"gateway.*\"]")];
    world.tell(Event::Notified);
    world.pass_time(MINUTE);
    world.reports.clear();
    world.revoke(1..=3);
    world.tell(Event::Notified);
    world.pass_time(MINUTE);
    assert_eq!(audited(&world, AuditEvent::PeerRevoked).len(), 0);
    assert_eq!(audited(&world, AuditEvent::GatewaySynced).len(), 1);
    world.tables.settings.clear();
    world.revoke(4..=5);
    world.tell(Event::Notified);
    world.pass_time(MINUTE);
    assert_eq!(audited(&world, AuditEvent::PeerRevoked).len(), 2);
}

#[test]
fn after_a_refusal_nothing_is_planned_before_a_look_at_the_kernel() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Steps);
    world.revoke(1..=9);
    world.tell(Event::Notified);
    world.settle();
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Refused { .. })));
    world.troubles.clear();
    // Somebody else is revoked while the refused ones wait for their next try.
    world.revoke([10]);
    world.elapsed += Duration::from_millis(60);
    world.tell(Event::Notified);
    let mut jobs = Vec::new();
    while let Some(action) = world.queue.pop_front() {
        match &action {
            Action::Read(_) => jobs.push("read"),
            Action::Observe => jobs.push("observe"),
            Action::Apply(..) => jobs.push("apply"),
            _ => {}
        }
        world.carry_out(action);
    }
    assert_eq!(jobs[..3], ["read", "observe", "apply"], "at once, and not on what is in doubt");
    assert!(world.kernel_equals_database());
}

#[test]
fn what_is_refused_for_good_is_said_once_and_costs_few_readings() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Steps);
    world.revoke(1..=9);
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    world.reading_takes = Duration::from_millis(200);
    let refused = |note: &Note| matches!(note, Note::StepRefused { .. });
    let (notes, observations) = (said(&world, refused), world.observations);
    world.pass_time(HOUR / 2);
    assert_eq!(said(&world, refused), notes);
    let looked = world.observations - observations;
    // A reading that takes 0.2 s is worth one in 40 s.
    assert!(looked <= 60, "{looked} readings in half an hour");
}

#[test]
fn what_is_refused_for_good_holds_up_no_repair_of_the_table() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::Steps);
    world.revoke(1..=9);
    world.tell(Event::Notified);
    // By now it is tried again only seldom.
    world.pass_time(HOUR / 2);
    world.kernel.state.firewall = None;
    world.tell(Event::KernelChanged { why: "the table was deleted".into() });
    world.pass_time(SECOND);
    let table = world.kernel.state.firewall.as_ref().expect("it is there again");
    assert!(table.guards(world.machine.view().desired().unwrap().interface().name.as_str()));
}

#[test]
fn what_fails_for_good_is_tried_less_often_and_said_once() {
    let mut world = quiet_world();
    world.troubles.insert(Trouble::GatewayRow);
    world.tell(Event::Resync);
    world.settle();
    world.reads.clear();
    world.pass_time(HOUR / 6);
    assert!(world.reads.len() <= 130, "{} full reads in ten minutes", world.reads.len());
    let mut world = quiet_world();
    world.database_up = false;
    world.tell(Event::Disconnected { error: away() });
    let start = world.tries;
    world.pass_time(HOUR / 2);
    let tries = world.tries - start;
    assert!(tries <= 380, "{tries} connects in half an hour, whatever else succeeds");
    assert_eq!(said(&world, |note| matches!(note, Note::DatabaseDown { .. })), 1);
}

#[test]
fn policies_narrow_after_a_refused_change_of_the_table_while_the_kernel_cannot_be_read() {
    let mut world = world_of(20, "172.16.0.0/23");
    let revoke = |world: &mut World, number| {
        world.revoke([number]);
        world.tell(Event::Notified);
        world.pass_time(SECOND);
    };
    world.troubles.insert(Trouble::Unsettled(key(19)));
    revoke(&mut world, 19);
    assert!(world.troubles.contains(&Trouble::Observations), "the device does not settle");
    world.troubles.insert(Trouble::Firewall);
    revoke(&mut world, 20);
    let refused = |note: &Note| {
        matches!(note, Note::StepRefused { .. }) && note.to_string().contains("profiles")
    };
    assert!(said(&world, refused) > 0, "{:?}", world.notes);
    world.troubles.remove(&Trouble::Firewall);
    world.tables.policies.values_mut().next().unwrap().destinations =
        vec!["172.16.0.0/24".parse().unwrap()];
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    for number in 1..=18 {
        assert!(!reaches(&world, number, "172.16.1.1"), "{number} reaches what was taken");
        assert!(reaches(&world, number, "172.16.0.1"), "{number} lost what it keeps");
    }
    assert!(world.troubles.contains(&Trouble::Observations), "no reading helped");
}

#[test]
fn a_host_without_room_for_a_second_table_disrupts_no_peer_and_still_withdraws() {
    let mut world = world_of(20, "172.16.0.0/23");
    let table = world.kernel.state.firewall.as_ref().unwrap();
    let (profiles, places) = (table.profiles().clone(), table.assignments().clone());
    let former = FirewallBase { masquerade: Masquerade::None, ..table.base().unwrap().clone() };
    world.kernel.state.firewall =
        Some(ObservedFirewall::new(FixedRules::Ours(former.clone()), profiles, places));
    world.kernel.is_full = true;
    world.tables.policies.values_mut().next().unwrap().destinations =
        vec!["172.16.0.0/24".parse().unwrap()];
    let granted = allowing(3, "172.16.9.0/24", [18]);
    world.tables.policies.insert(granted.id, granted);
    world.revoke([19]);
    world.tell(Event::KernelChanged { why: "the configuration changed".into() });
    world.tell(Event::Notified);
    world.pass_time(5 * SECOND);
    let base = |world: &World| world.kernel.state.firewall.as_ref().unwrap().base().cloned();
    assert_eq!(base(&world), Some(former), "the host had room");
    assert!(matches!(world.machine.view().obstacle(), Some(Obstacle::Refused { .. })));
    assert!(!world.kernel.state.peers.contains_key(&key(19)));
    for number in (1..=20).filter(|number| *number != 19) {
        assert!(!reaches(&world, number, "172.16.1.1"), "{number} reaches what was taken");
        assert!(reaches(&world, number, "172.16.0.1"), "{number} lost what it keeps");
    }
    world.kernel.is_full = false;
    world.pass_time(MINUTE);
    assert!(world.kernel_equals_database());
}

#[test]
fn policies_narrow_although_only_a_table_of_a_former_version_is_there() {
    let mut world = world_of(20, "172.16.0.0/23");
    world.troubles.insert(Trouble::GatewayRow);
    world.tell(Event::Resync);
    world.pass_time(SECOND);
    let table = world.kernel.state.firewall.as_ref().unwrap();
    let (profiles, places) = (table.profiles().clone(), table.assignments().clone());
    let former = FixedRules::Other("gatepost0".parse().unwrap());
    world.kernel.state.firewall = Some(ObservedFirewall::new(former, profiles, places));
    world.tables.policies.values_mut().next().unwrap().destinations =
        vec!["172.16.0.0/24".parse().unwrap()];
    world.tell(Event::KernelChanged { why: "an upgrade".into() });
    world.tell(Event::Notified);
    world.pass_time(SECOND);
    for number in 1..=20 {
        assert!(!reaches(&world, number, "172.16.1.1"), "{number}");
        assert!(reaches(&world, number, "172.16.0.1"), "{number}");
    }
    assert!(
        world.kernel.state.firewall.as_ref().unwrap().base().is_some(),
        "it can be narrowed now"
    );
}
