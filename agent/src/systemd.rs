//! Notifications to systemd: ready, alive, status, reloading, stopping.
//!
//! Without `$NOTIFY_SOCKET` they go nowhere, silently.

use std::time::{Duration, Instant, SystemTime};

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::handles::Watcher;
use crate::output::{count, span};
use crate::pulse::Pulse;
use gatepost::reconcile::status::{State, Status, Unavailable};

/// The longest time that a boot or an upgrade, which wait for the unit, wait for the first pass.
const FIRST_PASS_TIMEOUT: Duration = Duration::from_secs(30);

/// Notifies systemd until the loop has ended: `READY=1` once the first pass has succeeded or failed,
/// `STATUS=` when its text changes, `WATCHDOG=1` while the loop moves.
///
/// `READY=1` says that the agent runs; `STATUS=` and `/readyz` say whether the gateway serves. It
/// may have to wait for an operator, and a boot must not wait with it.
pub async fn follow(mut watcher: Watcher) {
    let ready_by = Instant::now() + FIRST_PASS_TIMEOUT;
    let watchdog = sd_notify::watchdog_enabled();
    // Half of what systemd allows, as sd_watchdog_enabled(3) recommends.
    let mut tick = interval(watchdog.map_or(Duration::from_mins(1), |limit| limit / 2));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = Sent::default();
    loop {
        let status = watcher.status.borrow_and_update().clone();
        let is_overdue = Instant::now() >= ready_by;
        notify(&sent.next(&status, is_overdue, SystemTime::now()));
        tokio::select! {
            changed = watcher.status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(ready_by.into()), if !sent.ready => {}
            _ = tick.tick() => if watchdog.is_some() && watcher.pulse.is_alive(Instant::now()) {
                notify(&[Notification::Watchdog]);
            },
        }
    }
}

/// Notifies systemd until the bell has ended. A bell has started once it runs: one that waits for the
/// database must hold up no boot.
pub async fn follow_bell<S: ToString + Send + std::marker::Sync>(
    mut state: watch::Receiver<S>,
    pulse: Pulse,
) {
    send(&[NotifyState::Ready]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut tick = interval(watchdog.map_or(Duration::from_mins(1), |limit| limit / 2));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let line = state.borrow_and_update().to_string();
        send(&[NotifyState::Status(&line)]);
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            _ = tick.tick() => if watchdog.is_some() && pulse.is_alive(Instant::now()) {
                send(&[NotifyState::Watchdog]);
            },
        }
    }
}

/// The agent has begun to compare everything again, on SIGHUP.
pub fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "cannot read the monotonic clock: {error}"),
    }
}

/// The comparison has ended.
pub fn notify_reloaded() {
    send(&[NotifyState::Ready]);
}

/// The agent has begun to stop.
pub fn notify_stopping() {
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
    let database = if status.database.connected || status.database.last_error.is_none() {
        String::new()
    } else {
        let since = status.database.since.map(|since| format!(" for {}", span(since.age(now))));
        let word = match status.database.unavailable {
            Some(Unavailable::Unreachable) => "unreachable",
            Some(Unavailable::Refuses) => "login refused",
            Some(Unavailable::NotReady) => "not ready",
            None => "not connected",
        };
        format!("; database {word}{}", since.unwrap_or_default())
    };
    format!("{}: {peers}{quarantined}{database}", status.state)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Notification {
    Ready,
    Status(String),
    Watchdog,
}

/// The notifications that were sent already.
#[derive(Debug, Default)]
struct Sent {
    ready: bool,
    line: Option<String>,
}

impl Sent {
    /// Decides which notifications to send next. `is_overdue`: [`FIRST_PASS_TIMEOUT`] has passed.
    fn next(&mut self, status: &Status, is_overdue: bool, now: SystemTime) -> Vec<Notification> {
        let mut next = Vec::new();
        let line = status_line(status, now);
        if self.line.as_ref() != Some(&line) {
            self.line = Some(line.clone());
            next.push(Notification::Status(line));
        }
        let has_passed = !matches!(status.state, State::Starting);
        if (has_passed || is_overdue) && !self.ready {
            self.ready = true;
            next.push(Notification::Ready);
        }
        next
    }
}

fn notify(notifications: &[Notification]) {
    let states = notifications.iter().map(|notification| match notification {
        Notification::Ready => NotifyState::Ready,
        Notification::Status(line) => NotifyState::Status(line),
        Notification::Watchdog => NotifyState::Watchdog,
    });
    let states = states.collect::<Vec<_>>();
    if !states.is_empty() {
        send(&states);
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost::reconcile::status::Timestamp;

    #[test]
    fn ready_is_sent_once_and_as_soon_as_the_first_pass_has_succeeded() {
        let now = SystemTime::UNIX_EPOCH;
        let (mut sent, mut status) = (Sent::default(), Status::default());
        let starting = Notification::Status("starting: 0 peers".into());
        assert_eq!(sent.next(&status, false, now), [starting]);
        assert_eq!(sent.next(&status, false, now), []);
        status.state = State::Ready;
        status.peers.in_kernel = 1;
        let ready = Notification::Status("ready: 1 peer".into());
        assert_eq!(sent.next(&status, false, now), [ready, Notification::Ready]);
        status.state = State::NotReady { why: "the link is gone".into() };
        assert!(!sent.next(&status, false, now).contains(&Notification::Ready));
        status.state = State::Ready;
        assert!(!sent.next(&status, true, now).contains(&Notification::Ready), "once is enough");
    }

    #[test]
    fn boot_does_not_wait_for_a_gateway_that_waits_for_an_operator() {
        let now = SystemTime::UNIX_EPOCH;
        let (mut sent, mut status) = (Sent::default(), Status::default());
        status.state = State::NotReady { why: "the key is wrong".into() };
        let wrong = Notification::Status("not ready: the key is wrong: 0 peers".into());
        assert_eq!(sent.next(&status, false, now), [wrong, Notification::Ready]);

        let (mut sent, status) = (Sent::default(), Status::default());
        assert!(!sent.next(&status, false, now).contains(&Notification::Ready));
        assert_eq!(sent.next(&status, true, now), [Notification::Ready], "a database out of reach");
    }

    #[test]
    fn status_line_says_for_how_long_the_database_is_disconnected() {
        let since = SystemTime::UNIX_EPOCH;
        let mut status = Status { state: State::Ready, ..Status::default() };
        status.peers.quarantined = 2;
        status.database.since = Some(Timestamp(since));
        status.database.last_error = Some("password authentication failed".into());
        status.database.unavailable = Some(Unavailable::Refuses);
        assert_eq!(
            status_line(&status, since + Duration::from_mins(5)),
            "ready: 0 peers, 2 quarantined; database login refused for 5 min"
        );
    }
}
