//! The newest entries of the log, for `gatepost status --watch`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use gatepost::reconcile::status::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How many entries are kept.
const KEPT: usize = 50;

static ENTRIES: Mutex<VecDeque<Entry>> = Mutex::new(VecDeque::new());

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Timestamp,
    /// `INFO`, `WARN` or `ERROR`.
    pub level: String,
    pub message: String,
}

/// Those that are kept, the oldest first.
#[must_use]
pub fn newest() -> Vec<Entry> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Keeps what is logged for operators.
pub struct Keeper;

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let at = Timestamp(SystemTime::now());
        push(Entry { at, level: level.to_string(), message: message.0 });
    }
}

fn push(entry: Entry) {
    let mut entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    if entries.len() == KEPT {
        entries.pop_front();
    }
    entries.push_back(entry);
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn messages_for_operators_are_kept_and_no_more_than_so_many() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Keeper), || {
            tracing::debug!("for developers");
            (0..KEPT + 7).for_each(|number| tracing::info!(number, "entry {number}"));
            tracing::warn!(why = "x", "the last");
        });
        let kept = newest();
        assert_eq!(kept.len(), KEPT);
        let (first, last) = (&kept[0], &kept[KEPT - 1]);
        assert_eq!((&*first.level, &*first.message), ("INFO", "entry 8"));
        assert_eq!((&*last.level, &*last.message), ("WARN", "the last"));
    }
}
