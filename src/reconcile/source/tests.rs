use super::*;
use crate::reconcile::bell::SILENT_AFTER;
use crate::test_rows::no_changes;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH + 1_000 * SECOND }
}

fn later(now: Now, by: Duration) -> Now {
    Now { instant: now.instant + by, wall: now.wall + by }
}

fn source(now: Now) -> Source {
    let timing = Timing {
        safety_poll_interval: 10 * SECOND,
        resync_interval: 600 * SECOND,
        ..Timing::SECONDS
    };
    Source::new(timing, now)
}

/// Connected in listen mode, with the first read done.
fn listening(now: Now) -> Source {
    let mut source = source(now);
    source.connected(Mode::Listen, now);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Everything));
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    source.let_time_pass(now);
    source.wanted = None;
    source
}

fn begin_read(source: &mut Source, now: Now) -> Option<ReadKind> {
    match source.begin_read(|kind| kind, now)? {
        Action::Read(kind) => Some(kind),
        other => panic!("{other:?}"),
    }
}

fn nothing_changed(taken_at: SystemTime) -> ReadAnswer {
    ReadAnswer::Unchanged { taken_at }
}

fn changed(taken_at: SystemTime) -> ReadAnswer {
    ReadAnswer::Changed(no_changes(taken_at))
}

fn failure() -> DatabaseError {
    let bound = String::new();
    DatabaseError::OtherGateway { configured: bound.clone(), bound }
}

#[test]
fn every_read_puts_the_next_question_off() {
    let now = start();
    let mut source = source(now);
    source.connected(Mode::Listen, now);
    begin_read(&mut source, now);
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    let due = source.next_poll;
    // The read of a heartbeat just before that.
    let beat = Now { instant: due - SECOND / 10, ..now };
    source.want(ReadKind::Changes);
    assert_eq!(begin_read(&mut source, beat), Some(ReadKind::Changes));
    source.end_read(&Ok(nothing_changed(now.wall)), beat);
    source.let_time_pass(Now { instant: due, ..now });
    assert_eq!(begin_read(&mut source, Now { instant: due, ..now }), None);
    assert!(source.next_poll >= beat.instant + SECOND);
}

#[test]
fn what_nothing_announced_is_asked_before_it_is_read_and_a_hint_is_read_at_once() {
    let now = start();
    let mut source = source(now);
    source.connected(Mode::Hints, now);
    begin_read(&mut source, now);
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    let later = Now { instant: now.instant + 60 * SECOND, ..now };
    source.let_time_pass(later);
    assert_eq!(begin_read(&mut source, later), Some(ReadKind::Check));
    source.end_read(&Ok(nothing_changed(now.wall)), later);
    source.hinted(later);
    assert_eq!(begin_read(&mut source, later), Some(ReadKind::Changes));
}

#[test]
fn gateways_that_follow_hints_ask_at_most_16_times_a_second_together_and_each_once_a_minute() {
    let timing = Timing { safety_poll_interval: 10 * SECOND, ..Timing::SECONDS };
    let interval = |gateways| timing.question_interval(Mode::Hints, gateways);
    assert_eq!([1, 160].map(interval), [10 * SECOND; 2]);
    assert!((31 * SECOND..32 * SECOND).contains(&interval(500)));
    assert_eq!([1_000, 100_000].map(interval), [60 * SECOND; 2]);
}

#[test]
fn gateways_that_poll_ask_at_most_two_hundred_times_a_second_together() {
    let now = start();
    let mut source = source(now);
    source.connected(Mode::Poll, now);
    for (gateways, interval) in [(1, SECOND), (200, SECOND), (1_000, 5 * SECOND)] {
        source.gateways(gateways, now);
        assert_eq!(source.view().poll_interval, Some(interval), "{gateways}");
        source.let_time_pass(later(now, 100 * SECOND));
        let wait = source.next_poll - (now.instant + 100 * SECOND);
        assert!(interval <= wait && wait <= interval.mul_f64(1.2), "{wait:?}");
    }
    source.gateways(10, later(now, 100 * SECOND));
    let wait = source.next_poll - (now.instant + 100 * SECOND);
    assert!(wait <= 2 * SECOND, "fewer gateways wait less: {wait:?}");
    source.connected(Mode::Hints, later(now, 100 * SECOND));
    source.gateways(10_000, later(now, 100 * SECOND));
    source.let_time_pass(later(now, 200 * SECOND));
    let wait = source.next_poll - (now.instant + 200 * SECOND);
    assert!(wait >= 45 * SECOND, "although they hear of changes: {wait:?}");
}

#[test]
fn gateways_whose_bell_falls_silent_poll_and_do_not_all_ask_at_once() {
    let (now, mut first) = (start(), std::collections::BTreeSet::new());
    for seed in 0..200 {
        let mut source = source(now);
        source.random = fastrand::Rng::with_seed(seed);
        source.bell_news(BellNews::Expected, now);
        source.gateways(1_000, now);
        source.connected(Mode::Hints, now);
        assert_eq!(source.mode(), Some(Mode::Poll), "no bell was heard yet");
        assert_eq!(source.bell_news(BellNews::Alive, now), Some(Note::BellHeard));
        assert_eq!(source.mode(), Some(Mode::Hints));
        source.let_time_pass(now);
        let silent = later(now, SILENT_AFTER);
        let news = source.let_time_pass(silent).notes;
        assert_eq!(news, [Note::BellSilent { trouble: None }]);
        assert_eq!(source.view().poll_interval, Some(5 * SECOND));
        first.insert((source.next_poll - silent.instant).as_secs());
    }
    assert_eq!(first, (0..5).collect());
}

#[test]
fn however_many_hints_come_one_read_is_under_way_and_one_waits() {
    let now = start();
    let mut source = listening(now);
    source.hinted(now);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Changes));
    for _ in 0..1_000 {
        source.hinted(now);
        assert_eq!(begin_read(&mut source, now), None, "a read is under way");
    }
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Changes));
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    assert_eq!(begin_read(&mut source, now), None, "nothing waits");
}

/// A thousand gateways, to which another program publishes hints without end.
#[test]
fn a_flood_of_hints_causes_reads_at_a_steady_pace_and_the_last_one_is_answered() {
    let (start, mut reads) = (start(), 0);
    let mut now = start;
    let mut source = listening(now);
    source.gateways(1_000, now);
    for millis in 0..1_000 {
        now = later(start, Duration::from_millis(millis));
        source.hinted(now);
        if begin_read(&mut source, now).is_some() {
            source.end_read(&Ok(nothing_changed(now.wall)), now);
            reads += 1;
        }
    }
    assert_eq!(reads, 23, "twenty at once, and four a second");
    let due = source.due(now).unwrap();
    assert!(due <= now.instant + Duration::from_millis(250), "it is forgotten");
    // One that a timer asks for answers the hint as well, and is not held up.
    source.want(ReadKind::Changes);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Changes));
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    let now = later(now, SECOND);
    assert_eq!(begin_read(&mut source, now), None);
    source.hinted(now);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Changes));
}

#[test]
fn a_bell_whose_hints_do_not_come_is_not_followed_until_one_comes() {
    let now = start();
    let mut source = source(now);
    source.bell_news(BellNews::Expected, now);
    source.bell_news(BellNews::Alive, now);
    source.connected(Mode::Hints, now);
    begin_read(&mut source, now).unwrap();
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    let find_by_timer = |source: &mut Source, now: Now| {
        source.want(ReadKind::Changes);
        begin_read(source, now).unwrap();
        let read = source.end_read(&Ok(changed(now.wall)), now);
        source.found_changes(read, now);
    };
    // Its hint comes a little later than the timer.
    find_by_timer(&mut source, now);
    source.hinted(now);
    begin_read(&mut source, now).unwrap();
    source.end_read(&Ok(nothing_changed(now.wall)), now);
    let now = later(now, 2 * SECOND);
    source.bell_news(BellNews::Alive, now);
    assert_eq!(source.let_time_pass(now).notes, []);

    find_by_timer(&mut source, now);
    let now = later(now, 2 * SECOND);
    source.bell_news(BellNews::Alive, now);
    let elapsed = source.let_time_pass(now);
    assert_eq!(elapsed.notes, [Note::HintsMissed]);
    assert_eq!((source.mode(), source.view().poll_interval), (Some(Mode::Poll), Some(SECOND)));
    assert!(source.next_poll <= now.instant + SECOND, "it asks soon");
    assert_eq!(
        (source.view().mute_since, source.view().figures.notify_missed),
        (Some(now.wall), 1)
    );
    assert_eq!(source.hinted(now), Some(Note::HintsAgain));
    assert_eq!((source.mode(), source.view().mute_since), (Some(Mode::Hints), None));
}

#[test]
fn heartbeats_of_more_than_a_thousand_gateways_are_a_minute_apart() {
    let now = start();
    let mut source = source(now);
    source.reload(Timing { heartbeat_among_many: 60 * SECOND, ..Timing::SECONDS }, now);
    for (gateways, heartbeat) in [(1, SECOND), (1_000, SECOND), (1_001, 60 * SECOND)] {
        source.gateways(gateways, now);
        assert_eq!(source.timing().heartbeat, heartbeat, "{gateways}");
    }
}

#[test]
fn reads_wait_while_the_database_is_away_and_for_the_backoff() {
    let now = start();
    let mut source = source(now);
    assert_eq!(begin_read(&mut source, now), None, "not connected");
    assert!(source.begin_connect(now).is_some() && source.begin_connect(now).is_none());
    assert_eq!(source.due(now), None, "an attempt is under way");
    source.connected(Mode::Poll, now);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Everything));
    source.end_read(&Err(failure()), now);
    assert_eq!(begin_read(&mut source, now), None, "it just failed");
    let now = later(now, Backoff::FIRST);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Everything));
}

#[test]
fn the_databases_clock_goes_on_while_it_is_away_and_never_back() {
    let now = start();
    let mut source = listening(now);
    source.disconnected(failure(), now);
    let set_back = Now { wall: SystemTime::UNIX_EPOCH, ..later(now, SECOND) };
    assert_eq!(source.clock(set_back), now.wall + SECOND);
    source.end_read(&Ok(nothing_changed(now.wall)), set_back);
    assert_eq!(source.clock(set_back), now.wall + SECOND);
}

/// After so many reads that failed that the wait is the longest. Returns the time of the last one.
fn reads_that_failed(source: &mut Source, mut now: Now, notified_meanwhile: bool) -> Now {
    for _ in 0..8 {
        source.want(ReadKind::Changes);
        now = later(now, Backoff::LAST);
        begin_read(source, now).unwrap();
        if notified_meanwhile {
            source.notified(now);
        }
        source.end_read(&Err(failure()), now);
    }
    now
}

#[test]
fn a_notification_ends_the_wait_after_a_failed_read_at_most_once_a_second() {
    let start = start();
    let mut source = listening(start);
    let mut now = reads_that_failed(&mut source, start, false);
    source.notified(now);
    assert_eq!(begin_read(&mut source, now), None, "it was just tried");
    now = later(now, RETRY_GAP);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Changes));
}

#[test]
fn a_notification_during_a_read_that_fails_ends_the_wait_after_it() {
    let start = start();
    let mut source = listening(start);
    let mut now = reads_that_failed(&mut source, start, true);
    assert_eq!(begin_read(&mut source, now), None, "it was just tried");
    now = later(now, RETRY_GAP);
    assert_eq!(begin_read(&mut source, now), Some(ReadKind::Changes));
}

#[test]
fn a_read_that_takes_long_does_not_set_the_databases_clock_back() {
    let start = start();
    let mut source = listening(start);
    source.notified(start);
    begin_read(&mut source, start).unwrap();
    let end = later(start, 30 * SECOND);
    source.end_read(&Ok(changed(start.wall + SECOND)), end);
    assert_eq!(source.clock(end), start.wall + 30 * SECOND);
    // What the read says wins where the two cannot both be true.
    source.begin_connect(end);
    source.notified(end);
    begin_read(&mut source, end).unwrap();
    source.end_read(&Ok(changed(start.wall)), end);
    assert_eq!(source.clock(end), start.wall);
}

#[test]
fn while_changes_are_unannounced_everything_is_read_each_time_we_hear_of_it() {
    let mut source = listening(start());
    let tables = || vec!["devices".to_owned()];
    assert_eq!(source.unannounced(Vec::new()), None);
    assert_eq!(source.wanted, None);
    for news in [Some(Note::Unannounced { tables: tables() }), None] {
        assert_eq!(source.unannounced(tables()), news);
        assert_eq!(source.wanted.take(), Some(ReadKind::Everything));
    }
    assert_eq!(source.unannounced(Vec::new()), Some(Note::AnnouncedAgain));
    assert_eq!(source.wanted, Some(ReadKind::Everything));
}
