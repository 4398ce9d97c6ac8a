//! Everything one gateway needs, as of one instant.

use futures_util::TryStreamExt;
use tokio_postgres::Row;

use super::decode::{self, PEER_COLUMNS, POLICY_COLUMNS};
use super::token::Caller;
use super::{Cursor, Store, StoreError, marks};
use crate::model::limit::{NAME_CHARS, SETTING_BYTES, SETTINGS};
use crate::model::{Mark, MembershipRow, PeerRow, PolicyRow, Settings, SnapshotRows};

const DOING: &str = "read the snapshot";

/// Begins the statements that read one instant. All are sent without waiting for answers in between.
/// A failure closes the connection, and with it the transaction. Behind a pool, the role may have another
/// search path, and another gateway may have set it.
pub(super) const BEGIN: &str = "begin isolation level repeatable read read only; \
    set local search_path = pg_catalog, pg_temp";
pub(super) const COMMIT: &str = "commit";

/// The last question before [`COMMIT`]: tables that were rewritten or replaced since the snapshot was taken.
/// It sees them empty, or without most rows, because a rewritten row looks as if it were new. A table that
/// was read is locked, so none is rewritten after this.
///
/// The row of `pg_class` is the snapshot's, the functions tell what is true now. They need no right on the
/// table or its schema. A partitioned table has no file of its own.
pub(super) const REWRITTEN: &str = "select pg_catalog.string_agg(c.relname, ', ') \
    from pg_catalog.pg_class c \
    where c.relnamespace = 'public'::pg_catalog.regnamespace and c.relkind in ('r', 'p') \
        and c.relname in ('users', 'devices', 'wireguard_peers', 'gateways', 'ip_allocations', \
            'policies', 'policy_targets', 'policy_destinations', 'groups', 'group_memberships', \
            'settings') \
        and (c.relfilenode <> coalesce(pg_catalog.pg_relation_filenode(c.oid), 0) \
            or c.oid::pg_catalog.regclass::pg_catalog.text not in (c.relname, 'public.' || c.relname))";

/// Fails if a table was rewritten.
pub(super) fn is_whole(row: &Row, doing: &'static str) -> Result<(), StoreError> {
    none_rewritten(decode::Columns::of(row, doing).get(0)?)
}

/// Fails if there is an answer to [`REWRITTEN`].
pub(super) fn none_rewritten(tables: Option<String>) -> Result<(), StoreError> {
    tables.map_or(Ok(()), |tables| Err(StoreError::Rewritten { tables }))
}

impl Store {
    /// Reads all rows of this gateway in one REPEATABLE READ transaction, sorted by id.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn snapshot(&self) -> Result<(SnapshotRows, Cursor), StoreError> {
        let (rows, cursor, _) = self.read_in_turns(|| self.read_snapshot(Marks::None)).await?;
        Ok((rows, cursor))
    }

    /// Like [`snapshot`](Self::snapshot), with the marks of the same instant that may withdraw peers: those since
    /// a cursor, or the latest ones without a cursor or if it is of another epoch.
    ///
    /// # Errors
    /// The errors of [`snapshot`](Self::snapshot).
    pub async fn snapshot_with_marks(
        &self,
        since: Option<&Cursor>,
    ) -> Result<(SnapshotRows, Cursor, Vec<Mark>), StoreError> {
        self.read_in_turns(|| self.read_snapshot(Marks::Since(since))).await
    }

    async fn read_snapshot(
        &self,
        marks: Marks<'_>,
    ) -> Result<(SnapshotRows, Cursor, Vec<Mark>), StoreError> {
        let lease = self.lease(DOING).await?;
        let reads = read_all(lease.caller(), BEGIN, marks, COMMIT);
        let (rows, cursor, marks) = self.within(DOING, reads).await??;
        self.known_policies().extend(rows.policies.iter().map(|policy| policy.id.0));
        lease.done();
        self.follow_epoch(&cursor.epoch);
        Ok((rows, cursor, marks))
    }
}

/// Whether a snapshot brings marks with it.
#[derive(Clone, Copy)]
enum Marks<'a> {
    None,
    Since(Option<&'a Cursor>),
}

/// Reads the rows of the gateway that the session is bound to, between these two statements. The outer
/// error is the connection's, the inner one a row's.
pub(super) async fn read(
    client: Caller<'_>,
    before: &str,
    after: &str,
) -> Result<Result<(SnapshotRows, Cursor), StoreError>, tokio_postgres::Error> {
    let read = read_all(client, before, Marks::None, after).await?;
    Ok(read.map(|(rows, cursor, _)| (rows, cursor)))
}

async fn read_all(
    client: Caller<'_>,
    before: &str,
    marks: Marks<'_>,
    after: &str,
) -> Result<Result<(SnapshotRows, Cursor, Vec<Mark>), StoreError>, tokio_postgres::Error> {
    let peers = format!("select {PEER_COLUMNS} from gatepost.snapshot_peers()");
    let policies = format!("select {POLICY_COLUMNS} from gatepost.snapshot_policies()");
    let memberships = "select user_id, group_ids from gatepost.snapshot_memberships()";
    let settings = settings_query();
    let marks = async {
        match marks {
            Marks::None => Ok(Vec::new()),
            Marks::Since(since) => marks::ask(client, since).await,
        }
    };
    let ((), gateway, settings, peers, memberships, policies, marks, rewritten, ()) = tokio::try_join!(
        biased;
        client.batch_execute(before),
        client.query_typed_one(decode::GATEWAY, &[]),
        client.query_typed(&settings, &[]),
        collect(client, &peers, decode::peer_if_readable),
        collect(client, memberships, |row, doing| decode::membership(row, doing).map(Some)),
        collect(client, &policies, |row, doing| decode::policy(row, doing).map(Some)),
        marks,
        client.query_typed_one(REWRITTEN, &[]),
        client.batch_execute(after),
    )?;
    if let Err(error) = is_whole(&rewritten, DOING) {
        return Ok(Err(error));
    }
    let answers = Answers { gateway, settings, peers, memberships, policies };
    let decoded = marks.iter().map(marks::decode).collect::<Result<_, _>>();
    Ok(answers.rows().and_then(|(rows, cursor)| Ok((rows, cursor, decoded?))))
}

/// Those whose key means something come first, and no value is longer than one that cannot be read.
pub(super) fn settings_query() -> String {
    let keys: Vec<String> = Settings::keys().map(|key| format!("'{key}'")).collect();
    format!(
        "select category, pg_catalog.left(key, {most_chars}), \
             pg_catalog.left(value::pg_catalog.text, {most_bytes}) \
         from gatepost.snapshot_settings() \
         order by key not in ({}), category, key limit {SETTINGS}",
        keys.join(", "),
        most_chars = NAME_CHARS + 1,
        most_bytes = SETTING_BYTES + 1,
    )
}

struct Answers {
    gateway: Row,
    settings: Vec<Row>,
    peers: Result<Vec<PeerRow>, StoreError>,
    memberships: Result<Vec<MembershipRow>, StoreError>,
    policies: Result<Vec<PolicyRow>, StoreError>,
}

impl Answers {
    fn rows(self) -> Result<(SnapshotRows, Cursor), StoreError> {
        let (snapshot, epoch, taken_at, gateway) = decode::gateway(&self.gateway, DOING)?;
        let (mut peers, mut memberships, mut policies) =
            (self.peers?, self.memberships?, self.policies?);
        // In place, because the allocator would keep the 80 MiB that a sort by cached keys allocates.
        peers.sort_unstable_by_key(|peer| peer.id);
        memberships.sort_unstable_by_key(|membership| membership.user_id);
        policies.sort_unstable_by_key(|policy| policy.id);
        let settings = self
            .settings
            .iter()
            .map(|row| decode::setting(row, DOING))
            .collect::<Result<_, _>>()?;
        let rows = SnapshotRows { gateway, settings, peers, memberships, policies, taken_at };
        Ok((rows, Cursor { snapshot, epoch }))
    }
}

/// Decodes rows as they arrive. `None`: this row is left out. The outer error is the connection's, the inner one a row's.
async fn collect<T>(
    client: Caller<'_>,
    query: &str,
    decode: fn(&Row, &'static str) -> Result<Option<T>, StoreError>,
) -> Result<Result<Vec<T>, StoreError>, tokio_postgres::Error> {
    let rows = client.stream(query).await?;
    let mut rows = std::pin::pin!(rows);
    let mut values = Vec::new();
    while let Some(row) = rows.try_next().await? {
        match decode(&row, DOING) {
            Ok(value) => values.extend(value),
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(values))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The tables of which `gatepost.misfits()` lists the columns are all that agents read.
    #[test]
    fn every_table_that_is_read_is_watched_for_being_rewritten() {
        let migration = include_str!("../../migrations/V9__guest.sql");
        let (_, columns) = migration.split_once("with wanted (relation, name, type) as").unwrap();
        let (columns, _) = columns.split_once("compared as").unwrap();
        let first_word = |row: &'static str| row.trim().strip_prefix("('")?.split('\'').next();
        let read: BTreeSet<_> = columns.lines().filter_map(first_word).collect();
        let (_, watched) = REWRITTEN.split_once("c.relname in (").unwrap();
        let (watched, _) = watched.split_once(')').unwrap();
        let watched: BTreeSet<_> =
            watched.split(',').map(|it| it.trim().trim_matches('\'')).collect();
        assert_eq!((read.len(), &read), (11, &watched));
    }
}
