//! What systemd is told: ready, alive, in what state, stopping.
//!
//! Every message is dropped silently where there is no `$NOTIFY_SOCKET`.

use std::time::{Duration, Instant, SystemTime};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::handles::Watcher;
use crate::output::{count, span};
use gatepost::reconcile::status::Status;

/// Tells systemd of each change until the loop has ended: `READY=1` once the kernel was proven
/// equal for the first time, `STATUS=` when its text changes, `WATCHDOG=1` while the loop moves.
pub async fn follow(mut watcher: Watcher) {
    let watchdog = sd_notify::watchdog_enabled();
    // Half of what systemd allows, as sd_watchdog_enabled(3) recommends.
    let mut tick = interval(watchdog.map_or(Duration::from_mins(1), |limit| limit / 2));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Told::default();
    loop {
        let status = watcher.status.borrow_and_update().clone();
        notify(&told.news(&status, SystemTime::now()));
        tokio::select! {
            changed = watcher.status.changed() => if changed.is_err() { return },
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
    fn news(&mut self, status: &Status, now: SystemTime) -> Vec<News> {
        let mut news = Vec::new();
        let line = status_line(status, now);
        if self.line.as_ref() != Some(&line) {
            self.line = Some(line.clone());
            news.push(News::Status(line));
        }
        if status.state.is_ready() && !self.ready {
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
    use gatepost::reconcile::status::{State, Timestamp};

    #[test]
    fn ready_is_told_once_and_not_before_it_is_true() {
        let (mut told, mut status) = (Told::default(), Status::default());
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(told.news(&status, now), [News::Status("starting: 0 peers".into())]);
        assert_eq!(told.news(&status, now), []);
        status.state = State::NotReady { why: "the key is wrong".into() };
        assert_eq!(
            told.news(&status, now),
            [News::Status("not ready: the key is wrong: 0 peers".into())]
        );
        status.state = State::Ready;
        status.peers.in_kernel = 1;
        assert_eq!(told.news(&status, now), [News::Status("ready: 1 peer".into()), News::Ready]);
        status.state = State::NotReady { why: "the link is gone".into() };
        assert!(!told.news(&status, now).contains(&News::Ready));
        status.state = State::Ready;
        assert!(!told.news(&status, now).contains(&News::Ready), "told once is enough");
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
