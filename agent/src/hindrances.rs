//! Hindrances on this host, which keep packets from peers although policies allow them: firewalls of other
//! programs, and forwarding that is off.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The hindrances that were found, for all callers. Clones are cheap.
#[derive(Debug, Clone, Default)]
pub struct Hindrances {
    found: Arc<Mutex<Vec<String>>>,
    look: Arc<Notify>,
}

/// What one look found: a sentence for each hindrance, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// There are no others.
    Complete(Vec<String>),
    /// The firewalls of other programs could not be read.
    Partial { found: Vec<String>, why: String },
}

impl Look {
    /// All sentences, and one about what could not be read.
    #[must_use]
    pub fn texts(self) -> Vec<String> {
        match self {
            Self::Complete(found) => found,
            Self::Partial { mut found, why } => {
                found.push(format!("cannot read the firewalls of other programs: {why}"));
                found
            }
        }
    }
}

impl Hindrances {
    /// A sentence for each, with what to do.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something may have changed.
    pub fn look_again(&self) {
        self.look.notify_one();
    }

    /// Waits until something may have changed.
    pub async fn until_changed(&self) {
        self.look.notified().await;
    }

    /// Takes in what a look found. Returns what is new, and whether the last one has ended. A look that
    /// did not see everything ends none.
    pub fn replace(&self, look: Look) -> (Vec<String>, bool) {
        let mut former = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match look {
            Look::Complete(found) => found,
            Look::Partial { found, .. } => {
                let new = found.into_iter().filter(|text| !former.contains(text));
                former.iter().cloned().chain(new).collect()
            }
        };
        let news = found.iter().filter(|text| !former.contains(text)).cloned().collect();
        let is_over = found.is_empty() && !former.is_empty();
        *former = found;
        (news, is_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_news_once_and_the_end_of_the_last_is_told() {
        let hindrances = Hindrances::default();
        let replace = |found| hindrances.replace(Look::Complete(found));
        let [drop, off] = ["a chain drops", "forwarding is off"].map(str::to_owned);
        assert_eq!(replace(vec![]), (vec![], false));
        assert_eq!(replace(vec![drop.clone()]), (vec![drop.clone()], false));
        let both = vec![drop.clone(), off.clone()];
        assert_eq!(replace(both.clone()), (vec![off.clone()], false));
        assert_eq!(hindrances.texts(), both);
        assert_eq!(replace(vec![off]), (vec![], false));
        assert_eq!(replace(vec![]), (vec![], true));
        assert_eq!(replace(vec![drop.clone()]), (vec![drop], false));
    }

    #[test]
    fn look_that_failed_ends_nothing() {
        let hindrances = Hindrances::default();
        let [drop, off] = ["a chain drops", "forwarding is off"].map(str::to_owned);
        let failed = |found| Look::Partial { found, why: "interrupted".into() };
        assert_eq!(hindrances.replace(failed(vec![])), (vec![], false));
        hindrances.replace(Look::Complete(vec![drop.clone()]));
        assert_eq!(hindrances.replace(failed(vec![])), (vec![], false));
        assert_eq!(hindrances.replace(failed(vec![off.clone()])), (vec![off.clone()], false));
        assert_eq!(hindrances.texts(), [drop, off]);
        assert_eq!(hindrances.replace(Look::Complete(vec![])), (vec![], true));
    }
}
