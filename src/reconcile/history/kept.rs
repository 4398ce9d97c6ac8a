//! What outlives a restart of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::model::{Departed, DeviceId, MarkId, PublicKey, UserId};
use crate::plan::Held;
use crate::reconcile::name::name_of;

/// A withdrawal that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    pub device_id: DeviceId,
    pub user_id: UserId,
    /// "alice/laptop".
    pub name: String,
    /// The marks that may have brought it about.
    pub marks: Vec<MarkId>,
    /// The database's time of the read that found it.
    pub read_at: SystemTime,
}

impl Withdrawal {
    pub(super) fn of(who: &Departed, marks: Vec<MarkId>, read_at: SystemTime) -> Self {
        let name = name_of(&who.username, &who.device_name);
        Self { device_id: who.device_id, user_id: who.user_id, name, marks, read_at }
    }
}

/// A withdrawal that the database lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// "alice/laptop".
    pub name: String,
    /// The database's time when the agent learned that it was lost: in whole microseconds, and later
    /// than those of the peers kept out before.
    pub since: SystemTime,
    /// The peer stays out until this time of the database.
    pub until: SystemTime,
}

/// What outlives a restart of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Withdrawals {
    /// Of the database, when it was last asked.
    pub epoch: Option<String>,
    pub peers: BTreeMap<PublicKey, Withdrawal>,
    pub lost: BTreeMap<PublicKey, Lost>,
    /// The peers whose removal waits for an operator, and since when. An earlier version kept none.
    #[serde(default)]
    pub held: BTreeMap<PublicKey, SystemTime>,
    /// Those of these peers whose rows are gone, as they were named. An earlier version kept none.
    #[serde(default)]
    pub departed: BTreeMap<PublicKey, Departed>,
    /// An earlier version kept nothing of them.
    #[serde(default)]
    pub without_row: KeptWithoutRow,
}

impl Withdrawals {
    /// The peers whose removal waits. No rows have judged them yet.
    #[must_use]
    pub fn recalled(&self) -> Held {
        let since = self.held.iter().map(|(key, since)| (*key, *since));
        Held::recalled(since, &self.without_row.barred)
    }
}

/// What the database said of peers whose removal waits, beside what the last good rows say of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptWithoutRow {
    /// Those from which policies took something while no row named them.
    pub narrowed: BTreeSet<PublicKey>,
    /// Those that wait although they or their users are deleted, or the users not active, because many were so at once.
    pub barred: BTreeSet<PublicKey>,
}
