//! What systemd is told: ready, alive, in what state, stopping.
//!
//! Every message is dropped silently where there is no `$NOTIFY_SOCKET`.

use std::time::{Duration, Instant, SystemTime};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::handles::Watcher;
use crate::output::{count, span};
use gatepost::reconcile::status::{State, Status};

/// What waits for the unit, a boot or an upgrade with the package manager's lock, waits no longer
/// than this for a verdict on the first pass.
const FIRST_VERDICT: Duration = Duration::from_secs(30);

/// Tells systemd of each change until the loop has ended: `READY=1` once the first pass was judged,
/// well or not, `STATUS=` when its text changes, `WATCHDOG=1` while the loop moves.
///
/// `READY=1` says that the agent runs. Whether the gateway serves is for `STATUS=` and `/readyz` to
/// say: it may have to wait for an operator, and nothing else may have to wait with it.
pub async fn follow(mut watcher: Watcher) {
    let verdict_by = Instant::now() + FIRST_VERDICT;
    let watchdog = sd_notify::watchdog_enabled();
    // Half of what systemd allows, as sd_watchdog_enabled(3) recommends.
    let mut tick = interval(watchdog.map_or(Duration::from_mins(1), |limit| limit / 2));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Told::default();
    loop {
        let status = watcher.status.borrow_and_update().clone();
        let is_overdue = Instant::now() >= verdict_by;
        notify(&told.news(&status, is_overdue, SystemTime::now()));
        tokio::select! {
            changed = watcher.status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(verdict_by.into()), if !told.ready => {}
            _ = tick.tick() => if watchdog.is_some() && watcher.pulse.is_alive(Instant::now()) {
                notify(&[News::Watchdog]);
            },
        }
    }
}

/// The agent has begun to compare everything anew, on SIGHUP.
pub fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "cannot read the monotonic clock: {error}"),
    }
}

/// The comparison has ended.
pub fn tell_reloaded() {
    send(&[NotifyState::Ready]);
}

/// The agent has begun to stop.
pub fn tell_stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
#[must_use]
pub fn status_line(status: &Status, now: SystemTime) -> String {
    let peers = count(status.peers.in_kernel, "peer");
    let quarantined = match status.peers.quarantined {
        0 => String::new(),
        some => format!(", {some} quarantined"),
    };
    let away = !status.database.connected && status.database.last_error.is_some();
    let database = match status.database.since.filter(|_| away) {
        None if away => "; the database is away".to_owned(),
        None => String::new(),
        Some(since) => format!("; the database is away for {}", span(since.age(now))),
    };
    format!("{}: {peers}{quarantined}{database}", status.state)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum News {
    Ready,
    Status(String),
    Watchdog,
}

/// What systemd has been told already.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    line: Option<String>,
}

impl Told {
    /// `is_overdue`: the first pass has had its time.
    fn news(&mut self, status: &Status, is_overdue: bool, now: SystemTime) -> Vec<News> {
        let mut news = Vec::new();
        let line = status_line(status, now);
        if self.line.as_ref() != Some(&line) {
            self.line = Some(line.clone());
            news.push(News::Status(line));
        }
        let is_judged = !matches!(status.state, State::Starting);
        if (is_judged || is_overdue) && !self.ready {
            self.ready = true;
            news.push(News::Ready);
        }
        news
    }
}

fn notify(news: &[News]) {
    let states = news.iter().map(|news| match news {
        News::Ready => NotifyState::Ready,
        News::Status(line) => NotifyState::Status(line),
        News::Watchdog => NotifyState::Watchdog,
    });
    let states = states.collect::<Vec<_>>();
    if !states.is_empty() {
        send(&states);
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot reach systemd's notification socket: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost::reconcile::status::Timestamp;

    #[test]
    fn ready_is_told_once_and_as_soon_as_the_first_pass_was_judged() {
        let now = SystemTime::UNIX_EPOCH;
        let (mut told, mut status) = (Told::default(), Status::default());
        let starting = News::Status("starting: 0 peers".into());
        assert_eq!(told.news(&status, false, now), [starting]);
        assert_eq!(told.news(&status, false, now), []);
        status.state = State::Ready;
        status.peers.in_kernel = 1;
        let ready = News::Status("ready: 1 peer".into());
        assert_eq!(told.news(&status, false, now), [ready, News::Ready]);
        status.state = State::NotReady { why: "the link is gone".into() };
        assert!(!told.news(&status, false, now).contains(&News::Ready));
        status.state = State::Ready;
        assert!(!told.news(&status, true, now).contains(&News::Ready), "told once is enough");
    }

    #[test]
    fn nobody_waits_for_a_gateway_that_waits_for_an_operator() {
        let now = SystemTime::UNIX_EPOCH;
        let (mut told, mut status) = (Told::default(), Status::default());
        status.state = State::NotReady { why: "the key is wrong".into() };
        let wrong = News::Status("not ready: the key is wrong: 0 peers".into());
        assert_eq!(told.news(&status, false, now), [wrong, News::Ready]);

        let (mut told, status) = (Told::default(), Status::default());
        assert!(!told.news(&status, false, now).contains(&News::Ready));
        assert_eq!(told.news(&status, true, now), [News::Ready], "the database is long away");
    }

    #[test]
    fn a_database_that_is_away_shows_since_when() {
        let since = SystemTime::UNIX_EPOCH;
        let mut status = Status { state: State::Ready, ..Status::default() };
        status.peers.quarantined = 2;
        status.database.since = Some(Timestamp(since));
        status.database.last_error = Some("connection refused".into());
        assert_eq!(
            status_line(&status, since + Duration::from_mins(5)),
            "ready: 0 peers, 2 quarantined; the database is away for 5 min"
        );
    }
}
