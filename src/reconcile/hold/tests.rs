//! Whose removal waits, and what ends that.

use std::sync::Arc;

use super::*;

fn hold() -> Hold {
    Hold::new(MaxRemoved::Percent(50), &Withdrawals::default(), Instant::now())
}

fn keys(numbers: &[u8]) -> BTreeMap<PublicKey, SystemTime> {
    let key = |number: &u8| PublicKey::from_bytes([*number; 32]).unwrap();
    numbers.iter().map(|number| (key(number), SystemTime::UNIX_EPOCH)).collect()
}

fn held(numbers: &[u8]) -> Waiting {
    Waiting { judged: Held::recalled(keys(numbers), &BTreeSet::new()), unjudged: Held::default() }
}

#[test]
fn rows_wait_for_the_operator_and_are_kept_once_nothing_is_held_back() {
    let mut hold = hold();
    assert_eq!(hold.update(held(&[]), 20, true).keep, None, "no rows were read");
    hold.rows_read(ReadKind::Changes);
    let update = hold.update(held(&[1, 2]), 20, true);
    assert_eq!((update.news.unwrap().removals, update.keep), (2, Some(Keep::Later)));
    assert_eq!(hold.update(held(&[1, 2]), 20, true), Update::default(), "said already");
    hold.rows_read(ReadKind::Changes);
    assert_eq!(hold.update(held(&[1, 2]), 20, true).keep, Some(Keep::These));
    assert_eq!(hold.update(held(&[]), 18, true).keep, Some(Keep::All));
    assert!(hold.holds_nothing_back());
}

#[test]
fn stale_rows_leave_the_verdict_open() {
    let mut hold = hold();
    hold.rows_read(ReadKind::Changes);
    assert_eq!(hold.update(held(&[]), 20, false).keep, None);
    assert_eq!(hold.update(held(&[]), 20, true).keep, Some(Keep::All));
}

#[test]
fn a_confirmation_is_for_the_removals_that_were_shown() {
    let mut hold = hold();
    hold.update(held(&[1, 2]), 20, true);
    hold.confirm(|since| since <= SystemTime::UNIX_EPOCH);
    hold.update(held(&[3]), 18, true);
    assert!(hold.guard().confirmed.iter().eq(keys(&[1, 2]).keys()));
    hold.forget_confirmed(None, &ObservedState::default());
    assert!(hold.guard().confirmed.is_empty(), "they are gone");
}

fn answer(standing: &DeviceStanding, numbers: &[u8]) -> DeviceStandings {
    let of = keys(numbers).into_keys().map(|key| (key, standing.clone())).collect();
    DeviceStandings { of, by_policies: false }
}

#[test]
fn who_is_taken_out_already_does_not_count_among_the_few() {
    let mut hold = hold();
    let all: Vec<u8> = (1..=40).collect();
    hold.update(held(&all), 40, true);
    let barred = DeviceStanding::Barred(Arc::default());
    for (numbers, out, news) in [(&all[..10], 10, 10), (&all[..10], 10, 0), (&all[..11], 11, 1)] {
        let (taken_out, touched) = hold.take_standings(answer(&barred, numbers), Instant::now());
        assert_eq!((taken_out.len(), touched.len()), (out, news));
    }
    assert_eq!(hold.guard().confirmed.len(), 11);
}

#[test]
fn a_word_that_is_taken_back_removes_only_peers_that_an_operator_confirmed() {
    let mut hold = hold();
    hold.update(held(&[1, 2, 3, 4]), 20, true);
    let barred = DeviceStanding::Barred(Arc::default());
    let granted = DeviceStanding::Granted(Arc::default());
    hold.take_standings(answer(&barred, &[1, 2]), Instant::now());
    assert!(hold.guard_as_is().confirmed.iter().eq(keys(&[1, 2]).keys()));
    hold.take_standings(answer(&granted, &[1, 2]), Instant::now());
    assert!(hold.guard_as_is().confirmed.is_empty());
    hold.confirm(|_| true);
    // For the history, the result also names a peer whose removal was already confirmed.
    let (taken_out, touched) =
        hold.take_standings(answer(&DeviceStanding::Revoked, &[1]), Instant::now());
    assert!(taken_out.iter().eq(keys(&[1]).keys()) && touched.is_empty());
    hold.take_standings(answer(&granted, &[1, 2]), Instant::now());
    assert!(hold.guard_as_is().confirmed.iter().eq(keys(&[1, 2, 3, 4]).keys()));
}

#[test]
fn the_disk_learns_who_waits_and_not_of_each_release() {
    let mut hold = hold();
    assert_eq!(hold.begin_remember(), None);
    let all = Held::recalled(keys(&[1, 2, 3, 4]), &BTreeSet::new());
    for (left, written) in [(4, true), (3, false), (2, true), (1, true), (0, true)] {
        let left = &[1, 2, 3, 4][..left];
        let now = Held::recalled(keys(left), &BTreeSet::new()).count_new_since(&all);
        hold.update(Waiting { judged: now, unjudged: Held::default() }, 20, true);
        let kept = hold.begin_remember().map(|(since, _)| since);
        assert_eq!(kept, written.then(|| keys(left)), "{left:?}");
    }
}

#[test]
fn peers_wait_on_while_no_rows_judge_them_and_none_can_be_confirmed() {
    let remembered = Withdrawals { held: keys(&[1, 2]), ..Withdrawals::default() };
    let mut hold = Hold::new(MaxRemoved::Percent(50), &remembered, Instant::now());
    let HoldView { staying, held_back, unjudged } = hold.view();
    assert_eq!((staying.peers().len(), held_back, unjudged), (0, None, 2));
    assert!(hold.holds_nothing_back() && !hold.lets_all_go());
    let waiting = hold.guard().held;
    hold.update(Waiting::unjudged(waiting), 20, false);
    hold.confirm(|_| true);
    let guard = hold.guard();
    assert!(guard.confirmed.is_empty());
    assert!(guard.held.peers().keys().eq(keys(&[1, 2]).keys()));
}

#[test]
fn a_plan_under_the_guard_takes_the_peers_that_stay_with_it_and_gives_back_those_that_still_do() {
    let (mut hold, observed) = (hold(), ObservedState::default());
    hold.update(held(&[1, 2]), 20, true);
    hold.rows_read(ReadKind::Changes);
    let plan = |guard: Guard<'_>| {
        assert!(guard.held.peers().keys().eq(keys(&[1, 2]).keys()));
        assert!(guard.confirmed.iter().eq(keys(&[1, 2]).keys()), "by the setting");
        let foreign = PlanError::ForeignLink { name: "gatepost0".into(), kind: "dummy".into() };
        let (plan, obstacle) = (Plan::default(), Some(foreign));
        Planned { plan, extent: Extent::Withdrawals, held: held(&[1]), obstacle }
    };
    let later = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    let guarded = hold.plan(Some(later), &observed, true, plan);
    assert_eq!(guarded.news.unwrap().removals, 1);
    assert_eq!(guarded.keep, None, "something was in its way: the verdict stays open");
    assert!(hold.view().staying.peers().keys().eq(keys(&[1]).keys()));
}

#[test]
fn an_answer_names_whom_it_takes_out_and_none_leaves_the_question() {
    let (mut hold, now) = (hold(), Instant::now());
    hold.update(held(&[1, 2]), 20, true);
    let nothing = hold.devices_answered(None, &BTreeMap::new(), now);
    assert!(nothing.taken_out.is_empty() && nothing.change == Change::default());
    let id = uuid::Uuid::nil;
    let who = Departed {
        peer_id: crate::model::PeerId(id()),
        device_id: crate::model::DeviceId(id()),
        user_id: crate::model::UserId(id()),
        device_name: "laptop".into(),
        username: "user-1".into(),
    };
    let names = keys(&[1]).into_keys().map(|key| (key, who.clone())).collect();
    let answer = answer(&DeviceStanding::Revoked, &[1, 2]);
    let answered = hold.devices_answered(Some(answer), &names, now);
    assert_eq!(answered.taken_out, names);
    assert!(answered.change.touched.peers.iter().eq(keys(&[1, 2]).keys()));
}
