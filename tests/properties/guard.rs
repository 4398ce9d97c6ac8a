//! Removals that wait for an operator's word: they alone wait, and only they are confirmed.

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost::model::{
    DesiredState, Effect, ObservedState, PolicyId, PolicyRow, PublicKey, TargetRow, TargetType,
};
use gatepost::plan::guard::{Guard, MaxRemoved, plan_guarded};
use gatepost::plan::{Held, ModelKernel, Scope, Step, plan, plan_around};
use gatepost::reconcile::{Event, Keep, LastGood, MachineOptions, Note, StaleOptions, StalePolicy};
use ipnet::IpNet;
use proptest::prelude::*;

use super::machine::Happening;
use super::plans::{holders, kernel_of};
use super::rows::{id, local, tables};
use super::world::{Trouble, World, options, quiet_tables};

/// Everybody whom no row wants.
pub fn unwanted(desired: &DesiredState, observed: &ObservedState) -> BTreeSet<PublicKey> {
    observed.peers.keys().filter(|key| !desired.peers().contains_key(key)).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn who_is_held_keeps_all_and_all_else_is_put_right(
        old in tables(), new in tables(), flushed: bool, lost_routes: bool,
    ) {
        let mut kernel = kernel_of(&old);
        let desired = new.build();
        let before = kernel.state.clone();
        let held = unwanted(&desired, &before);
        let held = Held::of(held, &before, &Held::default());
        if flushed {
            kernel.state.firewall = None;
        }
        if lost_routes {
            kernel.state.routes.clear();
        }
        let held = Held::of(held.peers().clone(), &kernel.state, &held);
        let around = plan_around(&desired, &kernel.state, &Scope::Everything, &held).unwrap();
        for step in around.steps() {
            let had = holders(&kernel.state);
            kernel.apply_step(step).unwrap();
            for (prefix, keys) in holders(&kernel.state) {
                prop_assert!(had.get(&prefix).is_none_or(|had| *had == keys), "{prefix}: {step}");
            }
        }
        let firewall = kernel.state.firewall.as_ref().unwrap();
        let mut taken = BTreeSet::new();
        for key in held.peers() {
            prop_assert_eq!(kernel.state.peers.get(key), before.peers.get(key));
            for prefix in before.peers[key].allowed_ips.iter() {
                let had = before.firewall.as_ref().unwrap().profile_of(&prefix);
                prop_assert_eq!(firewall.profile_of(&prefix), had);
                let inside = |route: &IpNet| route.contains(&prefix);
                prop_assert_eq!(
                    kernel.state.routes.keys().any(inside), before.routes.keys().any(inside)
                );
                taken.insert(prefix);
            }
        }
        for (key, wanted) in desired.peers() {
            let has = &kernel.state.peers[key].allowed_ips;
            let spared = wanted.allowed_ips.iter().filter(|prefix| !taken.contains(prefix));
            prop_assert_eq!(has, &spared.collect());
        }
        let again = plan_around(&desired, &kernel.state, &Scope::Everything, &held).unwrap();
        prop_assert!(again.is_empty(), "left over: {:?}", again.steps());
        let release = plan(&desired, &kernel.state, &Scope::Everything).unwrap();
        kernel.apply_first(&release, usize::MAX).unwrap();
        prop_assert!(plan(&desired, &kernel.state, &Scope::Everything).unwrap().is_empty());
    }
}

/// Peers 1 to `peers`, all of whom may reach this network.
fn world_of(peers: u8, network: &str) -> World {
    let mut tables = quiet_tables(peers);
    let everybody = tables.peers.values().map(|row| TargetRow {
        target_type: TargetType::User,
        target_id: row.user_id.0,
        dangling: false,
    });
    let policy = PolicyRow {
        id: PolicyId(id(6, 1)),
        name: "office".into(),
        priority: 1,
        effect: Effect::Allow,
        full_tunnel: false,
        destinations: vec![network.parse().unwrap()],
        targets: everybody.collect(),
    };
    tables.policies.insert(policy.id, policy);
    let mut world = World::new(tables, ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    world
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

/// Whether this peer is there and may reach that address.
fn reaches(world: &World, number: u8, destination: &str) -> bool {
    let state = &world.kernel.state;
    let Some(peer) = state.peers.get(&key(number)) else { return false };
    let table = state.firewall.as_ref().unwrap();
    let mut prefixes = peer.allowed_ips.iter();
    let profile = prefixes.next().and_then(|prefix| table.profile_of(&prefix));
    profile.is_some_and(|profile| profile.allows(destination.parse().unwrap()))
}

fn held_back(world: &World) -> Vec<usize> {
    let notes = world.notes.iter().filter_map(|note| match note {
        Note::HeldBack(held) => Some(held.removed),
        _ => None,
    });
    notes.collect()
}

#[test]
fn an_emptied_table_waits_for_a_word() {
    let mut world = world_of(20, "172.16.0.0/24");
    let kept = world.kernel.state.peers.clone();
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(120));
    assert_eq!(world.kernel.state.peers, kept);
    assert_eq!(held_back(&world), [20], "said once");
    world.reports.clear();
    world.pass_time(Duration::from_secs(60));
    assert!(world.reports.iter().all(|report| report.synced_as_of.is_none()), "no lie meanwhile");
    world.tell(Event::ConfirmRemovals);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel.state.peers.is_empty());
    assert!(world.machine.view().held_back().is_none());
}

#[test]
fn rows_become_the_last_good_ones_when_nothing_of_them_waits() {
    let mut world = world_of(28, "172.16.0.0/24");
    assert_eq!(world.kept, [Keep::All]);
    world.troubles.insert(Trouble::GatewayRow);
    world.tell(Event::Resync);
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kept, [Keep::All], "rows that cannot be built are not kept");
    world.troubles.clear();
    world.pass_time(Duration::from_secs(30));
    world.kept.clear();
    world.revoke(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    assert_eq!(world.kept, [Keep::Later]);
    world.revoke([20]);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    assert_eq!(world.kept, [Keep::Later, Keep::These], "one more is revoked meanwhile");
    world.tell(Event::ConfirmRemovals);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.kept, [Keep::Later, Keep::These, Keep::All]);
}

#[test]
fn a_flush_and_a_lost_link_setting_are_repaired_while_removals_wait() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.revoke(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.machine.view().held_back().unwrap().removed, 15);
    world.kernel.state.interface.as_mut().unwrap().listen_port = 1;
    world.happen(Happening::FlushFirewall);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.kernel.state.interface.as_ref().unwrap().listen_port, 51820);
    for number in 1..=28 {
        assert!(reaches(&world, number, "172.16.0.1"), "{number} keeps what it had");
        assert!(!reaches(&world, number, "172.16.1.1"));
    }
    assert_eq!(held_back(&world), [15], "said once");
    assert!(world.machine.view().held_back().is_some());
}

#[test]
fn a_narrowing_and_a_few_revocations_act_beside_removals_that_wait() {
    let mut world = world_of(28, "172.16.0.0/23");
    world.tables.policies.values_mut().next().unwrap().destinations =
        vec!["172.16.0.0/24".parse().unwrap()];
    world.revoke(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(reaches(&world, 15, "172.16.1.1"), "who is held keeps what it had");
    assert!(!reaches(&world, 16, "172.16.1.1"), "the narrowing acts");
    assert!(reaches(&world, 16, "172.16.0.1"));
    world.revoke([28]);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(!world.kernel.state.peers.contains_key(&key(28)), "a few go on");
    assert_eq!(world.kernel.state.peers.len(), 27);
    world.restore_all();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(20));
    assert!(world.machine.view().held_back().is_none());
    assert!(world.kernel_equals_database());
}

#[test]
fn a_table_emptied_in_two_transactions_waits_as_a_whole() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.revoke(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    world.revoke(16..=28);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kernel.state.peers.len(), 28);
    assert_eq!(held_back(&world), [15, 28]);
}

#[test]
fn a_word_is_for_the_removals_that_were_shown() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.revoke(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    // The rest goes, too, before anybody was told of it.
    world.revoke(16..=28);
    world.tell(Event::ConfirmRemovals);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kernel.state.peers.len(), 13);
    assert_eq!(held_back(&world), [15, 13]);
    // A word for what has come back is void.
    world.tell(Event::ConfirmRemovals);
    world.restore_all();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    world.revoke(1..=28);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    assert!(world.machine.view().held_back().is_some());
}

#[test]
fn rows_that_grew_old_under_keep_empty_no_gateway() {
    let stale = StaleOptions { policy: StalePolicy::Keep, after: Duration::from_secs(5) };
    let kernel =
        ModelKernel { state: world_of(20, "172.16.0.0/24").kernel.state, ..ModelKernel::default() };
    let mut world = World::with(MachineOptions { stale, ..options() }, quiet_tables(20), kernel);
    world.database_up = false;
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(10));
    world.tables.peers.clear();
    world.tell(Event::Restored(Box::new(LastGood {
        rows: world.tables.snapshot(),
        changes: Vec::new(),
    })));
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kernel.state.peers.len(), 20);
    assert!(world.machine.view().held_back().is_some());
}

#[test]
fn the_guard_counts_peers_and_always_lets_ten_go() {
    let all = quiet_tables(28);
    let kernel = kernel_of(&all);
    let held_of = |revoked: u8, limit, held: &Held, confirmed: &BTreeSet<PublicKey>| {
        let mut world = World::new(all.clone(), kernel.clone());
        world.revoke(1..=revoked);
        let desired = world.tables.build();
        let guard = Guard { limit, held, confirmed };
        let (planned, held) =
            plan_guarded(&desired, &kernel.state, &Scope::Everything, guard).unwrap();
        let removed = |step: &&Step| matches!(step, Step::RemovePeer { .. });
        (planned.steps().iter().filter(removed).count(), held)
    };
    let (nobody, none) = (Held::default(), BTreeSet::new());
    let count = |revoked, limit| held_of(revoked, limit, &nobody, &none).0;
    assert_eq!(count(14, MaxRemoved::Percent(50)), 14);
    assert_eq!(count(15, MaxRemoved::Percent(50)), 0);
    assert_eq!(count(10, MaxRemoved::Percent(0)), 10);
    assert_eq!(count(11, MaxRemoved::Peers(10)), 0);
    let (_, held) = held_of(15, MaxRemoved::Percent(50), &nobody, &none);
    assert_eq!(held_of(15, MaxRemoved::Percent(50), &held, held.peers()).0, 15, "confirmed");
    assert_eq!(held_of(25, MaxRemoved::Percent(50), &held, &none).0, 10, "few go on");
    assert_eq!(held_of(12, MaxRemoved::Percent(50), &held, &none).0, 12, "most came back");
}

#[test]
fn who_goes_with_the_whole_gateway_waits_for_no_word() {
    let all = quiet_tables(28);
    let kernel = kernel_of(&all);
    let mut rows = all.snapshot();
    rows.gateway.active = false;
    let desired = DesiredState::build(local(), rows).unwrap();
    let limit = MaxRemoved::Percent(50);
    let guard = Guard { limit, held: &Held::default(), confirmed: &BTreeSet::new() };
    let (planned, held) = plan_guarded(&desired, &kernel.state, &Scope::Everything, guard).unwrap();
    let removed = planned.steps().iter().filter(|step| matches!(step, Step::RemovePeer { .. }));
    assert_eq!((removed.count(), held), (28, Held::default()));
}
