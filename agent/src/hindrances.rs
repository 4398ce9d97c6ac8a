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

    /// Takes in what a look found. Returns what is new, and whether the last one has ended.
    pub fn replace(&self, found: Vec<String>) -> (Vec<String>, bool) {
        let mut former = self.found.lock().unwrap_or_else(PoisonError::into_inner);
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
        let [drop, off] = ["a chain drops", "forwarding is off"].map(str::to_owned);
        assert_eq!(hindrances.replace(vec![]), (vec![], false));
        assert_eq!(hindrances.replace(vec![drop.clone()]), (vec![drop.clone()], false));
        let both = vec![drop.clone(), off.clone()];
        assert_eq!(hindrances.replace(both.clone()), (vec![off.clone()], false));
        assert_eq!(hindrances.texts(), both);
        assert_eq!(hindrances.replace(vec![off]), (vec![], false));
        assert_eq!(hindrances.replace(vec![]), (vec![], true));
        assert_eq!(hindrances.replace(vec![drop.clone()]), (vec![drop], false));
    }
}
