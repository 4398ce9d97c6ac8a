//! Whether the database takes what the agent reports, and whether its schema is up to date.

use serde::{Deserialize, Serialize};

use super::{State, Status, Timestamp};
use crate::store::SCHEMA_VERSION;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReportsStatus {
    /// The database's time from which on a table has refused all reports; they wait.
    pub refused_since: Option<Timestamp>,
    /// The triggers that refuse them, with the error and what mends it.
    pub refused_by: Vec<String>,
    /// The host that reports for this gateway in place of this one.
    pub led_by: Option<String>,
    /// All other hosts of this gateway.
    pub other_hosts: Vec<String>,
}

impl Status {
    /// A schema of the version before serves this agent, and must be migrated.
    pub(crate) fn tell_old_schema(&mut self) {
        let Some(why) = self.database.schema_version.and_then(old_schema) else { return };
        self.warnings.push(why.clone());
        if self.state == State::Ready {
            self.state = State::Degraded { why };
        }
    }
}

/// Explains that the database has a schema of this version; `None`: the schema is up to date.
pub(crate) fn old_schema(found: i32) -> Option<String> {
    (found < SCHEMA_VERSION).then(|| {
        format!(
            "the database has schema version {found}, and this agent is of version {SCHEMA_VERSION}: \
             run this version's `gatepost migrate`"
        )
    })
}
