//! What is kept of withdrawals, and for how long.

use super::*;
use crate::model::PeerId;
use crate::model::UserId;

fn departed(numbers: impl Iterator<Item = u8>) -> BTreeMap<PublicKey, Departed> {
    let who = |number: u8| Departed {
        peer_id: PeerId(Uuid::from_u128(number.into())),
        device_id: DeviceId(Uuid::from_u128(1_000 + u128::from(number))),
        user_id: UserId(Uuid::from_u128(2_000 + u128::from(number))),
        device_name: "laptop".into(),
        username: "alice".into(),
    };
    numbers.map(|n| (PublicKey::from_bytes([n; 32]).unwrap(), who(n))).collect()
}

fn mark(xid: u64, kind: &str, ids: Option<Vec<u128>>) -> Mark {
    let ids = ids.map(|ids| ids.into_iter().map(Uuid::from_u128).collect());
    Mark { xid, kind: kind.into(), ids }
}

#[test]
fn a_withdrawal_has_the_marks_of_its_device_its_user_and_of_all_peers() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::ZERO, Withdrawals::default());
    let marks = vec![
        mark(1, "device", Some(vec![1_001, 1_002])),
        mark(2, "user", Some(vec![2_001])),
        mark(3, "peer", None),
        mark(4, "setting", Some(Vec::new())),
    ];
    history.marks_read(marks, start);
    history.departed(departed(1..4).iter());
    history.applied(|_| false, |_, _| false, start);
    let kept = history.take_changed().unwrap();
    let xids: Vec<Vec<u64>> = kept.peers.values().map(xids_of).collect();
    assert_eq!(xids, [vec![1, 2, 3, 4], vec![1, 3, 4], vec![3, 4]]);
    assert_eq!(history.take_changed(), None, "once");
}

#[test]
fn peers_that_are_out_at_the_first_read_are_added_to_the_kept_ones() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::ZERO, Withdrawals::default());
    history.marks_read(vec![mark(1, "peer", None)], start);
    history.departed(departed(1..2).iter());
    history.applied(|_| false, |_, _| false, start);
    let kept = history.take_changed().unwrap();
    let mut history = History::new(Duration::ZERO, kept);
    history.marks_read(vec![mark(2, "device", Some(vec![1_001, 1_002]))], start);
    assert_eq!(history.listed(), [1_001, 1_002].map(Uuid::from_u128).into());
    history.are_out(&departed(1..3));
    history.applied(|_| false, |_, _| false, start);
    let xids: Vec<_> = history.take_changed().unwrap().peers.values().map(xids_of).collect();
    assert_eq!(xids, [vec![1], vec![2]]);
}

fn xids_of(withdrawal: &Withdrawal) -> Vec<u64> {
    let mut xids: Vec<u64> = withdrawal.marks.iter().map(|mark| mark.xid).collect();
    xids.sort_unstable();
    xids
}

#[test]
fn an_epoch_that_comes_back_before_the_answer_is_asked_as_well() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::ZERO, Withdrawals::default());
    assert!(!history.follow("1".into(), |_, _| false));
    history.marks_read(vec![mark(1, "peer", None)], start);
    history.departed(departed(1..2).iter());
    history.applied(|_| false, |_, _| false, start);
    assert!(history.follow("2".into(), |_, _| false));
    // The question is open: what the second epoch withdraws meanwhile, the first does not know.
    history.departed(departed(2..3).iter());
    history.applied(|_| false, |_, _| false, start);
    assert!(history.follow("1".into(), |_, _| false));
    assert_eq!(history.keeps_out().len(), 2);
    let now = Instant::now();
    history.rows_are_read(now);
    let (asked, withdrawals) = history.begin_question(now).unwrap();
    assert_eq!((&*asked, withdrawals.len()), ("1", 2));
    assert!(!history.follow("1".into(), |_, _| false), "it is asked already");
    let [first, second] = [1, 2].map(|number| PublicKey::from_bytes([number; 32]).unwrap());
    history.not_answered("2", now);
    let late = history.answered("2", &BTreeSet::new(), &[first, second].into(), start);
    assert_eq!((late, history.question_due()), (None, None), "the first epoch's answer decides");
    let lost = history.answered("1", &[second].into(), &[first, second].into(), start);
    assert_eq!(lost.unwrap(), ["alice/laptop"]);
    assert_eq!(history.keeps_out(), [second].into());
    assert!(!history.follow("1".into(), |_, _| false));
}

#[test]
fn the_list_ends_after_a_day_and_with_what_the_agent_let_in() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::ZERO, Withdrawals::default());
    history.marks_read(vec![mark(1, "peer", None)], start);
    history.departed(departed(1..4).iter());
    let first = PublicKey::from_bytes([1; 32]).unwrap();
    history.applied(|_| false, |key, _| *key == first, start);
    assert_eq!(history.take_changed().unwrap().peers.len(), 2, "the rows want the first again");
    let second = PublicKey::from_bytes([2; 32]).unwrap();
    history.applied(|key| *key == second, |_, _| false, start);
    assert_eq!(history.take_changed(), None, "another program put it back");
    history.applied(|_| true, |key, _| *key == second, start);
    assert_eq!(history.take_changed().unwrap().peers.len(), 1);
    history.marks_read(vec![mark(2, "peer", None)], start + MARKS_KEPT_FOR / 2);
    history.departed(departed(5..6).iter());
    history.applied(|_| false, |_, _| false, start + 2 * MARKS_KEPT_FOR);
    assert_eq!(history.take_changed().unwrap().peers.len(), 1);
    history.applied(|_| false, |_, _| false, start + 3 * MARKS_KEPT_FOR);
    assert_eq!(history.take_changed(), None, "the last good rows are older");
    history.rows_are_kept(start + MARKS_KEPT_FOR);
    history.applied(|_| false, |_, _| false, start + 2 * MARKS_KEPT_FOR);
    assert!(history.take_changed().unwrap().peers.is_empty());
}

#[test]
fn a_withdrawal_counts_from_its_plan_on_whatever_the_kernel_holds() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::from_secs(60), Withdrawals::default());
    history.follow("1".into(), |_, _| false);
    history.take_changed();
    let [closed, held, read] = [1, 2, 3].map(|number| PublicKey::from_bytes([number; 32]).unwrap());
    history.marks_read(vec![mark(1, "peer", None)], start);
    history.departed(departed(1..4).iter());
    history.applied(|_| true, |_, _| false, start);
    assert_eq!(history.take_changed(), None, "no plan has them");
    history.withdrawing([closed].iter());
    history.applied(|_| true, |_, _| false, start);
    assert!(history.take_changed().unwrap().peers.keys().eq([&closed]));
    assert!(history.follow("2".into(), |key, _| *key == held));
    assert!(history.take_changed().unwrap().peers.contains_key(&read), "it outlives a restart");
    history.applied(|_| true, |key, _| *key == held, start);
    assert_eq!(history.keeps_out(), [closed, read].into());
    let now = Instant::now();
    history.rows_are_read(now);
    assert!(history.begin_question(now).unwrap().1.keys().eq([&closed, &read]));
    let lost = history.answered("2", &[closed].into(), &[closed, held, read].into(), start);
    assert_eq!(lost.unwrap().len(), 1);
    assert_eq!(history.keeps_out(), [closed].into());
}

#[test]
fn what_the_database_is_asked_for_stays_as_it_was_until_the_answer() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::ZERO, Withdrawals::default());
    history.follow("1".into(), |_, _| false);
    history.marks_read(vec![mark(1, "device", Some(vec![1_001]))], start);
    history.departed(departed(1..2).iter());
    history.applied(|_| false, |_, _| false, start);
    let asked = history.take_changed().unwrap().peers;
    let marks = vec![mark(2, "gateway", Some(Vec::new()))];
    history.marks_read(marks, start);
    history.follow("2".into(), |_, _| false);
    history.departed(departed(1..2).iter());
    history.stay_out(|_| true);
    history.withdrawing(asked.keys());
    history.applied(|_| false, |_, _| false, start);
    let now = Instant::now();
    history.rows_are_read(now);
    assert_eq!(history.begin_question(now), Some(("2".into(), asked)));
    history.answered("2", &BTreeSet::new(), &BTreeSet::new(), start);
    history.applied(|_| false, |_, _| false, start);
    let kept = history.take_changed().unwrap().peers;
    assert_eq!(kept.values().map(xids_of).collect::<Vec<_>>(), [vec![2]], "what withdraws it now");
}

#[test]
fn every_withdrawal_holds_while_the_last_good_rows_are_followed() {
    let start = SystemTime::UNIX_EPOCH;
    let mut history = History::new(Duration::ZERO, Withdrawals::default());
    history.follow("1".into(), |_, _| false);
    history.marks_read(vec![mark(1, "peer", None)], start);
    history.departed(departed(1..2).iter());
    history.applied(|_| false, |_, _| false, start);
    let kept = history.take_changed().unwrap();
    // A database that lost it is read, its rows become the last good ones, and the agent is killed.
    let mut history = History::new(Duration::ZERO, kept);
    assert!(history.keeps_out().is_empty());
    history.rows_are_restored();
    assert_eq!(history.keeps_out(), [PublicKey::from_bytes([1; 32]).unwrap()].into());
    history.rows_are_read(Instant::now());
    assert!(history.keeps_out().is_empty());
}
