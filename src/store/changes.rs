//! Reads what changed since a cursor, at a cost proportional to the changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::decode::{self, Columns, PEER_COLUMNS, POLICY_COLUMNS};
use super::marks;
use super::snapshot::{BEGIN, COMMIT, REWRITTEN, is_whole, none_rewritten};
use super::token::Caller;
use super::{Cursor, Store, StoreError};
use crate::model::{ChangedRows, DeviceId, Mark, PolicyId, UserId};

/// The result of [`Store::changes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// Nothing changed for this gateway; the next cursor, and the database's time of the read.
    Nothing(Cursor, SystemTime),
    /// The current rows of everything that changed, and the next cursor.
    Changed(ChangedRows, Cursor),
    /// [`Store::snapshot`] is needed, and why.
    Everything(String),
}

const DOING: &str = "read the changes";
/// The first version of the schema whose question for changes answers [`REWRITTEN`], too.
const TELLS_REWRITTEN_SINCE: i32 = 27;
/// The first version of the schema that answers with the marks what changed.
const ANSWERS_MARKS_SINCE: i32 = 29;
/// Asked last, and only where no rows are read after it.
const REWRITTEN_IF_LAST: &str = "case when everything is not null \
    or (devices, users, policies) = ('{}', '{}', '{}') then gatepost.rewritten() end";
/// More peers of changed devices cost less in a read of everything.
const MOST_PEERS: usize = 100_000;

impl Store {
    /// Reads the changes for this gateway by transactions that `since` did not see. The rows and the
    /// next cursor come from one REPEATABLE READ transaction.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn changes(&self, since: &Cursor) -> Result<Read, StoreError> {
        self.read_in_turns(|| self.read_changes(since)).await
    }

    /// The policies that reads have shown.
    pub(super) fn known_policies(&self) -> MutexGuard<'_, BTreeSet<Uuid>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_changes(&self, since: &Cursor) -> Result<Read, StoreError> {
        let lease = self.lease(DOING).await?;
        let known = Vec::from_iter(self.known_policies().iter().copied());
        let all: [(&(dyn ToSql + Sync), Type); 3] =
            [(&since.snapshot, Type::TEXT), (&since.epoch, Type::TEXT), (&known, Type::UUID_ARRAY)];
        let answers_marks = self.has_schema(ANSWERS_MARKS_SINCE);
        let (function, parameters) = if answers_marks {
            ("gatepost.read_changes($1, $2, $3)", &all[..])
        } else if self.has_schema(11) {
            ("gatepost.changes_among($1, $2, $3)", &all[..])
        } else {
            ("gatepost.changes($1, $2)", &all[..2])
        };
        let marks = if answers_marks { ", mark_xids, mark_kinds, mark_ids" } else { "" };
        let tells_rewritten = self.has_schema(TELLS_REWRITTEN_SINCE);
        let rewritten = if tells_rewritten { REWRITTEN_IF_LAST } else { "null" };
        let query = format!(
            "select cursor, epoch, taken_at, everything, devices, users, policies, \
             {rewritten}{marks} from {function}"
        );
        let ((), row) = self
            .within(DOING, async {
                tokio::try_join!(
                    biased;
                    lease.batch_execute(BEGIN),
                    lease.query_typed_one(&query, parameters),
                )
            })
            .await?;
        let columns = Columns::of(&row, DOING);
        let everything: Option<String> = columns.get(3)?;
        let marked =
            Marked { devices: columns.get(4)?, users: columns.get(5)?, policies: columns.get(6)? };
        let rows = if everything.is_some() || marked.is_empty() {
            // Marks are addressed by the peers' rows: where those seem missing, a mark seems to be another's.
            if tells_rewritten {
                self.within(DOING, lease.batch_execute(COMMIT)).await?;
                none_rewritten(columns.get(7)?)?;
            } else {
                let rewritten = self.within(DOING, end(lease.caller())).await?;
                is_whole(&rewritten, DOING)?;
            }
            None
        } else {
            // Only a device can be withdrawn.
            let asks_marks = !answers_marks && !marked.devices.is_empty();
            let unmarked = asks_marks.then_some(since);
            let rows = self.within(DOING, marked.rows(lease.caller(), unmarked)).await?;
            is_whole(&rows.rewritten, DOING)?;
            Some(rows)
        };
        lease.done();

        if let Some(why) = everything {
            return Ok(Read::Everything(why));
        }
        if rows.as_ref().is_some_and(|rows| rows.peers.len() > MOST_PEERS) {
            return Ok(Read::Everything(format!(
                "changed devices have more than {MOST_PEERS} peers"
            )));
        }
        let next = Cursor { snapshot: columns.get(0)?, epoch: columns.get(1)? };
        // After an orderly restart of the server it is that of the new start.
        self.follow_epoch(&next.epoch);
        let taken_at = columns.get(2)?;
        match rows {
            Some(rows) => {
                let marks = match answers_marks {
                    true => marks::of_columns(columns.get(8)?, columns.get(9)?, columns.get(10)?),
                    false => rows.marks.iter().map(marks::decode).collect::<Result<_, _>>()?,
                };
                let changed = marked.with(&rows, marks, taken_at)?;
                let shown = changed.policies.values().flatten();
                self.known_policies().extend(shown.map(|policy| policy.id.0));
                Ok(Read::Changed(changed, next))
            }
            None => Ok(Read::Nothing(next, taken_at)),
        }
    }
}

/// Keys of the rows to read again.
struct Marked {
    devices: Vec<Uuid>,
    users: Vec<Uuid>,
    policies: Vec<Uuid>,
}

struct Rows {
    peers: Vec<tokio_postgres::Row>,
    memberships: Vec<tokio_postgres::Row>,
    policies: Vec<tokio_postgres::Row>,
    marks: Vec<tokio_postgres::Row>,
    rewritten: tokio_postgres::Row,
}

impl Marked {
    fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.users.is_empty() && self.policies.is_empty()
    }

    /// Reads their current rows, and the marks since this cursor if one is given, and ends the transaction.
    async fn rows(
        &self,
        client: Caller<'_>,
        marks_since: Option<&Cursor>,
    ) -> Result<Rows, tokio_postgres::Error> {
        let peers = format!(
            "select {PEER_COLUMNS} from gatepost.peers_by_device($1) limit {}",
            MOST_PEERS + 1
        );
        let policies = format!("select {POLICY_COLUMNS} from gatepost.policies_by_id($1)");
        let memberships = "select user_id, group_ids from gatepost.memberships_by_user($1)";
        let (peers, memberships, policies, marks, rewritten) = tokio::try_join!(
            biased;
            read(client, &peers, &self.devices),
            read(client, memberships, &self.users),
            read(client, &policies, &self.policies),
            async {
                match marks_since {
                    Some(since) => marks::ask(client, Some(since)).await,
                    None => Ok(Vec::new()),
                }
            },
            end(client),
        )?;
        Ok(Rows { peers, memberships, policies, marks, rewritten })
    }

    /// Every marked key with its current rows, possibly none.
    fn with(
        self,
        rows: &Rows,
        marks: Vec<Mark>,
        taken_at: SystemTime,
    ) -> Result<ChangedRows, StoreError> {
        let mut peers: BTreeMap<DeviceId, Vec<_>> =
            self.devices.into_iter().map(|id| (id.into(), Vec::new())).collect();
        for row in &rows.peers {
            if let Some(peer) = decode::peer_if_readable(row, DOING)? {
                peers.entry(peer.device_id).or_default().push(peer);
            }
        }
        for peers in peers.values_mut() {
            peers.sort_unstable_by_key(|peer| peer.id);
        }
        let mut memberships: BTreeMap<UserId, BTreeSet<_>> =
            self.users.into_iter().map(|id| (id.into(), BTreeSet::new())).collect();
        for row in &rows.memberships {
            let membership = decode::membership(row, DOING)?;
            memberships.insert(membership.user_id, membership.group_ids);
        }
        let mut policies: BTreeMap<PolicyId, Option<_>> =
            self.policies.into_iter().map(|id| (id.into(), None)).collect();
        for row in &rows.policies {
            let policy = decode::policy(row, DOING)?;
            policies.insert(policy.id, Some(policy));
        }
        Ok(ChangedRows { peers, memberships, policies, marks, taken_at })
    }
}

/// Ends a read: asks which tables were rewritten meanwhile, and commits. Both are sent together.
async fn end(client: Caller<'_>) -> Result<tokio_postgres::Row, tokio_postgres::Error> {
    let (rewritten, ()) = tokio::try_join!(
        biased;
        client.query_typed_one(REWRITTEN, &[]),
        client.batch_execute(COMMIT),
    )?;
    Ok(rewritten)
}

/// Sends no query without ids.
async fn read(
    client: Caller<'_>,
    query: &str,
    ids: &Vec<Uuid>,
) -> Result<Vec<tokio_postgres::Row>, tokio_postgres::Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    client.query_typed(query, &[(ids, Type::UUID_ARRAY)]).await
}
