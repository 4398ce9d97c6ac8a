//! What rows may do by where they come from, how old they are, and whether they can be used.

use std::time::Duration;

use super::*;
use crate::model::{BarredBy, Block, DeviceId, GatewayRow, PeerRow, SnapshotRows, UserId, Whom};
use crate::reconcile::clock::DatabaseNow;
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::ReadAnswer;
use crate::reconcile::history::Withdrawals;
use crate::test_rows::{gateway_row, id, local, no_changes, peer_row, public_key, snapshot};

const HOUR: Duration = Duration::from_secs(3_600);
const START: SystemTime = SystemTime::UNIX_EPOCH;

/// An agent that has just begun.
fn rows(policy: StalePolicy) -> (Rows, Instant) {
    with_kept(policy, Withdrawals::default())
}

fn with_kept(policy: StalePolicy, kept: Withdrawals) -> (Rows, Instant) {
    let now = Instant::now();
    let (stale, history) = (StaleOptions { policy, after: HOUR }, History::new(HOUR, kept));
    (Rows::new(Arc::new(local()), Arc::default(), stale, history, now), now)
}

fn two_peers() -> SnapshotRows {
    snapshot(vec![peer_row(2), peer_row(3)])
}

/// Rows whose gateway has a port that is none.
fn refused(peers: Vec<PeerRow>) -> SnapshotRows {
    let gateway = GatewayRow { listen_port: 0, ..gateway_row() };
    SnapshotRows { gateway, ..snapshot(peers) }
}

fn last_good(provenance: Provenance) -> LastGood {
    LastGood { rows: two_peers(), changes: Vec::new(), provenance }
}

fn peers(rows: &Rows) -> Vec<PublicKey> {
    rows.desired().unwrap().peers().keys().copied().collect()
}

fn whom(number: u8) -> Arc<BlockList> {
    let block = Block { name: "user-1".into(), since: START };
    Arc::new(BlockList::from_iter([(Whom::User(UserId(id(number))), block)]))
}

#[test]
fn changes_are_enough_only_for_rows_that_the_database_wrote() {
    let (mut rows, now) = rows(StalePolicy::Keep);
    let enough = |rows: &Rows| rows.enough(ReadKind::Changes);
    assert_eq!(enough(&rows), ReadKind::Everything, "there are none");
    assert!(rows.apply(no_changes(START)).is_none() && rows.unchanged(START).is_none());
    rows.restore(last_good(Provenance::Sealed)).0.unwrap();
    assert_eq!(enough(&rows), ReadKind::Everything, "an earlier run read them");
    rows.replace(two_peers(), now).unwrap();
    assert_eq!(enough(&rows), ReadKind::Changes);
    assert_eq!(rows.enough(ReadKind::Everything), ReadKind::Everything);
    rows.replace(refused(vec![peer_row(2)]), now).unwrap_err();
    assert_eq!(enough(&rows), ReadKind::Everything, "the last ones cannot be used");
}

#[test]
fn the_last_good_rows_are_asked_for_once_and_only_until_the_database_answers() {
    let (mut asked, now) = rows(StalePolicy::Keep);
    assert!(matches!(asked.begin_restore(), Some(Action::Restore)));
    assert!(asked.begin_restore().is_none());
    asked.replace(snapshot(vec![peer_row(4)]), now).unwrap();
    let late = asked.restore(last_good(Provenance::Sealed));
    assert_eq!(late, (None, Change::default()), "the database was faster");
    assert_eq!(peers(&asked), [public_key(4)]);
    let (mut answered, now) = rows(StalePolicy::Keep);
    answered.replace(two_peers(), now).unwrap();
    assert!(answered.begin_restore().is_none());
}

#[test]
fn last_good_rows_decide_if_sealed_and_else_only_withdraw() {
    for (provenance, decides) in [(Provenance::Sealed, true), (Provenance::Unsealed, false)] {
        let (mut rows, now) = rows(StalePolicy::Keep);
        let (as_of, change) = rows.restore(last_good(provenance));
        assert_eq!((as_of, change.compared), (Some(START), Compared::Everything));
        assert_eq!(change.notes, [Note::Restored { as_of: START }]);
        assert_eq!((rows.decide(), rows.are_usable()), (decides, decides), "{provenance:?}");
        assert_eq!(rows.view().only_withdraw, !decides);
        assert!(rows.may_plan() && rows.in_doubt());
        rows.replace(two_peers(), now).unwrap();
        assert!(rows.decide() && rows.are_usable() && !rows.view().only_withdraw);
    }
}

#[test]
fn changes_behind_the_last_good_rows_are_part_of_them() {
    let (mut rows, _) = rows(StalePolicy::Keep);
    let mut changes = no_changes(START + HOUR);
    changes.peers.insert(DeviceId(id(3u8)), Vec::new());
    let kept = LastGood { changes: vec![changes], ..last_good(Provenance::Sealed) };
    assert_eq!(rows.restore(kept).0, Some(START + HOUR));
    assert_eq!(peers(&rows), [public_key(2)]);
}

#[test]
fn without_rows_a_plan_is_made_once_none_are_left_to_wait_for() {
    let (mut missing, now) = rows(StalePolicy::Keep);
    assert!(!missing.may_plan() && !missing.are_missing());
    assert_eq!(missing.nothing_restored(), Change::of_everything(None, None));
    assert!(missing.may_plan() && missing.are_missing());
    missing.replace(refused(vec![peer_row(2)]), now).unwrap_err();
    assert!(missing.may_plan() && !missing.decide(), "what can be used of them withdraws");
    missing.replace(two_peers(), now).unwrap();
    assert!(missing.may_plan() && !missing.are_missing());

    let (mut blocked, _) = rows(StalePolicy::Keep);
    blocked.block(whom(2));
    assert!(blocked.may_plan(), "a block needs no rows");

    let (mut stale, now) = rows(StalePolicy::Down);
    stale.grow_stale(|| None, now + HOUR).unwrap();
    assert!(stale.may_plan() && stale.age.suspends(), "neither does [stale]");
}

#[test]
fn while_the_block_list_cannot_be_read_rows_grant_nothing() {
    let (mut rows, now) = rows(StalePolicy::Keep);
    rows.replace(two_peers(), now).unwrap();
    rows.block(Arc::new(BlockList::unreadable("it is damaged".into())));
    assert!(rows.may_plan() && !rows.decide() && !rows.are_usable());
    rows.block(Arc::default());
    assert!(rows.decide() && rows.are_usable());
}

#[test]
fn refused_rows_leave_the_former_ones_and_name_the_peers_that_they_withdraw() {
    let (mut rows, now) = rows(StalePolicy::Keep);
    rows.replace(two_peers(), now).unwrap();
    let refusal = rows.replace(refused(vec![peer_row(2)]), now).unwrap_err();
    assert!(matches!(refusal.error, BuildError::ListenPort(0)));
    assert!(refusal.withdrawn.departed.keys().eq([&public_key(3)]));
    assert_eq!(peers(&rows), [public_key(2), public_key(3)]);
    assert!(rows.followed().unwrap().peers().keys().eq([&public_key(2)]));
    assert_eq!(rows.followed().unwrap().gateway().listen_port, gateway_row().listen_port);
    assert!(!rows.decide() && !rows.are_usable());
    let again = rows.replace(refused(vec![peer_row(2)]), now).unwrap_err();
    assert!(again.withdrawn.departed.is_empty(), "once");
}

#[test]
fn rows_are_in_doubt_from_a_failed_read_until_the_next_good_one() {
    let (mut rows, start) = rows(StalePolicy::Keep);
    assert!(rows.in_doubt(), "none were read");
    rows.replace(two_peers(), start).unwrap();
    rows.are_good(start);
    assert!(!rows.in_doubt() && rows.stale_due().is_none());
    rows.doubt();
    assert!(rows.in_doubt() && rows.decide(), "they decide until they are stale");
    assert_eq!((rows.stale_due(), rows.age.read_at()), (Some(start + HOUR), start));
    rows.are_good(start + HOUR / 2);
    assert!(!rows.in_doubt() && rows.age.read_at() == start + HOUR / 2);
    rows.replace(refused(Vec::new()), start + HOUR).unwrap_err();
    assert!(rows.in_doubt(), "rows that cannot be used are as good as none");
}

#[test]
fn stale_rows_keep_the_peers_of_the_policy_until_they_are_good_again() {
    let both = [public_key(2), public_key(3)];
    let kept = [
        (StalePolicy::Keep, &both[..]),
        (StalePolicy::DenyNew, &both[1..]),
        (StalePolicy::Down, &[]),
    ];
    for (policy, kept) in kept {
        let (mut rows, start) = rows(policy);
        rows.replace(two_peers(), start).unwrap();
        rows.are_good(start);
        rows.doubt();
        let present = || Some([public_key(3)].into());
        assert!(rows.grow_stale(present, start + HOUR / 2).is_none());
        let Change { notes, compared, .. } = rows.grow_stale(present, start + HOUR).unwrap();
        assert_eq!(notes, [Note::Stale { since: HOUR, policy }]);
        assert_eq!(peers(&rows), kept, "{policy:?}");
        let suspends = policy != StalePolicy::Keep;
        assert_eq!(compared == Compared::Everything, suspends);
        assert_eq!((rows.age.suspends(), rows.decide()), (suspends, !suspends));
        assert_eq!(rows.are_good(start + HOUR).is_some(), suspends);
        assert_eq!(peers(&rows), both);
    }
}

#[test]
fn a_peer_whose_session_ends_while_none_may_begin_stays_out() {
    let (mut rows, start) = rows(StalePolicy::DenyNew);
    rows.replace(two_peers(), start).unwrap();
    let both = BTreeSet::from([public_key(2), public_key(3)]);
    assert!(rows.suspend_disconnected(|| unreachable!("not stale")).is_none());
    rows.grow_stale(|| Some(both.clone()), start + HOUR).unwrap();
    assert!(rows.suspend_disconnected(|| None).is_none(), "no reading shows the sessions");
    assert!(rows.suspend_disconnected(|| Some(both.clone())).is_none(), "both are connected");
    assert!(rows.suspend_disconnected(|| Some([public_key(2)].into())).is_some());
    assert!(rows.suspend_disconnected(|| Some(both)).is_none());
    assert_eq!(peers(&rows), [public_key(2)]);
}

#[test]
fn a_scheduled_revocation_comes_by_the_databases_clock_also_of_rows_that_were_refused() {
    let (mut rows, now) = rows(StalePolicy::Keep);
    let leaves = |number, at| PeerRow { revoked_at: Some(at), ..peer_row(number) };
    rows.replace(snapshot(vec![leaves(2, START + HOUR), peer_row(3)]), now).unwrap();
    assert_eq!(rows.next_expiry(), Some(START + HOUR));
    rows.replace(refused(vec![peer_row(2), leaves(3, START + HOUR / 2)]), now).unwrap_err();
    assert_eq!(rows.next_expiry(), Some(START + HOUR / 2));
    assert!(rows.expire(START).is_none());
    let touched = rows.expire(START + HOUR / 2).unwrap();
    assert!(touched.departed.keys().eq([&public_key(3)]));
    assert_eq!(peers(&rows), [public_key(2), public_key(3)], "by the rows before");
}

#[test]
fn a_peer_that_was_kept_out_comes_in_by_the_databases_clock_and_by_no_other() {
    let lost = Lost { name: "user-1/laptop".into(), since: START, until: START + HOUR };
    let kept = Withdrawals {
        epoch: Some("1".into()),
        lost: [(public_key(2), lost)].into(),
        ..Withdrawals::default()
    };
    let (mut rows, now) = with_kept(StalePolicy::Keep, kept);
    rows.replace(two_peers(), now).unwrap();
    assert_eq!(peers(&rows), [public_key(3)]);
    assert_eq!((rows.next_let_in(false), rows.next_let_in(true)), (None, Some(START + HOUR)));
    let none = Change::default();
    assert_eq!(rows.let_in_due(false, START + 2 * HOUR), none);
    assert_eq!(rows.let_in_due(true, START), none);
    let Change { notes, touched, .. } = rows.let_in_due(true, START + HOUR);
    assert!(matches!(notes[..], [Note::HistoryFollowed { confirmed: false, .. }]));
    assert!(touched.peers.contains(&public_key(2)));
    assert_eq!(peers(&rows), [public_key(2), public_key(3)]);
}

#[test]
fn a_block_is_in_force_once_a_plan_was_made_and_no_blocked_peer_is_left() {
    let (mut rows, now) = rows(StalePolicy::Keep);
    let revoked = PeerRow { bars: BarredBy::DEVICE_STATUS, ..peer_row(4) };
    rows.replace(snapshot(vec![peer_row(2), peer_row(3), revoked]), now).unwrap();
    let nothing = crate::model::ObservedState::default();
    assert!(rows.blocks_are_in_force(&nothing));
    let Change { notes, touched, compared } = rows.block(whom(2));
    let [Note::Block(change)] = &notes[..] else { panic!("{notes:?}") };
    assert_eq!((change.lifted, change.peers.len()), (false, 1));
    assert!(touched.departed.contains_key(&public_key(2)) && compared == Compared::Everything);
    assert!(!rows.blocks_are_in_force(&nothing), "an older plan may add the peer");
    rows.planned(None);
    assert!(rows.blocks_are_in_force(&nothing));
    assert_eq!(peers(&rows), [public_key(3)]);
}

#[test]
fn an_answer_changes_the_rows_and_says_whether_they_are_what_the_database_holds() {
    let (mut rows, now) = rows(StalePolicy::Down);
    let away = || DatabaseError::OtherServer;
    let unchanged = || ReadAnswer::Unchanged { taken_at: START };
    let verdict = |rows: &mut Rows, answer| rows.take_in(answer, now).verdict;
    assert!(matches!(verdict(&mut rows, Err(away())), Verdict::Unknown));
    assert!(matches!(verdict(&mut rows, Ok(unchanged())), Verdict::Unknown), "there are none");
    let changes = ReadAnswer::Changed(no_changes(START));
    assert!(matches!(verdict(&mut rows, Ok(changes)), Verdict::TooLittle));

    let good = |rows: &mut Rows, answer| {
        let Taken { verdict, change, renewal } = rows.take_in(Ok(answer), now);
        let Verdict::Good { kind, finds_changes, is_beyond_limits } = verdict else { panic!() };
        assert!(!is_beyond_limits && !rows.in_doubt());
        (kind, finds_changes, change, renewal)
    };
    let all = ReadAnswer::Everything(Box::new(two_peers()));
    let (kind, finds_changes, change, _) = good(&mut rows, all);
    assert_eq!((kind, change.compared), (ReadKind::Everything, Compared::Anew));
    assert!(!finds_changes, "nothing announces a whole");

    assert!(matches!(verdict(&mut rows, Err(away())), Verdict::Unknown));
    rows.grow_stale(|| None, now + HOUR).unwrap();
    let mut device_is_gone = no_changes(START);
    device_is_gone.peers.insert(DeviceId(id(2u8)), Vec::new());
    let (kind, _, change, renewal) = good(&mut rows, ReadAnswer::Changed(device_is_gone));
    assert_eq!((kind, change.compared), (ReadKind::Changes, Compared::Touched));
    assert!(renewal.touched.peers.contains(&public_key(3)), "it was suspended");
    assert_eq!(peers(&rows), [public_key(3)]);
    let nothing = (ReadKind::Check, false, Change::default(), Change::default());
    assert_eq!(good(&mut rows, unchanged()), nothing);
    let mut device_is_gone = no_changes(START);
    device_is_gone.peers.insert(DeviceId(id(3u8)), Vec::new());
    let (_, finds_changes, change, _) = good(&mut rows, ReadAnswer::Changed(device_is_gone));
    assert!(finds_changes && change.touched.departed.contains_key(&public_key(3)));

    let wrong = ReadAnswer::Everything(Box::new(refused(vec![peer_row(4)])));
    let Taken { verdict, change, .. } = rows.take_in(Ok(wrong), now);
    assert!(matches!(verdict, Verdict::Refused(BuildError::ListenPort(0))) && rows.in_doubt());
    assert_eq!(change.compared, Compared::Anew, "what the other rows withdraw");
}

#[test]
fn a_proof_rests_on_rows_that_can_be_used_and_are_followed() {
    let (mut rows, now) = rows(StalePolicy::Down);
    assert!(rows.grounds(true, true).is_none());
    rows.replace(two_peers(), now).unwrap();
    let doubted = rows.grounds(true, true).unwrap();
    assert!(doubted.are_usable && doubted.are_followed && !doubted.may_be_told);
    rows.are_good(now);
    let told = |all_go, announced| {
        let grounds = rows.grounds(all_go, announced).unwrap();
        (grounds.are_followed, grounds.may_be_told)
    };
    assert_eq!(told(true, true), (true, true));
    assert_eq!((told(false, true), told(true, false)), ((false, true), (true, false)));
}

#[test]
fn rows_have_something_to_do_at_the_first_of_their_deadlines() {
    let (mut rows, now) = rows(StalePolicy::Down);
    let at = |after| DatabaseNow { instant: now + after, time: START + after, is_read: true };
    let leaves = PeerRow { revoked_at: Some(START + HOUR / 2), ..peer_row(2) };
    rows.replace(snapshot(vec![leaves, peer_row(3)]), now).unwrap();
    assert_eq!(rows.due(true, at(HOUR / 4)), Some(now + HOUR / 2), "by the database's clock");
    let [expired, let_in, stale] = rows.let_time_pass(|| None, at(HOUR / 2));
    assert!(expired.touched.departed.contains_key(&public_key(2)));
    assert_eq!((let_in, stale), (Change::default(), Change::default()));
    assert_eq!(rows.due(true, at(HOUR / 2)), Some(now + HOUR), "no row was read since");
    let [.., stale] = rows.let_time_pass(|| None, at(HOUR));
    assert_eq!(stale.compared, Compared::Everything);
    assert_eq!(rows.due(true, at(HOUR)), None);
}
