//! The bell: whether it is heard, and since when it is silent.
//!
//! `gatepost bell` gives a sign of life each second. An agent that does not hear it does not hear of
//! changes either, so it asks for them at the interval of poll mode. It also does that where it hears
//! signs of life and no hints: the broker may refuse them, or another program may give the signs.

use std::time::{Duration, Instant, SystemTime};

use super::clock::Now;

/// A bell that gives no sign of life for so long is silent.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(3);

/// A bell whose sign of life is heard so long after a change was found has looked since: it gives none after
/// a look that takes longer.
const RINGS_WITHIN: Duration = Duration::from_secs(1);

/// News about the bell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BellNews {
    /// `[hints]` is configured, so a bell should be heard.
    Expected,
    /// A sign of life.
    Alive,
    /// Why nothing can be heard: the broker's connection or its refusal. `None`: that is over.
    Trouble(Option<String>),
}

/// The machine's knowledge of the bell.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: State,
    trouble: Option<String>,
    /// When it began to give signs of life without hints.
    mute: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// No `[hints]`.
    #[default]
    Unexpected,
    Heard {
        at: Instant,
    },
    Silent {
        since: Now,
        /// The silence lasts for longer than [`SILENT_AFTER`], which was said.
        said: bool,
    },
}

/// A change of the bell's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BellChange {
    Heard,
    /// It is no longer heard, or still not.
    Silent,
}

impl Bell {
    pub fn hears(&mut self, news: BellNews, now: Now) -> Option<BellChange> {
        match news {
            BellNews::Expected => {
                (self.state, self.mute) = (State::Silent { since: now, said: false }, None);
                None
            }
            BellNews::Alive => {
                let was_heard = self.is_heard();
                (self.state, self.trouble) = (State::Heard { at: now.instant }, None);
                if !was_heard {
                    self.mute = None;
                }
                (!was_heard).then_some(BellChange::Heard)
            }
            BellNews::Trouble(trouble) => {
                self.trouble = trouble;
                None
            }
        }
    }

    pub const fn is_heard(&self) -> bool {
        matches!(self.state, State::Heard { .. })
    }

    /// It is heard, and its hints come as far as is known.
    pub const fn is_followed(&self) -> bool {
        self.is_heard() && self.mute.is_none()
    }

    /// Whether it has given no hint of a change that was found then, although it looked since.
    pub fn owes_hint(&self, found_at: Instant) -> bool {
        matches!(self.state, State::Heard { at } if at >= found_at + RINGS_WITHIN)
    }

    /// Its hints do not come.
    pub const fn distrust(&mut self, now: Now) {
        self.mute = Some(now.wall);
    }

    /// A hint came. Says whether that is news.
    pub const fn hinted(&mut self) -> bool {
        self.mute.take().is_some()
    }

    /// When it began to give signs of life without hints.
    pub fn mute_since(&self) -> Option<SystemTime> {
        self.mute.filter(|_| self.is_heard())
    }

    /// When [`Self::let_time_pass`] has something to say.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Heard { at } => Some(at + SILENT_AFTER),
            State::Silent { since, said: false } => Some(since.instant + SILENT_AFTER),
            State::Silent { said: true, .. } | State::Unexpected => None,
        }
    }

    /// Whether the bell counts as silent from now on.
    pub fn let_time_pass(&mut self, now: Now) -> Option<BellChange> {
        if self.due().is_none_or(|at| at > now.instant) {
            return None;
        }
        let since = match self.state {
            State::Silent { since, .. } => since,
            State::Heard { .. } | State::Unexpected => now,
        };
        self.state = State::Silent { since, said: true };
        Some(BellChange::Silent)
    }

    /// Why no bell is heard, once that was said.
    pub fn silence(&self) -> Option<Silence<'_>> {
        match self.state {
            State::Silent { since, said: true } => {
                Some(Silence { since: since.wall, trouble: self.trouble.as_deref() })
            }
            State::Silent { .. } | State::Heard { .. } | State::Unexpected => None,
        }
    }
}

/// When the bell became silent, by this host's clock, and why, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Silence<'a> {
    pub since: SystemTime,
    pub trouble: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Now {
        Now { instant: Instant::now(), wall: SystemTime::UNIX_EPOCH }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { instant: now.instant + by, wall: now.wall + by }
    }

    #[test]
    fn a_bell_is_silent_after_three_seconds_and_heard_with_its_next_sign_of_life() {
        let now = start();
        let mut bell = Bell::default();
        assert_eq!((bell.due(), bell.let_time_pass(later(now, SILENT_AFTER))), (None, None));
        bell.hears(BellNews::Expected, now);
        assert!(!bell.is_heard() && bell.silence().is_none(), "it may yet be heard");
        assert_eq!(bell.hears(BellNews::Alive, now), Some(BellChange::Heard));
        assert_eq!(bell.hears(BellNews::Alive, now), None);
        assert_eq!(bell.let_time_pass(later(now, SILENT_AFTER / 2)), None);
        let now = later(now, SILENT_AFTER);
        assert_eq!(bell.let_time_pass(now), Some(BellChange::Silent));
        assert_eq!(bell.let_time_pass(later(now, SILENT_AFTER)), None, "said once");
        bell.hears(BellNews::Trouble(Some("connection refused".into())), now);
        let trouble = Some("connection refused");
        assert_eq!(bell.silence(), Some(Silence { since: now.wall, trouble }));
        assert_eq!(bell.hears(BellNews::Alive, now), Some(BellChange::Heard));
        assert_eq!(bell.silence(), None);
    }

    #[test]
    fn a_bell_owes_a_hint_once_it_gave_a_sign_of_life_long_enough_after_the_change() {
        let (found, mut bell) = (start(), Bell::default());
        bell.hears(BellNews::Alive, later(found, RINGS_WITHIN / 2));
        assert!(!bell.owes_hint(found.instant), "it may have looked before");
        bell.hears(BellNews::Alive, later(found, RINGS_WITHIN));
        assert!(bell.owes_hint(found.instant) && bell.is_followed());
        bell.distrust(found);
        assert!(bell.is_heard() && !bell.is_followed() && bell.mute_since() == Some(found.wall));
        assert!(bell.hinted() && !bell.hinted() && bell.is_followed());
        // A silent bell is another trouble, and one that is heard again is trusted.
        bell.distrust(found);
        bell.let_time_pass(later(found, RINGS_WITHIN + SILENT_AFTER));
        assert_eq!((bell.owes_hint(found.instant), bell.mute_since()), (false, None));
        bell.hears(BellNews::Alive, later(found, RINGS_WITHIN + SILENT_AFTER));
        assert!(bell.is_followed());
    }

    #[test]
    fn a_bell_that_was_never_heard_is_silent_too() {
        let now = start();
        let mut bell = Bell::default();
        bell.hears(BellNews::Expected, now);
        assert_eq!(bell.due(), Some(now.instant + SILENT_AFTER));
        assert_eq!(bell.let_time_pass(later(now, SILENT_AFTER)), Some(BellChange::Silent));
        assert_eq!(bell.silence(), Some(Silence { since: now.wall, trouble: None }));
    }
}
