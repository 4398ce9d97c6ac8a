//! A deletion of many that the guard holds back, and that the database then loses, as by a restore that
//! undoes the mistake: no peer is cut off.

use std::ops::RangeInclusive;
use std::time::Duration;

use gatepost::model::BarredBy;
use gatepost::reconcile::{Action, Event, Note};
use proptest::prelude::*;

use super::machine::Happening;
use super::past::{Past, small};
use super::rows::Tables;
use super::world::Trouble;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// The peers whose rows a mistake deletes, of 20.
const MANY: RangeInclusive<u8> = 7..=20;

fn delete(past: &mut Past, rows_go: bool) {
    past.commit_all(MANY, |tables: &mut Tables, peer| {
        if rows_go {
            tables.peers.remove(&peer);
        } else if let Some(row) = tables.peers.get_mut(&peer) {
            row.bars = BarredBy::DEVICE_DELETED;
        }
    });
}

fn are_in_kernel(past: &Past, numbers: RangeInclusive<u8>) -> bool {
    numbers.into_iter().all(|number| past.passes(number))
}

fn says_that_history_is_lost(past: &Past) -> bool {
    past.world.notes.iter().any(|note| matches!(note, Note::HistoryLost { .. }))
}

#[test]
fn restore_that_undoes_a_deletion_of_many_touches_no_tunnel() {
    for rows_go in [false, true] {
        let mut past = Past::new();
        delete(&mut past, rows_go);
        past.world.pass_time(SECOND);
        assert!(MANY.into_iter().all(|number| past.is_held(number)));
        let steps = past.world.applied_steps;
        past.lose(1);
        past.world.pass_time(2 * MINUTE);
        assert_eq!(past.world.applied_steps, steps);
        assert!(are_in_kernel(&past, 1..=20) && past.world.kernel_equals_database());
        assert!(!past.world.machine.view().keeps_out() && !says_that_history_is_lost(&past));
    }
}

#[test]
fn a_restore_that_undoes_a_mass_deletion_still_keeps_out_revoked_peers() {
    for rows_go in [false, true] {
        let mut past = Past::new();
        past.commit(1, BarredBy::DEVICE_STATUS);
        past.world.pass_time(SECOND);
        delete(&mut past, rows_go);
        past.world.pass_time(SECOND);
        assert_eq!(past.lose(2), [1].into());
        for _ in 0..120 {
            past.world.pass_time(SECOND);
            assert!(!past.in_kernel(1) && are_in_kernel(&past, 2..=20));
        }
        assert!(says_that_history_is_lost(&past));
    }
}

#[test]
fn deletion_of_many_that_an_operator_confirmed_holds_when_the_database_loses_it() {
    let mut past = Past::new();
    delete(&mut past, false);
    past.world.pass_time(SECOND);
    past.world.confirm();
    past.world.pass_time(SECOND);
    assert!(MANY.into_iter().all(|number| !past.in_kernel(number)));
    past.lose(1);
    past.world.pass_time(2 * MINUTE);
    assert!(MANY.into_iter().all(|number| !past.in_kernel(number)) && are_in_kernel(&past, 1..=6));
    assert!(says_that_history_is_lost(&past));
}

#[test]
fn restore_of_rows_that_were_taken_for_another_gateways_touches_no_tunnel() {
    for (rows_go, is_held_before) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut past = Past::new();
        if is_held_before {
            delete(&mut past, rows_go);
            past.world.pass_time(SECOND);
        }
        past.world.troubles.insert(Trouble::WrongKey);
        past.world.tell(Event::Resync);
        past.world.pass_time(SECOND);
        if !is_held_before {
            delete(&mut past, rows_go);
        }
        past.world.tell(Event::Resync);
        past.world.pass_time(20 * SECOND);
        let steps = past.world.applied_steps;
        past.lose(1);
        past.world.troubles.clear();
        past.world.pass_time(2 * MINUTE);
        assert_eq!(past.world.applied_steps, steps);
        assert!(are_in_kernel(&past, 1..=20) && !says_that_history_is_lost(&past));
    }
}

#[test]
fn restore_before_a_deletion_of_many_could_be_planned_touches_no_tunnel() {
    for is_killed in [false, true] {
        let mut past = Past::new();
        if is_killed {
            delete(&mut past, false);
            past.world.pass_time(SECOND);
            past.world.happen(Happening::Kill);
        }
        past.world.tell(Event::KernelChanged { why: "a slow reading".into() });
        past.world.tell(Event::Tick);
        let looks = |action: &Action| matches!(action, Action::Observe);
        let at = past.world.queue.iter().position(looks).unwrap();
        let reading = past.world.queue.remove(at).unwrap();
        if !is_killed {
            delete(&mut past, false);
        }
        past.lose(1);
        past.world.tell(Event::Resync);
        past.world.settle();
        past.world.carry_out(reading);
        past.world.pass_time(2 * MINUTE);
        assert!(are_in_kernel(&past, 1..=20) && !says_that_history_is_lost(&past));
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Delete { rows_go: bool },
    Restore,
    Revoke(u8),
    Admit(u8),
    Lose(usize),
    Happen(Happening),
}

/// Not that the kernel cannot be read: an agent that never read it does not know whom the guard would hold, and keeps
/// out who may have been revoked.
fn deed() -> impl Strategy<Value = Deed> {
    let troubles = vec![Trouble::Reads, Trouble::GatewayRow, Trouble::WrongKey, Trouble::Flows];
    prop_oneof![
        3 => any::<bool>().prop_map(|rows_go| Deed::Delete { rows_go }),
        1 => Just(Deed::Restore),
        2 => (1u8..=5).prop_map(Deed::Revoke),
        1 => (1u8..=5).prop_map(Deed::Admit),
        3 => (1usize..5).prop_map(Deed::Lose),
        5 => small(troubles, 2).prop_map(Deed::Happen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn held_peers_stay_when_the_database_loses_their_deletion(
        deeds in prop::collection::vec(deed(), 1..14),
    ) {
        let mut past = Past::new();
        let rows = past.world.tables.clone();
        for deed in deeds {
            match deed {
                Deed::Delete { rows_go } => delete(&mut past, rows_go),
                Deed::Restore => past.commit_all(MANY, |tables, peer| {
                    tables.peers.insert(peer, rows.peers[&peer].clone());
                }),
                Deed::Revoke(number) => past.commit(number, BarredBy::DEVICE_STATUS),
                Deed::Admit(number) => past.commit(number, BarredBy::default()),
                Deed::Lose(commits) => drop(past.lose(commits)),
                Deed::Happen(happening) => past.world.happen(happening),
            }
            prop_assert!(are_in_kernel(&past, MANY));
        }
        past.world.troubles.clear();
        past.world.pass_time(2 * MINUTE);
        prop_assert!(are_in_kernel(&past, MANY));
    }
}
