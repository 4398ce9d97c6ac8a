//! The configuration of rows changes.

use std::sync::Arc;
use std::time::Duration;

use super::{Change, Rows};
use crate::model::Local;
use crate::reconcile::options::StaleOptions;

impl Rows {
    /// The next rows are evaluated by `local`, the present ones grow stale by `stale`. Peers that are
    /// suspended are admitted again; if the rows are too old by `stale`, too, that is found at once.
    pub fn reload(
        &mut self,
        local: Arc<Local>,
        stale: StaleOptions,
        lost_history: Duration,
    ) -> Change {
        self.local = local;
        self.history.set_hold_for(lost_history);
        let was_suspended = self.age.set_options(stale);
        let touched = if was_suspended { self.suspend_all_but(None) } else { None };
        Change::of_everything(None, touched)
    }
}
