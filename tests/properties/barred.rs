//! A revocation is remembered whatever else bars the peer when it comes, or when the database says that
//! it lost it.

use std::time::Duration;

use gatepost::model::{BarredBy, PeerId, Whom};
use gatepost::reconcile::{Action, Event, LastGood, Note, Provenance};

use super::blocks::block;
use super::machine::Happening;
use super::past::{Past, key, stale_past};
use super::rows::id;
use super::world::{Trouble, away};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The database loses the revocation of the first peer, which then stays out and is named.
fn lose_and_see_it_stay_out(mut past: Past) {
    past.world.pass_time(SECOND);
    assert!(!past.in_kernel(1));
    assert_eq!(past.lose(1), [1].into());
    see_it_stay_out(past);
}

fn see_it_stay_out(mut past: Past) {
    past.world.pass_time(20 * SECOND);
    block(&mut past.world, []);
    past.gateway_is(true);
    past.world.pass_time(MINUTE);
    assert!(!past.in_kernel(1) && past.in_kernel(2));
    let names_it = |note: &&Note| matches!(note, Note::HistoryLost { peers, .. } if *peers == ["user-1/laptop"]);
    assert_eq!(past.world.notes.iter().filter(names_it).count(), 1);
    assert!(past.world.machine.view().keeps_out(), "it is shown");
    past.world.pass_time(15 * MINUTE);
    assert!(past.in_kernel(1), "followed");
}

#[test]
fn revocation_of_a_blocked_peer_is_remembered() {
    for is_read_anew in [false, true] {
        let mut past = Past::new();
        block(&mut past.world, [Whom::Key(key(1))]);
        past.world.pass_time(SECOND);
        past.commit(1, BarredBy::DEVICE_STATUS);
        if is_read_anew {
            past.world.tell(Event::Resync);
        }
        past.world.pass_time(SECOND);
        past.world.happen(Happening::Kill);
        past.world.pass_time(SECOND);
        block(&mut past.world, []);
        lose_and_see_it_stay_out(past);
    }
}

#[test]
fn revocation_of_a_blocked_peer_before_the_first_read_of_an_agent_is_remembered() {
    let mut past = Past::new();
    block(&mut past.world, [Whom::Key(key(1))]);
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.happen(Happening::Kill);
    lose_and_see_it_stay_out(past);
}

#[test]
fn revocation_of_a_blocked_peer_is_remembered_although_the_first_rows_cannot_be_used() {
    let mut past = Past::new();
    block(&mut past.world, [Whom::Key(key(1))]);
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.troubles.insert(Trouble::GatewayRow);
    past.world.happen(Happening::Kill);
    past.world.pass_time(SECOND);
    past.world.troubles.clear();
    past.world.pass_time(MINUTE);
    lose_and_see_it_stay_out(past);
}

#[test]
fn revocation_of_a_peer_that_no_agent_saw_admitted_is_remembered() {
    let mut past = Past::new();
    past.commit(1, BarredBy::USER_INACTIVE);
    past.world.pass_time(SECOND);
    assert!(!past.in_kernel(1));
    past.world.remembered.peers.clear();
    // Its user becomes active again and it is revoked, while no agent reads.
    past.commit(1, BarredBy::default());
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.happen(Happening::Kill);
    lose_and_see_it_stay_out(past);
}

#[test]
fn peer_whose_user_was_not_active_when_the_agent_began_is_let_in_at_once() {
    let mut past = Past::new();
    past.commit(1, BarredBy::USER_INACTIVE);
    past.world.pass_time(SECOND);
    assert!(!past.in_kernel(1));
    past.world.remembered.peers.clear();
    past.world.happen(Happening::Kill);
    past.world.pass_time(SECOND);
    assert!(!past.in_kernel(1) && past.world.remembered.peers.contains_key(&key(1)));
    past.commit(1, BarredBy::default());
    past.world.pass_time(SECOND);
    assert!(past.in_kernel(1) && !past.world.remembered.peers.contains_key(&key(1)));
    past.lose(0);
    past.world.pass_time(20 * SECOND);
    assert!(past.in_kernel(1) && !past.world.machine.view().keeps_out());
}

#[test]
fn revocation_of_a_peer_that_stale_rows_suspended_is_remembered() {
    for is_read_anew in [false, true] {
        let mut past = stale_past();
        past.world.database_up = false;
        past.world.tell(Event::Disconnected { error: away() });
        past.world.pass_time(20 * SECOND);
        assert!(!past.in_kernel(1) && !past.in_kernel(2));
        past.commit(1, BarredBy::DEVICE_STATUS);
        past.world.database_up = true;
        if is_read_anew {
            past.world.tell(Event::Resync);
        }
        past.world.pass_time(20 * SECOND);
        lose_and_see_it_stay_out(past);
    }
}

#[test]
fn revocation_of_a_peer_that_is_kept_out_is_remembered() {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(SECOND);
    past.lose(1);
    past.world.pass_time(20 * SECOND);
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(10 * MINUTE);
    assert_eq!(past.lose(1), [1].into());
    past.world.pass_time(10 * MINUTE);
    assert!(!past.in_kernel(1), "the second revocation counts");
    past.world.pass_time(6 * MINUTE);
    assert!(past.in_kernel(1), "followed");
}

#[test]
fn revocation_that_the_database_lost_while_the_peer_is_blocked_holds_when_it_is_unblocked() {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(SECOND);
    block(&mut past.world, [Whom::Key(key(1))]);
    lose_and_see_it_stay_out(past);
}

#[test]
fn revocation_that_the_database_lost_while_the_gateway_is_not_active_holds_when_it_is() {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(SECOND);
    assert_eq!(past.lose(1), [1].into());
    past.gateway_is(false);
    see_it_stay_out(past);
}

#[test]
fn revocation_that_came_while_the_gateway_was_not_active_and_was_lost_holds_when_it_is() {
    let mut past = Past::new();
    past.gateway_is(false);
    past.world.pass_time(SECOND);
    past.commit(1, BarredBy::DEVICE_STATUS);
    lose_and_see_it_stay_out(past);
}

#[test]
fn lost_revocation_holds_although_the_gateway_is_deactivated_before_the_database_answers() {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(SECOND);
    assert_eq!(past.lose(1), [1].into());
    past.world.tell(Event::Resync);
    let epoch = loop {
        match past.world.queue.pop_front().unwrap() {
            Action::AskMarks { epoch, .. } => break epoch,
            action => past.world.carry_out(action),
        }
    };
    past.world.tell(Event::MarksAnswered { epoch, lost: Err(away()) });
    past.gateway_is(false);
    past.world.settle();
    see_it_stay_out(past);
}

#[test]
fn scheduled_revocation_that_the_database_loses_after_its_time_holds() {
    for (is_blocked, is_killed) in [(false, false), (true, false), (false, true)] {
        let mut past = Past::new();
        past.revoke_at(1, past.world.database_now() + MINUTE);
        past.world.pass_time(SECOND);
        // What was read last says nothing of the peer when its time comes.
        past.commit_all(3..=3, |tables, peer| {
            tables.peers.get_mut(&peer).unwrap().device_name = "phone".into();
        });
        if is_blocked {
            block(&mut past.world, [Whom::Key(key(1))]);
        }
        past.world.pass_time(2 * MINUTE);
        if is_killed {
            past.world.database_up = false;
            past.world.happen(Happening::Kill);
        }
        past.lose(2);
        // The transaction ids are used again, also by changes of the same kind.
        for _ in 0..2 {
            past.commit_all(4..=4, |tables, peer| {
                let row = tables.peers.get_mut(&peer).unwrap();
                row.device_name = format!("new-{}", row.device_name).into();
            });
        }
        past.world.database_up = true;
        see_it_stay_out(past);
    }
}

#[test]
fn revocation_of_a_peer_that_the_kernel_only_closes_is_remembered() {
    for is_killed in [false, true] {
        let mut past = Past::new();
        past.world.troubles.insert(Trouble::Flows);
        past.commit(1, BarredBy::DEVICE_STATUS);
        past.world.pass_time(SECOND);
        assert!(past.in_kernel(1) && !past.passes(1) && past.passes(2));
        if is_killed {
            past.world.database_up = false;
            past.world.happen(Happening::Kill);
        }
        past.lose(1);
        past.world.database_up = true;
        past.world.pass_time(2 * MINUTE);
        assert!(past.in_kernel(1) && !past.passes(1) && past.passes(2), "it stays closed");
        past.world.troubles.clear();
        see_it_stay_out(past);
    }
}

#[test]
fn revocation_is_remembered_although_another_row_with_the_key_is_only_blocked() {
    let mut world = super::world::quiet_world();
    let mut other = world.tables.peers[&PeerId(id(2, 1))].clone();
    (other.id, other.device_id) = (PeerId(id(2, 0)), gatepost::model::DeviceId(id(3, 0)));
    block(&mut world, [Whom::Device(other.device_id)]);
    world.tables.peers.insert(other.id, other);
    world.tell(Event::Resync);
    world.pass_time(SECOND);
    let mut past = Past::of(world);
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(SECOND);
    assert!(!past.in_kernel(1));
    past.lose(1);
    past.world.pass_time(MINUTE);
    assert!(!past.in_kernel(1) && past.world.machine.view().keeps_out());
}

/// An agent follows the last good rows, which admit the first peer, and it is blocked and unblocked.
fn unblock_with_last_good_rows(mut past: Past) -> Past {
    let (changes, provenance) = (Vec::new(), Provenance::Sealed);
    let rows = past.world.tables.snapshot();
    past.world.last_good = Some(LastGood { rows, changes, provenance });
    past.world.database_up = false;
    past.world.happen(Happening::Kill);
    past.world.pass_time(20 * SECOND);
    assert!(!past.in_kernel(1) && past.in_kernel(2));
    block(&mut past.world, []);
    past
}

#[test]
fn peer_that_was_only_blocked_comes_back_with_the_last_good_rows_when_it_is_unblocked() {
    let mut past = Past::new();
    past.commit(1, BarredBy::default());
    // The first read has marks about the device, which have nothing to do with the block.
    past.world.happen(Happening::Kill);
    past.world.settle();
    block(&mut past.world, [Whom::Key(key(1))]);
    past.world.pass_time(20 * SECOND);
    let past = unblock_with_last_good_rows(past);
    assert!(past.in_kernel(1), "no row withdrew it");
}

#[test]
fn blocked_peer_that_was_revoked_and_admitted_again_comes_back_with_the_last_good_rows() {
    let mut past = Past::new();
    block(&mut past.world, [Whom::Key(key(1))]);
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(SECOND);
    assert!(past.world.remembered.peers.contains_key(&key(1)));
    past.commit(1, BarredBy::default());
    past.world.pass_time(SECOND);
    let past = unblock_with_last_good_rows(past);
    assert!(past.in_kernel(1), "no row withdraws it");
}

#[test]
fn lost_revocation_holds_for_as_long_although_the_next_server_has_another_clock() {
    for (ahead, is_killed) in [(MINUTE / 2, false), (20 * MINUTE, false), (20 * MINUTE, true)] {
        let mut past = Past::new();
        past.commit(1, BarredBy::DEVICE_STATUS);
        past.world.pass_time(SECOND);
        assert_eq!(past.lose(1), [1].into());
        past.world.pass_time(5 * MINUTE);
        assert!(!past.in_kernel(1) && past.world.machine.view().keeps_out());
        if is_killed {
            past.world.database_up = false;
            past.world.happen(Happening::Kill);
        }
        past.world.server_ahead = ahead;
        past.lose(0);
        past.world.database_up = true;
        past.world.tell(Event::Resync);
        past.world.pass_time(9 * MINUTE);
        assert!(!past.in_kernel(1) && past.in_kernel(2), "{ahead:?} ahead");
        // An agent that began since does not know how much of the time is over.
        past.world.pass_time(if is_killed { 7 * MINUTE } else { 2 * MINUTE });
        assert!(past.in_kernel(1), "followed");
    }
}
