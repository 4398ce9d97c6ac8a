use super::*;

fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH }
}

fn plan(steps: usize) -> Plan {
    let route = |number| format!("10.9.{number}.0/24").parse().unwrap();
    Plan::new((0..steps).map(|number| Step::AddRoute { prefix: route(number) }).collect())
}

fn begin(passes: &mut Passes, steps: usize, now: Now) {
    let observed = ObservedState::default();
    passes.begin(&plan(steps), BTreeMap::new(), &observed, None, now.instant);
}

#[test]
fn a_pass_that_never_rests_is_given_up_unless_rows_change() {
    let (mut passes, now) = (Passes::new(1), now());
    for _ in 0..MAX_ATTEMPTS {
        assert!(!passes.has_too_many_attempts());
        begin(&mut passes, 1, now);
    }
    assert!(passes.has_too_many_attempts());
    passes.rows_changed();
    assert!(!passes.has_too_many_attempts());
}

#[test]
fn a_proof_without_steps_ends_no_pass_and_a_drift_has_no_lag() {
    let (mut passes, now) = (Passes::new(1), now());
    assert!(passes.prove(true, Some(now.instant), now).is_none());
    let observed = ObservedState::default();
    let drift = Some("nft changed our firewall".to_owned());
    passes.begin(&plan(2), BTreeMap::new(), &observed, drift, now.instant);
    let pass = passes.prove(true, None, now).unwrap();
    assert_eq!((pass.steps, passes.view().last.unwrap().lag), (2, None));
    assert_eq!((passes.view().totals.passes, passes.view().totals.drift_repairs), (2, 1));
}

#[test]
fn what_is_refused_waits_and_is_tried_at_once_when_asked() {
    let (mut passes, now) = (Passes::new(1), now());
    let wait = passes.retry_later(Duration::ZERO, now.instant);
    assert!(!passes.may_plan() && !passes.let_time_pass(now.instant));
    assert_eq!(passes.due(), Some(now.instant + wait));
    assert!(passes.let_time_pass(now.instant + wait) && passes.may_plan());
    passes.retry_later(Duration::ZERO, now.instant);
    assert!(passes.retry_now() && !passes.retry_now());
}

#[test]
fn a_long_plan_is_told_by_its_first_lines() {
    let (mut passes, now) = (Passes::new(1), now());
    begin(&mut passes, FIRST_LINES + 3, now);
    let pass = passes.leave(now).unwrap();
    assert_eq!((pass.first.len(), pass.steps), (FIRST_LINES, FIRST_LINES + 3));
}
