//! Removals that wait for an operator: which they are, and what confirms them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gatepost::model::{
    BarredBy, DesiredState, Effect, ObservedState, PolicyId, PolicyRow, Profile, PublicKey,
    TargetRow, TargetType,
};
use gatepost::plan::guard::{Guard, MaxRemoved, Whose, plan_guarded};
use gatepost::plan::{Held, ModelKernel, Scope, Step};
use gatepost::reconcile::{
    Event, Keep, LastGood, MachineOptions, Note, Provenance, StaleOptions, StalePolicy,
};

use super::machine::Happening;
use super::plans::kernel_of;
use super::rows::{id, local};
use super::world::{Trouble, World, options, quiet_tables, restored};

/// The guard of a gateway that is in no doubt, and to which no question was answered.
fn guard_of(limit: MaxRemoved, held: Held, confirmed: &BTreeSet<PublicKey>) -> Guard<'_> {
    const NONE: &BTreeMap<PublicKey, Arc<Profile>> = &BTreeMap::new();
    Guard { limit, held, confirmed, granted: NONE, whose: Whose::Ours }
}

/// Every peer that no row admits.
pub fn unwanted(desired: &DesiredState, observed: &ObservedState) -> BTreeSet<PublicKey> {
    observed.peers.keys().filter(|key| !desired.peers().contains_key(key)).copied().collect()
}

/// Peers 1 to `peers`, all of whom may reach this network.
pub fn world_of(peers: u8, network: &str) -> World {
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
        beyond: None,
    };
    tables.policies.insert(policy.id, policy);
    let mut world = World::new(tables, ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    world
}

pub fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

/// Whether this peer is there and may reach that address.
pub fn reaches(world: &World, number: u8, destination: &str) -> bool {
    let state = &world.kernel.state;
    let Some(peer) = state.peers.get(&key(number)) else { return false };
    let table = state.firewall.as_ref().unwrap();
    let mut prefixes = peer.allowed_ips.iter();
    let profile = prefixes.next().and_then(|prefix| table.profile_of(&prefix));
    profile.is_some_and(|profile| profile.allows(destination.parse().unwrap()))
}

pub fn held_back(world: &World) -> Vec<u64> {
    let notes = world.notes.iter().filter_map(|note| match note {
        Note::HeldBack(held) => Some(held.removals),
        _ => None,
    });
    notes.collect()
}

#[test]
fn an_emptied_table_waits_for_a_confirmation() {
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
    world.confirm();
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
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    assert_eq!(world.kept, [Keep::Later]);
    world.deactivate([20]);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    assert_eq!(world.kept, [Keep::Later, Keep::These], "one more is revoked meanwhile");
    world.confirm();
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.kept, [Keep::Later, Keep::These, Keep::All]);
}

#[test]
fn a_flush_and_a_lost_link_setting_are_repaired_while_removals_wait() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.machine.view().held_back().unwrap().removals, 15);
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
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    for number in [15, 16] {
        assert!(!reaches(&world, number, "172.16.1.1"), "the narrowing acts on {number}");
        assert!(reaches(&world, number, "172.16.0.1"), "{number} keeps the rest");
    }
    world.deactivate([28]);
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
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    world.deactivate(16..=28);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kernel.state.peers.len(), 28);
    assert_eq!(held_back(&world), [15, 28]);
}

#[test]
fn a_confirmation_is_for_the_removals_that_were_shown() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    // The rest goes, too, before an operator could see it.
    world.deactivate(16..=28);
    world.confirm();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kernel.state.peers.len(), 13);
    assert_eq!(held_back(&world), [15, 13]);
    // A confirmation for what has come back is void.
    world.confirm();
    world.restore_all();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(30));
    world.deactivate(1..=28);
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
    let (rows, provenance) = (world.tables.snapshot(), Provenance::Sealed);
    world.tell(restored(LastGood { rows, changes: Vec::new(), provenance }));
    world.pass_time(Duration::from_secs(30));
    assert_eq!(world.kernel.state.peers.len(), 20);
    assert!(world.machine.view().held_back().is_some());
}

fn removals(planned: &gatepost::plan::Plan) -> usize {
    planned.steps().iter().filter(|step| matches!(step, Step::RemovePeer { .. })).count()
}

#[test]
fn the_guard_counts_peers_and_always_lets_ten_go() {
    let all = quiet_tables(28);
    let kernel = kernel_of(&all);
    let held_of = |deleted: u8, limit, held: &Held, confirmed: &BTreeSet<PublicKey>| {
        let mut world = World::new(all.clone(), kernel.clone());
        world.deactivate(1..=deleted);
        let desired = world.tables.build();
        let held = held.clone();
        let guard = guard_of(limit, held, confirmed);
        let (planned, held) = plan_guarded(&desired, &kernel.state, &Scope::Everything, guard);
        (removals(&planned.unwrap()), held)
    };
    let (nothing, none) = (Held::default(), BTreeSet::new());
    let count = |deleted, limit| held_of(deleted, limit, &nothing, &none).0;
    assert_eq!(count(14, MaxRemoved::Percent(50)), 14);
    assert_eq!(count(15, MaxRemoved::Percent(50)), 0);
    assert_eq!(count(10, MaxRemoved::Percent(0)), 10);
    assert_eq!(count(11, MaxRemoved::Peers(10)), 0);
    let (_, held) = held_of(15, MaxRemoved::Percent(50), &nothing, &none);
    let shown = held.peers().keys().copied().collect();
    assert_eq!(held_of(15, MaxRemoved::Percent(50), &held, &shown).0, 15, "confirmed");
    assert_eq!(held_of(25, MaxRemoved::Percent(50), &held, &none).0, 10, "few go on");
    assert_eq!(held_of(12, MaxRemoved::Percent(50), &held, &none).0, 0, "more may come back");
    let mut emptied = all.clone();
    emptied.peers.clear();
    let limit = MaxRemoved::Peers(200);
    let guard = guard_of(limit, nothing, &none);
    let (_, held) = plan_guarded(&emptied.build(), &kernel.state, &Scope::Everything, guard);
    assert_eq!(held.peers().len(), 28, "no row is left");
}

/// What a reading removes that comes while a gateway is filled for the first time: some of the few that were just
/// added, and never one of many that were there before.
#[test]
fn the_guard_counts_those_that_are_there_while_a_gateway_is_filled() {
    let all = quiet_tables(28);
    let removed = |present: u8, rows_left: bool| {
        let mut world = World::new(all.clone(), kernel_of(&all));
        world.kernel.state.peers.retain(|peer, _| (1..=present).any(|number| *peer == key(number)));
        assert_eq!(world.kernel.state.peers.len(), usize::from(present));
        if rows_left {
            world.deactivate(1..=27);
        } else {
            world.tables.peers.clear();
        }
        let (limit, held) = (MaxRemoved::default(), Held::default());
        let none = BTreeSet::new();
        let guard = guard_of(limit, held, &none);
        let (desired, kernel) = (world.tables.build(), &world.kernel.state);
        removals(&plan_guarded(&desired, kernel, &Scope::Everything, guard).0.unwrap())
    };
    assert_eq!([1, 2, 10, 11, 28].map(|present| removed(present, false)), [1, 0, 0, 0, 0]);
    assert_eq!([1, 2, 10, 11, 28].map(|present| removed(present, true)), [1, 2, 10, 0, 0]);
}

#[test]
fn only_deletions_count_for_the_guard() {
    let all = quiet_tables(28);
    let kernel = kernel_of(&all);
    let bars = [
        (BarredBy::DEVICE_STATUS, 28),
        (BarredBy::DEVICE_STATUS.union(BarredBy::USER_DELETED), 28),
        (BarredBy::DEVICE_DELETED, 0),
        (BarredBy::USER_INACTIVE, 0),
        (BarredBy::USER_DELETED, 0),
    ];
    for (bars, removed) in bars {
        let mut tables = all.clone();
        tables.peers.values_mut().for_each(|row| row.bars = bars);
        let (limit, held) = (MaxRemoved::Percent(0), Held::default());
        let none = BTreeSet::new();
        let guard = guard_of(limit, held, &none);
        let planned = plan_guarded(&tables.build(), &kernel.state, &Scope::Everything, guard).0;
        assert_eq!(removals(&planned.unwrap()), removed, "{bars:?}");
    }
}

#[test]
fn revoked_devices_are_removed_at_once_however_many() {
    let mut world = world_of(16, "172.16.0.0/24");
    world.revoke(1..=14);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    assert_eq!((world.kernel.state.peers.len(), held_back(&world)), (2, vec![]));
}

#[test]
fn a_small_gateway_is_guarded_only_against_tables_without_rows() {
    let mut world = world_of(8, "172.16.0.0/24");
    world.deactivate(1..=7);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!((world.kernel.state.peers.len(), held_back(&world)), (1, vec![]), "seven of eight");
    let mut world = world_of(8, "172.16.0.0/24");
    let rows = std::mem::take(&mut world.tables.peers);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    assert_eq!((world.kernel.state.peers.len(), held_back(&world)), (8, vec![8]));
    // They come back one by one, each in a transaction of its own.
    for (number, (id, row)) in (0..).zip(rows.clone()) {
        world.tables.peers.insert(id, row);
        world.tell(if number % 2 == 0 { Event::Notified } else { Event::Resync });
        world.pass_time(Duration::from_secs(1));
        assert_eq!(world.kernel.state.peers.len(), 8, "after row {number}");
    }
    assert!(world.kernel_equals_database() && world.machine.view().held_back().is_none());
    // One that does not come back is removed after a confirmation.
    world.tables.peers.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    world.tables.peers = rows;
    world.tables.peers.pop_first();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.machine.view().held_back().unwrap().removals, 1);
    world.confirm();
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
}

#[test]
fn peers_of_a_gateway_that_is_switched_off_are_not_held() {
    let all = quiet_tables(28);
    let kernel = kernel_of(&all);
    let mut rows = all.snapshot();
    rows.gateway.active = false;
    rows.peers.pop();
    let desired = DesiredState::build(local(), rows).unwrap();
    let (limit, held) = (MaxRemoved::Percent(0), Held::default());
    let none = BTreeSet::new();
    let guard = guard_of(limit, held, &none);
    let (planned, held) = plan_guarded(&desired, &kernel.state, &Scope::Everything, guard);
    assert_eq!((removals(&planned.unwrap()), held), (28, Held::default()));
}

#[test]
fn setting_confirms_what_was_held_before_its_time_and_nothing_else() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(10));
    let confirm = |world: &mut World, at: std::time::SystemTime| {
        let value = serde_json::json!(humantime::format_rfc3339_micros(at).to_string());
        let (category, key) = ("gateway".into(), "guard_confirmed_at".into());
        let row = gatepost::model::SettingRow { category, key, value: value.to_string() };
        world.tables.settings = vec![row];
        world.tell(Event::Notified);
        world.pass_time(Duration::from_secs(5));
    };
    let early = world.database_now() - Duration::from_secs(10);
    confirm(&mut world, early);
    assert_eq!(world.machine.view().held_back().unwrap().removals, 15, "it was held later");
    let ahead = world.database_now() + Duration::from_secs(3_600);
    confirm(&mut world, ahead);
    assert_eq!(world.machine.view().held_back().unwrap().removals, 15, "it lies ahead");
    let warnings = world.machine.view().status().warnings;
    assert!(warnings.iter().any(|it| it.contains("guard_confirmed_at")), "{warnings:?}");
    let now = world.database_now();
    confirm(&mut world, now);
    assert!(world.machine.view().held_back().is_none());
    assert_eq!(world.kernel.state.peers.len(), 13);
    // It does not hold for later removals.
    world.deactivate(16..=28);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(5));
    assert_eq!(world.machine.view().held_back().unwrap().removals, 13);
}
