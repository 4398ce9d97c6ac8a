//! The bell's requests to the database. Its role may call these functions and no other.

use std::time::SystemTime;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::decode::Columns;
use super::merge::{Merged, merged};
use super::{Store, StoreError};
use crate::model::GatewayId;

/// So many reports of each kind a bell merges at once, unless that takes too long.
pub const MERGED_AT_MOST: u32 = 1_000;

/// Which bell rings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// This one.
    Here {
        /// It did not ring before.
        took_over: bool,
    },
    /// Another one, of this name, by the database's clock since.
    Elsewhere { holder: String, since: Option<SystemTime> },
}

/// The gateways that the changes since the last call concern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ring {
    /// Another bell rings.
    NotHeld,
    Everyone,
    /// Possibly none.
    Gateways(Vec<GatewayId>),
}

/// Reports that a bell merges for all gateways together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// `gateways.last_sync_at`
    Proofs,
    /// `audit_logs`
    AuditEntries,
}

/// The bell that rings or rang last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownBell {
    pub holder: String,
    pub since: Option<SystemTime>,
    pub heard_at: Option<SystemTime>,
    /// It was heard of in the last three seconds.
    pub is_alive: bool,
    /// How many gateways' agents were there in the last five minutes.
    pub gateways: i64,
}

impl Store {
    /// Makes the bell of this name the one that rings, or keeps it so, unless another one was heard of in
    /// the last three seconds. To be called each second.
    ///
    /// # Errors
    /// [`StoreError::NoBell`]: the role may not. Any other [`StoreError`] of the connection.
    pub async fn hold_bell(&self, name: &str) -> Result<Held, StoreError> {
        const DOING: &str = "hold the bell";
        let query = "select is_held, holder, since, took_over from gatepost.hold_bell($1)";
        let row = self.ask_as_bell(DOING, query, &[(&name, Type::TEXT)]).await?;
        let columns = Columns::of(&row, DOING);
        if columns.get(0)? {
            return Ok(Held::Here { took_over: columns.get(3)? });
        }
        let holder = columns.get::<Option<String>>(1)?.unwrap_or_default();
        Ok(Held::Elsewhere { holder, since: columns.get(2)? })
    }

    /// Lets another bell take over at once.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn leave_bell(&self, name: &str) -> Result<(), StoreError> {
        let query = "select gatepost.leave_bell($1)";
        self.as_bell("leave the bell", query, &[(&name, Type::TEXT)]).await.map(drop)
    }

    /// The gateways to ring for the changes that were committed since the last call. After an error the answer
    /// may be lost: then ring all gateways.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn ring(&self, name: &str) -> Result<Ring, StoreError> {
        const DOING: &str = "look for changes";
        let query = "select is_held, everyone, gateways from gatepost.ring($1)";
        let row = self.ask_as_bell(DOING, query, &[(&name, Type::TEXT)]).await?;
        let columns = Columns::of(&row, DOING);
        Ok(match (columns.get(0)?, columns.get(1)?) {
            (false, _) => Ring::NotHeld,
            (true, true) => Ring::Everyone,
            (true, false) => {
                Ring::Gateways(columns.get::<Vec<Uuid>>(2)?.into_iter().map(GatewayId).collect())
            }
        })
    }

    /// The bell that rings or rang last.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn known_bell(&self) -> Result<Option<KnownBell>, StoreError> {
        const DOING: &str = "ask which bell rings";
        // A time of infinity is none that the driver knows.
        let query = "select holder, since, nullif(heard_at, '-infinity'), is_alive, gateways \
                     from gatepost.bells()";
        let rows = self.as_bell(DOING, query, &[]).await?;
        let known = |row| {
            let columns = Columns::of(row, DOING);
            Ok(KnownBell {
                holder: columns.get(0)?,
                since: columns.get(1)?,
                heard_at: columns.get(2)?,
                is_alive: columns.get(3)?,
                gateways: columns.get(4)?,
            })
        };
        rows.first().map(known).transpose()
    }

    /// Gateways whose reports wait to be merged.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn unmerged(&self) -> Result<Vec<GatewayId>, StoreError> {
        const DOING: &str = "ask whose reports wait";
        let rows = self.as_bell(DOING, "select gatepost.unmerged()", &[]).await?;
        let id = |row| Columns::of(row, DOING).get::<Uuid>(0).map(GatewayId);
        rows.iter().map(id).collect()
    }

    /// Whether the schema has what a bell does for all gateways together. The version before has not.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn merges_together(&self) -> Result<bool, StoreError> {
        const DOING: &str = "ask what a bell may do";
        let query =
            "select pg_catalog.to_regprocedure('gatepost.merge_proofs(integer)') is not null";
        Columns::of(&self.ask_as_bell(DOING, query, &[]).await?, DOING).get(0)
    }

    /// Merges at most so many reports of one kind, of all gateways together, and returns of how many.
    /// [`Store::merge_gateway`] merges whatever is refused, or is of another kind.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn merge_together(&self, kind: Together, at_most: u32) -> Result<u32, StoreError> {
        const DOING: &str = "merge reports of all gateways";
        let at_most = i32::try_from(at_most).unwrap_or(i32::MAX);
        let query = match kind {
            Together::Proofs => "select gatepost.merge_proofs($1)",
            Together::AuditEntries => "select gatepost.merge_events($1)",
        };
        let row = self.ask_as_bell(DOING, query, &[(&at_most, Type::INT4)]).await?;
        Ok(u32::try_from(Columns::of(&row, DOING).get::<i32>(0)?).unwrap_or_default())
    }

    /// Notes for all gateways which tables' changes are not announced, unless that was done seconds ago.
    ///
    /// # Errors
    /// The errors of [`Store::hold_bell`].
    pub async fn look_for_unwatched(&self) -> Result<(), StoreError> {
        let query = "select gatepost.look_for_unwatched()";
        self.as_bell("ask which changes are announced", query, &[]).await.map(drop)
    }

    /// Like [`Store::merge`], of any gateway, and at most so many reports of each kind.
    ///
    /// # Errors
    /// As [`Store::hold_bell`].
    pub async fn merge_gateway(
        &self,
        gateway: GatewayId,
        at_most: u32,
    ) -> Result<Merged, StoreError> {
        const ALL: &str = "select why, since, lost from gatepost.merge_gateway($1)";
        // The schema before knows no smaller pages.
        const SOME: &str = "select why, since, lost from gatepost.merge_gateway($1, $2)";
        let at_most = i32::try_from(at_most).unwrap_or(i32::MAX);
        let all: [(&(dyn ToSql + Sync), Type); 2] =
            [(&gateway.0, Type::UUID), (&at_most, Type::INT4)];
        let (query, parameters) = if at_most.unsigned_abs() >= MERGED_AT_MOST {
            (ALL, &all[..1])
        } else {
            (SOME, &all[..])
        };
        merged(&self.as_bell("merge reports", query, parameters).await?)
    }

    async fn ask_as_bell(
        &self,
        doing: &'static str,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, StoreError> {
        let mut rows = self.as_bell(doing, query, parameters).await?;
        // Each of these functions returns one row.
        rows.pop().ok_or_else(|| StoreError::Closed { place: Box::new(self.place.clone()) })
    }

    async fn as_bell(
        &self,
        doing: &'static str,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, StoreError> {
        let asked = async {
            let lease = self.lease(doing).await?;
            let rows = self.within(doing, lease.query_typed(query, parameters)).await?;
            lease.done();
            Ok(rows)
        };
        asked.await.map_err(|error| match error {
            StoreError::NoRights { place, .. } => StoreError::NoBell { place },
            error => error,
        })
    }
}
