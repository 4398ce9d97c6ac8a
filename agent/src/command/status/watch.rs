//! `gatepost status --watch`: the time, the status, what changed, and the newest entries of the journal.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use gatepost::reconcile::status::{Status, Timestamp};

use super::changes::changes;
use super::describe::describe;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, Style, printable, shortened};
use crate::telemetry::Entry;

/// Between two requests.
const EVERY: Duration = Duration::from_secs(1);
/// How many of the last changes stay on the screen.
const CHANGES: usize = 6;
/// How many of the journal's newest entries are shown, and how much of each.
const ENTRIES: usize = 8;
const ENTRY_CHARS: usize = 160;

/// Repeats until interrupted, also across restarts of the agent. On a terminal each repeats in place of the
/// one before, whatever the colours.
///
/// # Errors
/// No agent, or a wrong answer, at the first request.
pub fn watch(client: &Client, json: bool) -> Result<Exit, CommandError> {
    let clear = if io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
    let mut screen = Screen::default();
    loop {
        let now = SystemTime::now();
        match client.status() {
            // The agent may be restarting.
            Err(error) if screen.shown.is_some() => {
                let text = error.to_string();
                if screen.away.replace(text.clone()) != Some(text) {
                    tracing::warn!(%error, "{error}; still watching");
                }
            }
            answer => {
                let status = answer?;
                screen.away = None;
                if !json {
                    screen.take(&status, now);
                    let journal = client.journal().unwrap_or_default();
                    let text = screen.describe(&status, &journal, now, Style::of_stdout());
                    output::print(&format!("{clear}{}", output::for_terminal(&text)))?;
                } else if screen.shown.as_ref() != Some(&status) {
                    output::print_json(&status)?;
                }
                screen.shown = Some(status);
            }
        }
        std::thread::sleep(EVERY);
    }
}

/// The contents of the screen so far.
#[derive(Default)]
struct Screen {
    shown: Option<Status>,
    /// Why the agent does not answer.
    away: Option<String>,
    /// The last changes, the oldest first.
    changes: VecDeque<(SystemTime, String)>,
}

impl Screen {
    /// Takes in what changed since the status that was shown last.
    fn take(&mut self, status: &Status, now: SystemTime) {
        let new = self.shown.as_ref().map(|shown| changes(shown, status)).unwrap_or_default();
        self.changes.extend(new.into_iter().map(|line| (now, line)));
        let surplus = self.changes.len().saturating_sub(CHANGES);
        self.changes.drain(..surplus);
    }

    fn describe(
        &self,
        status: &Status,
        journal: &[Entry],
        now: SystemTime,
        style: Style,
    ) -> String {
        let mut text = format!("{} UTC\n\n{}", clock(now), describe(status, now, style));
        if !self.changes.is_empty() {
            text.push_str("\nchanged while you watch\n");
        }
        for (at, line) in &self.changes {
            text.push_str(&format!("  {}  {}\n", clock(*at), printable(line)));
        }
        if !journal.is_empty() {
            text.push_str("\njournal\n");
        }
        for entry in journal.iter().skip(journal.len().saturating_sub(ENTRIES)) {
            let line = shortened(&printable(&entry.message), ENTRY_CHARS);
            text.push_str(&format!("  {}  {:<4}  {line}\n", clock(entry.at.0), entry.level));
        }
        text
    }
}

/// The time of day, in UTC.
fn clock(at: SystemTime) -> String {
    let text = Timestamp(at).to_string();
    let time = text.split_once('T').map_or("", |(_, time)| time);
    time.split('.').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use gatepost::reconcile::status::State;

    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + secs)
    }

    #[test]
    fn screen_has_the_time_the_last_changes_and_the_newest_entries() {
        let mut screen = Screen::default();
        let ready = Status { state: State::Ready, ..Status::default() };
        screen.take(&ready, at(0));
        screen.shown = Some(ready.clone());
        let mut connected = ready;
        for number in 1..=CHANGES as u64 + 1 {
            connected.peers.connected = number;
            screen.take(&connected, at(number));
            screen.shown = Some(connected.clone());
        }
        let entry = |number: u64| Entry {
            at: Timestamp(at(number)),
            level: "INFO".into(),
            message: format!("added: user{number}/phone"),
        };
        let journal = Vec::from_iter((0..=ENTRIES as u64).map(entry));
        let text = screen.describe(&connected, &journal, at(9), Style::Plain);
        assert!(text.starts_with("22:13:29 UTC\n\ngateway "), "{text}");
        assert!(!text.contains("peers connected: 0 -> 1\n"), "{text}");
        assert!(text.contains("\n  22:13:22  peers connected: 1 -> 2\n"), "{text}");
        assert!(text.contains("\n  22:13:27  peers connected: 6 -> 7\n\njournal\n"), "{text}");
        assert!(!text.contains("user0/phone"), "{text}");
        assert!(text.ends_with("  22:13:28  INFO  added: user8/phone\n"), "{text}");
    }
}
