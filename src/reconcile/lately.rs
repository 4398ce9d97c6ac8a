//! What was said lately: trouble that goes on is said once, and again every hour.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Machine;
use super::event::{Action, Note, Now};

const SAY_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// What a trouble is with, and so what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// Over when rows were read.
    Database,
    /// Over when a report was taken.
    Report,
    /// Over when the kernel was proven.
    Kernel,
    /// A route of somebody else: goes on while the rest is proven.
    Route,
}

/// When each trouble was said.
#[derive(Debug, Clone, Default)]
pub(super) struct Lately(BTreeMap<(Trouble, String), Instant>);

impl Lately {
    /// Whether this was not said within the last hour. From now on it was.
    pub fn is_news(&mut self, trouble: Trouble, note: &Note, now: Instant) -> bool {
        self.0.retain(|_, said_at| now.duration_since(*said_at) < SAY_AGAIN_AFTER);
        let key = (trouble, gist(note));
        let news = !self.0.contains_key(&key);
        self.0.entry(key).or_insert(now);
        news
    }

    /// The trouble is over: that it comes back will be news.
    pub fn forget(&mut self, trouble: Trouble) {
        self.0.retain(|(other, _), _| *other != trouble);
    }
}

impl Machine {
    /// Says what is in the way, unless it was said lately.
    pub(super) fn complain(
        &mut self,
        trouble: Trouble,
        note: Note,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.lately.is_news(trouble, &note, now.instant) {
            actions.push(Action::Say(note));
        }
    }
}

/// A note without the figures that are never the same twice.
fn gist(note: &Note) -> String {
    match note {
        Note::DatabaseDown { error, .. } => format!("out of reach: {error}"),
        Note::NotConverged { first, .. } => first.join("; "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_an_hour_and_anew_when_it_comes_back() {
        let (mut lately, start) = (Lately::default(), Instant::now());
        let news = |lately: &mut Lately, error: &str, secs| {
            let note = Note::StepRefused { step: "route add".into(), error: error.into() };
            lately.is_news(Trouble::Kernel, &note, start + Duration::from_secs(secs))
        };
        assert!(news(&mut lately, "refused", 0));
        assert!(!news(&mut lately, "refused", 3_599));
        assert!(news(&mut lately, "other", 3_599));
        assert!(news(&mut lately, "refused", 3_600));
        lately.forget(Trouble::Database);
        assert!(!news(&mut lately, "refused", 3_601));
        lately.forget(Trouble::Kernel);
        assert!(news(&mut lately, "refused", 3_602));
    }
}
