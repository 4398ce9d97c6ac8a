//! Failures between an agent and its database. Each message names the remedy.

mod words;

use std::time::Duration;

use tokio_postgres::error::SqlState;

pub use super::place::Place;
use super::require_auth::RefusedMethod;
use words::{
    Obstacle, POOL, POOL_LIMITS, ROOM, limit_of, listed, login_remedy, obstacle, remedy, root, way,
};
pub(super) use words::{is_about_secrets, server_error, tells};

/// Why an agent cannot use its database, in three words. They stand in `gatepost status --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unavailable {
    /// No server answers.
    Unreachable,
    /// One answers, and one side does not accept the other: login, certificate, binding, rights.
    Refuses,
    /// It accepts the agent, and cannot serve it yet: starting, a standby, another schema.
    NotReady,
}

/// Which limit ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// For a connection: 5 s for each host, and 5 s.
    Connect,
    /// For an answer: `sync.statement_timeout` and 5 s for the network.
    Answer,
    /// For one of the agent's own connections, all of which wait for answers.
    Pool,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connect => "no connection",
            Self::Answer => "no answer (sync.statement_timeout and 5 s for the network)",
            Self::Pool => "no free connection, as all wait for answers,",
        })
    }
}

/// Why a call to the database failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: {fix}")]
    Config { what: String, fix: &'static str },
    #[error("{place} is unreachable: {}", way(.source))]
    Unreachable { place: Box<Place>, source: tokio_postgres::Error },
    #[error("{place} closed the listening connection")]
    Closed { place: Box<Place> },
    #[error("{place} is unreachable: {limit} within {} s while trying to {doing}", .waited.as_secs())]
    Stalled { place: Box<Place>, doing: &'static str, waited: Duration, limit: Limit },
    #[error("{place}: {why}")]
    Tls { place: Box<Place>, why: String },
    #[error("{place}: {refused}")]
    Method { place: Box<Place>, refused: RefusedMethod },
    #[error("{place}: login refused: {}: {}", root(.source), login_remedy(.source))]
    Refused { place: Box<Place>, source: tokio_postgres::Error },
    /// The server, the database or the role has as many sessions as it may have.
    #[error("{place} has no room for another session: {}: {ROOM}", root(.source))]
    NoRoom { place: Box<Place>, source: tokio_postgres::Error },
    /// The pooler has no session of the server, or no connection of its own, for this agent.
    #[error("{place}: the pool is full: {}: {POOL}", root(.source))]
    PoolFull { place: Box<Place>, source: tokio_postgres::Error },
    /// The server is starting or stopping.
    #[error("{place} is not ready: {}", root(.source))]
    NotReady { place: Box<Place>, source: tokio_postgres::Error },
    #[error(
        "{place} is a standby: add the primary to the URL, and target_session_attrs=read-write"
    )]
    Standby { place: Box<Place> },
    #[error("database {} at {} has no gatepost schema: run `gatepost migrate`", .place.database, .place.hosts)]
    Unmigrated { place: Box<Place> },
    #[error("database {} at {} has schema version {found}, this agent needs {needed}: run this version's `gatepost migrate`", .place.database, .place.hosts)]
    OldSchema { place: Box<Place>, found: i32, needed: i32 },
    #[error("role {} is bound to no gateway: run `gatepost grant <gateway> {}` as an owner of the database", .place.role, .place.role)]
    Unbound { place: Box<Place> },
    #[error("role {} lacks rights ({}): run `gatepost grant <gateway> {}` as an owner of the database", .place.role, root(.source), .place.role)]
    NoRights { place: Box<Place>, source: tokio_postgres::Error },
    #[error("role {} may not do this: name an owner of the database with --database-url", .place.role)]
    NotOwner { place: Box<Place> },
    /// The token is bound to no gateway, or it was revoked.
    #[error("{message}: {hint}")]
    TokenRefused { message: String, hint: String },
    #[error("role {} may not ring: run `gatepost grant --bell {}` as an owner of the database", .place.role, .place.role)]
    NoBell { place: Box<Place> },
    /// Tables or columns of the control plane, or rights on them, that reads need.
    #[error("{place}: tables differ from what gatepost reads: {}: {}", listed(.misfits), remedy(.misfits))]
    Misfit { place: Box<Place>, misfits: Vec<String>, source: tokio_postgres::Error },
    #[error("{place}: a part of gatepost's schema is missing: {}: run `gatepost migrate`", root(.source))]
    Incomplete { place: Box<Place>, source: tokio_postgres::Error },
    #[error("{place}: row-level security would hide rows ({}): run `alter role gatepost_owner bypassrls` as a superuser", root(.source))]
    RowSecurity { place: Box<Place>, source: tokio_postgres::Error },
    #[error("{message}: {hint}")]
    GatewayUnknown { message: String, hint: String },
    /// The gateway has another key, or its row may not be changed again.
    #[error("{message}: {hint}")]
    EnrollmentRefused { message: String, hint: String },
    #[error("role {role} does not exist: create it, or add --create")]
    RoleUnknown { role: String },
    /// `rehearse`: the server refused one, or it took too long.
    #[error("{}{why}; nothing was changed", line.map_or(String::new(), |line| format!("line {line}: ")))]
    Statement { line: Option<usize>, why: String },
    #[error("the peer's key, or its preshared key, has changed meanwhile: run the command again")]
    PeerChanged,
    /// Tables of the control plane differ from the expected schema, one line each.
    #[error("tables of this database differ from what gatepost reads; nothing was changed:\n  {}", .0.join("\n  "))]
    Differs(Vec<String>),
    #[error("migration {name} failed: {message}")]
    Migration { name: String, message: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// A read that saw a rewritten table empty: it is made again.
    #[error("the control plane rewrote {tables} while they were read")]
    Rewritten { tables: String },
    #[error("{place}: could not {doing}: {}{}", root(.source), limit_of(.source))]
    Query { place: Box<Place>, doing: &'static str, source: tokio_postgres::Error },
    #[error("could not {doing}: column {column} cannot be read: {}", root(.source))]
    Decode { doing: &'static str, column: usize, source: tokio_postgres::Error },
}

impl StoreError {
    /// Whether trying again may help: the same call may succeed later without an operator's action.
    /// `false`: an operator must act first, as the message says.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Closed { .. }
            | Self::Stalled { .. }
            | Self::NoRoom { .. }
            | Self::PoolFull { .. }
            | Self::NotReady { .. }
            | Self::Standby { .. }
            | Self::Rewritten { .. } => true,
            Self::Query { source, .. } => source.code().is_none_or(|code| {
                matches!(
                    *code,
                    SqlState::T_R_SERIALIZATION_FAILURE
                        | SqlState::T_R_DEADLOCK_DETECTED
                        | SqlState::LOCK_NOT_AVAILABLE
                        | SqlState::QUERY_CANCELED
                )
            }),
            _ => false,
        }
    }

    /// The database's state, as the agent sees it after this error.
    #[must_use]
    pub const fn unavailable(&self) -> Unavailable {
        match self {
            Self::Unreachable { .. } | Self::Closed { .. } | Self::Stalled { .. } => {
                Unavailable::Unreachable
            }
            Self::Tls { .. }
            | Self::Method { .. }
            | Self::Refused { .. }
            | Self::Unbound { .. }
            | Self::NoRights { .. }
            | Self::NoBell { .. }
            | Self::TokenRefused { .. }
            | Self::NotOwner { .. }
            | Self::RoleUnknown { .. } => Unavailable::Refuses,
            Self::Config { .. }
            | Self::NoRoom { .. }
            | Self::PoolFull { .. }
            | Self::NotReady { .. }
            | Self::Standby { .. }
            | Self::Unmigrated { .. }
            | Self::OldSchema { .. }
            | Self::Misfit { .. }
            | Self::Incomplete { .. }
            | Self::RowSecurity { .. }
            | Self::GatewayUnknown { .. }
            | Self::EnrollmentRefused { .. }
            | Self::Statement { .. }
            | Self::PeerChanged
            | Self::Differs(_)
            | Self::Migration { .. }
            | Self::Rewritten { .. }
            | Self::Query { .. }
            | Self::Decode { .. } => Unavailable::NotReady,
        }
    }

    /// Whether no statement would fare better: the server, the login or the whole schema is the cause.
    #[must_use]
    pub const fn concerns_every_statement(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Closed { .. }
                | Self::NoRoom { .. }
                | Self::PoolFull { .. }
                | Self::NotReady { .. }
                | Self::Standby { .. }
                | Self::Tls { .. }
                | Self::Method { .. }
                | Self::Refused { .. }
                | Self::Unbound { .. }
                | Self::TokenRefused { .. }
                | Self::GatewayUnknown { .. }
                | Self::Unmigrated { .. }
                | Self::OldSchema { .. }
        )
    }

    /// Whether the server ended the statement because it took longer than it may.
    #[must_use]
    pub fn took_too_long(&self) -> bool {
        match self {
            Self::Query { source, .. } => source.code() == Some(&SqlState::QUERY_CANCELED),
            _ => false,
        }
    }

    /// Whether the agent refused the server, not the server the agent.
    #[must_use]
    pub const fn is_distrust(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Method { .. })
    }

    /// Whether one session fewer in use may help.
    #[must_use]
    pub const fn is_want_of_room(&self) -> bool {
        matches!(self, Self::NoRoom { .. })
    }

    /// Whether a migration came in between: it held a lock for longer than this session waits, or rewrote a
    /// table.
    pub(super) fn is_of_a_migration(&self) -> bool {
        match self {
            Self::Rewritten { .. } => true,
            Self::Query { source, .. } => source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE),
            _ => false,
        }
    }

    /// Whether a type, a constraint or a trigger refused the statement's values: the same call with
    /// other values may succeed at once.
    pub(super) fn is_of_the_values(&self) -> bool {
        /// Data exception, integrity constraint violation, `raise` in PL/pgSQL, Gatepost's own.
        const CLASSES: [&str; 4] = ["22", "23", "P0", "GP"];
        match self {
            Self::Query { source, .. } => source
                .code()
                .is_some_and(|code| CLASSES.iter().any(|class| code.code().starts_with(class))),
            _ => false,
        }
    }

    /// Whether reads must fail until tables, columns, rights or functions are restored.
    #[must_use]
    pub fn is_misfit(&self) -> bool {
        matches!(self, Self::Misfit { .. } | Self::Incomplete { .. })
    }

    /// Whether the tables may be the cause: a name, a type or a right did not resolve. Then
    /// `gatepost.misfits()` can say more.
    pub(super) fn may_be_a_misfit(&self) -> bool {
        match self {
            Self::Query { source, .. }
            | Self::NoRights { source, .. }
            | Self::Incomplete { source, .. } => source.code().is_some_and(|code| {
                code.code().starts_with("42")
                    || [SqlState::INVALID_TEXT_REPRESENTATION, SqlState::FEATURE_NOT_SUPPORTED]
                        .contains(code)
            }),
            _ => false,
        }
    }

    /// Adds what `gatepost.misfits()` found, if it found anything.
    pub(super) fn with_misfits(self, misfits: Vec<String>) -> Self {
        match self {
            Self::Query { place, source, .. }
            | Self::NoRights { place, source }
            | Self::Incomplete { place, source }
                if !misfits.is_empty() =>
            {
                Self::Misfit { place, misfits, source }
            }
            error => error,
        }
    }

    /// Classifies an error of the driver by what an operator can do about it.
    pub(super) fn of(place: &Place, doing: &'static str, source: tokio_postgres::Error) -> Self {
        let place = Box::new(place.clone());
        let Some(error) = source.as_db_error() else {
            return Self::of_the_way(place, source);
        };
        let hint = error.hint().unwrap_or_default().to_owned();
        let message = error.message().to_owned();
        match error.code().code() {
            "28P01" | "28000" => Self::Refused { place, source },
            // The server is starting, stopping or crashed. The statement is not at fault.
            "57P01" | "57P02" | "57P03" | "57P05" => Self::NotReady { place, source },
            "53300" => Self::NoRoom { place, source },
            // PgBouncer, which names the setting.
            "08P01" if POOL_LIMITS.iter().any(|limit| message.contains(limit)) => {
                Self::PoolFull { place, source }
            }
            "25006" => Self::Standby { place },
            "3F000" => Self::Unmigrated { place },
            // Also reported for an operator that a column's new type lacks.
            "42883" => Self::Incomplete { place, source },
            "42501" if message.contains("row-level security") => {
                Self::RowSecurity { place, source }
            }
            "42501" => Self::NoRights { place, source },
            "GP001" => Self::Unbound { place },
            "GP002" | "GP006" => Self::GatewayUnknown { message, hint },
            "GP010" => Self::TokenRefused { message, hint },
            "GP008" => Self::EnrollmentRefused { message, hint },
            _ => Self::Query { place, doing, source },
        }
    }

    /// Classifies an error that the driver met on its way to an answer.
    fn of_the_way(place: Box<Place>, source: tokio_postgres::Error) -> Self {
        match obstacle(&source) {
            Obstacle::Method(refused) => Self::Method { place, refused },
            Obstacle::Tls(why) => Self::Tls { place, why },
            Obstacle::Login => Self::Refused { place, source },
            Obstacle::ReadOnly => Self::Standby { place },
            Obstacle::NoAnswer => Self::Unreachable { place, source },
        }
    }
}
