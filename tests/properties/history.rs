//! A database that loses its last commits: nobody whom they revoked is let in unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use gatepost::model::{BarredBy, PeerId, Whom};
use gatepost::reconcile::status::PeerState;
use gatepost::reconcile::{Action, Event, LastGood, Note, Provenance};
use gatepost::store::AuditEvent;
use proptest::prelude::*;

use super::blocks::block;
use super::machine::Happening;
use super::past::{PEERS, Past, key, small, stale_past};
use super::rows::id;
use super::world::{Trouble, World};

/// `guard.lost_history`
const HOLD: Duration = Duration::from_secs(900);

#[derive(Debug, Clone)]
enum Deed {
    Revoke(u8),
    Admit(u8),
    Lose(usize),
    Block(Vec<u8>),
    Gateway(bool),
    Happen(Happening),
}

fn deed() -> impl Strategy<Value = Deed> {
    let troubles = vec![
        Trouble::Reads,
        Trouble::Observations,
        Trouble::GatewayRow,
        Trouble::WrongKey,
        Trouble::Flows,
    ];
    prop_oneof![
        4 => (1..=PEERS).prop_map(Deed::Revoke),
        2 => (1..=PEERS).prop_map(Deed::Admit),
        2 => (1usize..5).prop_map(Deed::Lose),
        1 => prop::collection::vec(1..=PEERS, 0..4).prop_map(Deed::Block),
        1 => any::<bool>().prop_map(Deed::Gateway),
        5 => small(troubles, 5).prop_map(Deed::Happen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn nobody_whose_revocation_was_lost_is_let_in_before_the_time(
        deeds in prop::collection::vec(deed(), 1..16), goes_stale in any::<bool>(),
    ) {
        live_through(deeds, goes_stale)?;
    }
}

#[test]
fn admission_that_was_read_and_lost_in_its_turn_is_the_last_word_on_a_lost_revocation() {
    let trouble = Happening::Trouble(Trouble::Flows, 472);
    let deeds =
        [Deed::Revoke(2), Deed::Happen(trouble), Deed::Lose(1), Deed::Admit(2), Deed::Lose(1)];
    live_through(deeds.into(), false).unwrap();
}

/// Peers that must stay out are out after each deed, and all others are in at the end.
fn live_through(deeds: Vec<Deed>, goes_stale: bool) -> Result<(), TestCaseError> {
    let mut past = if goes_stale { stale_past() } else { Past::new() };
    let is_set = |deed: &Deed| matches!(deed, Deed::Gateway(_));
    // The agent takes any mark about a device for what withdrew it with its gateway.
    let may_stay_out = deeds.iter().any(is_set);
    let mut out = BTreeSet::new();
    // Who has a later mark when the database is asked, by the number of its commit.
    let mut excused = BTreeMap::new();
    for deed in deeds {
        if let Deed::Revoke(number) | Deed::Admit(number) = deed
            && !past.world.remembered.lost.contains_key(&key(number))
        {
            excused.extend(out.take(&number).map(|number| (number, past.revoked.len())));
        }
        match deed {
            Deed::Revoke(number) => past.commit(number, BarredBy::DEVICE_STATUS),
            Deed::Admit(number) => past.commit(number, BarredBy::default()),
            Deed::Lose(commits) => {
                past.world.settle();
                let read = past.world.commits_read();
                out.extend(past.lose(commits));
                let lost_too = excused.extract_if(.., |number, commit| {
                    *commit >= past.revoked.len() && !past.passes(*number)
                });
                // An admission that was read is the last word, unless the agent has not asked yet.
                let (known, unknown): (Vec<_>, Vec<_>) =
                    lost_too.partition(|(_, commit)| *commit < read);
                out.extend(unknown.into_iter().map(|(number, _)| number));
                past.undecided.extend(known.into_iter().map(|(number, _)| number));
            }
            Deed::Block(numbers) => {
                block(&mut past.world, numbers.into_iter().map(|it| Whom::Key(key(it))));
            }
            Deed::Gateway(active) => past.gateway_is(active),
            Deed::Happen(happening) => past.world.happen(happening),
        }
        past.look();
        for number in &out {
            prop_assert!(!past.passes(*number), "{number}");
        }
    }
    past.world.troubles.clear();
    block(&mut past.world, []);
    past.gateway_is(true);
    past.world.pass_time(Duration::from_secs(120));
    for number in 1..=PEERS {
        let row = &past.world.tables.peers[&PeerId(id(2, number))];
        let wanted = row.bars == BarredBy::default() && !out.contains(&number);
        let is_in = past.in_kernel(number);
        let may_stay_out = may_stay_out || past.undecided.contains(&number);
        prop_assert!(is_in == wanted || !is_in && may_stay_out, "{number}");
    }
    past.world.pass_time(HOLD);
    prop_assert!(past.world.kernel_equals_database());
    prop_assert!(past.world.machine.view().status().warnings.is_empty());
    Ok(())
}

/// A revocation that is enforced, and lost.
fn lost_revocation() -> Past {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(Duration::from_secs(1));
    assert!(!past.in_kernel(1));
    assert_eq!(past.lose(1), [1].into());
    past.world.pass_time(Duration::from_secs(20));
    assert!(!past.in_kernel(1));
    past
}

#[test]
fn lost_revocation_is_said_audited_and_shown() {
    let mut past = lost_revocation();
    let said = |world: &World| {
        let lost =
            |note: &&Note| matches!(note, Note::HistoryLost { peers, .. } if peers.len() == 1);
        world.notes.iter().filter(lost).count()
    };
    assert_eq!(said(&past.world), 1);
    let audit = past.world.reports.iter().flat_map(|report| &report.audit);
    let audited = audit.filter(|entry| entry.event == AuditEvent::HistoryLost).count();
    assert_eq!(audited, 1);
    let warnings = past.world.machine.view().status().warnings;
    assert!(warnings[0].contains("user-1/laptop"), "{warnings:?}");
    past.world.happen(Happening::Kill);
    past.world.pass_time(Duration::from_secs(20));
    assert!(!past.in_kernel(1) && past.world.machine.view().keeps_out());
    past.world.pass_time(HOLD);
    assert!(past.in_kernel(1), "followed");
    assert_eq!(said(&past.world), 1);
}

#[test]
fn last_good_rows_that_admit_a_peer_with_a_lost_revocation_are_not_proven() {
    let mut past = lost_revocation();
    let (changes, provenance) = (Vec::new(), Provenance::Sealed);
    let rows = past.world.tables.snapshot();
    past.world.last_good = Some(LastGood { rows, changes, provenance });
    past.world.database_up = false;
    past.world.happen(Happening::Kill);
    past.world.pass_time(Duration::from_secs(20));
    assert!(!past.in_kernel(1) && past.world.machine.view().keeps_out());
    assert_eq!(past.world.machine.view().last_sync_at(), None);
}

#[test]
fn revocation_of_a_peer_that_is_out_already_is_remembered() {
    let mut past = Past::new();
    past.commit(6, BarredBy::DEVICE_STATUS);
    assert_eq!(past.lose(1), [6].into());
    past.commit(6, BarredBy::default());
    past.commit(6, BarredBy::DEVICE_STATUS);
    past.commit(1, BarredBy::DEVICE_STATUS);
    assert_eq!(past.lose(2), [1, 6].into(), "it was admitted and revoked again meanwhile");
    past.world.pass_time(Duration::from_secs(120));
    assert!(!past.in_kernel(1) && !past.in_kernel(6));
    past.world.pass_time(HOLD);
    assert!(past.in_kernel(1) && past.in_kernel(6), "followed");
}

#[test]
fn confirmation_lets_in_at_once_those_that_were_shown_and_no_others() {
    let mut past = lost_revocation();
    let shown = past.kept_out();
    assert_eq!(shown.len(), 1);
    past.commit(2, BarredBy::DEVICE_STATUS);
    past.world.pass_time(Duration::from_secs(1));
    assert_eq!(past.lose(1), [2].into());
    past.world.pass_time(Duration::from_secs(20));
    assert_eq!(past.kept_out().len(), 2);
    past.world.confirm();
    past.world.pass_time(Duration::from_secs(1));
    assert!(!past.in_kernel(1) && !past.in_kernel(2), "only removals were shown");
    let until = SystemTime::UNIX_EPOCH;
    past.world.tell(Event::ConfirmRemovals { until, let_in_until: shown.into_iter().max() });
    past.world.pass_time(Duration::from_secs(1));
    assert!(past.in_kernel(1) && !past.in_kernel(2), "the other was lost later");
    let let_in_until = past.kept_out().into_iter().max();
    past.world.tell(Event::ConfirmRemovals { until, let_in_until });
    past.world.pass_time(Duration::from_secs(1));
    assert!(past.in_kernel(2) && !past.world.machine.view().keeps_out());
}

#[test]
fn only_peers_that_nothing_else_bars_are_shown_as_kept_out() {
    let mut past = Past::new();
    for number in 1..=3 {
        past.commit(number, BarredBy::DEVICE_STATUS);
        past.world.pass_time(Duration::from_secs(1));
    }
    assert_eq!(past.lose(1), [3].into());
    past.world.tell(Event::Resync);
    while !matches!(past.world.queue.front(), Some(Action::AskMarks { .. })) {
        let action = past.world.queue.pop_front().unwrap();
        past.world.carry_out(action);
    }
    let state = |past: &Past, number: u8| {
        past.world.machine.view().peers()[usize::from(number) - 1].state.clone()
    };
    let revoked = PeerState::Ineligible { reason: "device not active".into() };
    assert_eq!((state(&past, 1), state(&past, 2)), (revoked.clone(), revoked.clone()));
    let PeerState::Ineligible { reason } = state(&past, 3) else { panic!("not known yet") };
    assert!(reason.contains("until the database says"), "{reason}");
    past.world.pass_time(Duration::from_secs(20));
    assert!(matches!(state(&past, 3), PeerState::KeptOut { .. }));
    assert_eq!((state(&past, 1), state(&past, 2)), (revoked.clone(), revoked));
}

#[test]
fn later_admission_of_the_same_device_is_no_lost_revocation() {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.world.pass_time(Duration::from_secs(1));
    past.lose(1);
    past.world.elapsed += Duration::from_secs(1);
    past.commit(1, BarredBy::default());
    past.world.pass_time(Duration::from_secs(20));
    assert!(past.in_kernel(1));
}

#[test]
fn another_epoch_that_lost_nothing_keeps_no_peer_out() {
    let mut past = Past::new();
    past.commit(1, BarredBy::DEVICE_STATUS);
    past.commit(2, BarredBy::DEVICE_STATUS);
    past.world.pass_time(Duration::from_secs(1));
    past.lose(0);
    past.world.pass_time(Duration::from_secs(20));
    past.commit(1, BarredBy::default());
    past.world.pass_time(Duration::from_secs(1));
    assert!(past.in_kernel(1) && !past.in_kernel(2));
    assert!(past.world.kernel_equals_database());
}
