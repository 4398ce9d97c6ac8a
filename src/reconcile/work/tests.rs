//! What becomes of a plan, of its steps, and of the pass that they are part of.

use std::time::SystemTime;

use nix::errno::Errno;

use super::*;
use crate::dataplane::{DataplaneError, NetlinkError};
use crate::plan::Step;

const SECOND: Duration = Duration::from_secs(1);

fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH }
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

fn work() -> Work {
    Work::new(BTreeMap::new(), 1)
}

fn plan() -> Plan {
    Plan::new(vec![Step::RemovePeer { key: key(1) }])
}

fn begin(work: &mut Work, now: Now) {
    let (names_of, cause) = (|_: &BTreeSet<_>| BTreeMap::new(), || "a test".to_owned());
    work.begin(&plan(), names_of, cause, &ObservedState::default(), now.instant);
}

fn settle(work: &mut Work) -> Agreement {
    work.settle(Extent::Whole, true, |_| false)
}

fn who(id: u128) -> Departed {
    let id = uuid::Uuid::from_u128(id);
    Departed {
        peer_id: crate::model::PeerId(id),
        device_id: crate::model::DeviceId(id),
        user_id: crate::model::UserId(id),
        device_name: "laptop".into(),
        username: "user-1".into(),
    }
}

#[test]
fn an_empty_plan_proves_and_one_that_never_ends_waits() {
    let (mut work, now) = (work(), now());
    assert_eq!(work.judge(&Plan::default(), None), Next::Prove);
    while !work.never_rests() {
        assert_eq!(work.judge(&plan(), None), Next::Apply);
        begin(&mut work, now);
    }
    let left = Some(Left { steps: 1, first: vec![plan().steps()[0].to_string()] });
    assert_eq!(work.judge(&plan(), None), Next::Wait { left });
    assert!(matches!(work.view().passes.obstacle, Some(PassObstacle::Refused { steps: 1, .. })));
    assert!(!work.more_to_do(), "nothing was refused");
    assert_eq!(work.judge(&plan(), None), Next::Apply, "rows changed");
}

#[test]
fn beside_an_obstacle_only_withdrawals_go_on() {
    let (mut work, now) = (work(), now());
    let obstacle =
        || Some(PlanError::ForeignLink { name: "gatepost0".into(), kind: "dummy".into() });
    assert_eq!(work.judge(&Plan::default(), obstacle()), Next::Wait { left: None });
    while !work.never_rests() {
        assert_eq!(work.judge(&plan(), obstacle()), Next::Apply);
        begin(&mut work, now);
    }
    assert_eq!(work.judge(&plan(), obstacle()), Next::Wait { left: None });
    assert!(matches!(work.view().passes.obstacle, Some(PassObstacle::Plan(_))));
}

#[test]
fn what_another_program_is_in_the_way_of_is_no_refusal() {
    let (mut work, now) = (work(), now());
    let refused = |number: u8, errno| {
        let prefix = format!("10.9.{number}.0/24").parse().unwrap();
        let source = NetlinkError::Refused { errno, message: String::new() };
        let error = DataplaneError::Refused { source, remedy: None };
        RefusedStep::new(Step::AddRoute { prefix }, error)
    };
    begin(&mut work, now);
    let both = vec![refused(1, Errno::EEXIST), refused(2, Errno::EPERM)];
    let outcome = Outcome { refused: both, ..Outcome::default() };
    let applied = work.applied(outcome, Some(&ObservedState::default()));
    assert_eq!((applied.blocked.len(), applied.refused.len()), (1, 1));
    assert!(!applied.wants_reading && !applied.has_new_rows);
    assert!(matches!(work.view().passes.obstacle, Some(PassObstacle::Refused { steps: 1, .. })));
    assert!(!work.has_all_routes());
    work.more_to_do();
    let outcome = Outcome { refused: vec![refused(1, Errno::EEXIST)], ..Outcome::default() };
    let applied = work.applied(outcome, Some(&ObservedState::default()));
    assert!(applied.wants_reading && applied.has_new_rows);
}

#[test]
fn what_was_refused_waits_and_then_everything_is_compared() {
    let (mut work, now) = (work(), now());
    settle(&mut work);
    assert!(work.is_done() && !work.may_begin());
    let wait = work.retry_later(SECOND, now.instant);
    assert!(work.is_everything() && !work.may_begin());
    assert_eq!(work.due(), Some(now.instant + wait));
    assert!(work.more_to_do() && work.may_begin());
}

#[test]
fn the_peers_of_a_plan_are_named_by_what_changed_or_else_by_their_rows() {
    let (mut work, now) = (Work::new([(key(1), who(1))].into(), 1), now());
    let steps = [1, 2].map(|number| Step::RemovePeer { key: key(number) });
    let unknown = |keys: &BTreeSet<PublicKey>| {
        assert!(keys.iter().eq([&key(2)]));
        BTreeMap::from([(key(2), who(2))])
    };
    let (plan, observed) = (Plan::new(steps.into()), ObservedState::default());
    let cause = || unreachable!("at the start nothing is drift");
    let removing = work.begin(&plan, unknown, cause, &observed, now.instant);
    assert_eq!(*removing, BTreeMap::from([(key(1), who(1)), (key(2), who(2))]));
    assert!(work.departed().is_empty());
}

#[test]
fn a_pass_that_ends_has_a_lag_only_if_it_is_proven() {
    for is_proven in [true, false] {
        let (mut work, start) = (work(), now());
        settle(&mut work);
        let touched = Touched { peers: [key(1)].into(), ..Touched::default() };
        work.changed(touched, Compared::Touched, start.instant);
        begin(&mut work, start);
        let settled = settle(&mut work);
        assert!(settled.ends_pass && !settled.whole, "only one peer was compared");
        let end = Now { instant: start.instant + SECOND, ..start };
        let ended = work.end(settled, is_proven, end).unwrap();
        assert_eq!((ended.extent, ended.pass.is_drift()), (Extent::Whole, false));
        assert_eq!(work.view().passes.last.unwrap().lag, is_proven.then_some(SECOND));
        let settled = settle(&mut work);
        assert!(work.end(settled, is_proven, end).is_none(), "it has ended");
    }
}

#[test]
fn nothing_is_proven_as_a_whole_by_an_older_reading() {
    let mut work = work();
    assert!(!work.settle(Extent::Whole, false, |_| false).whole);
    work.compare_everything();
    assert!(work.settle(Extent::Whole, true, |_| false).whole);
}
