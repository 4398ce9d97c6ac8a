//! What can go wrong between an agent and its database. Each message names the remedy.

use std::time::Duration;

use tokio_postgres::error::{DbError, SqlState};

/// A database and the role that connects to it. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub hosts: String,
    pub database: String,
    pub role: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "database {} at {} as role {}", self.database, self.hosts, self.role)
    }
}

/// Why a call to the database failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: {fix}")]
    Config { what: String, fix: &'static str },
    #[error("{place} is unreachable: {}", root(.source))]
    Unreachable { place: Box<Place>, source: tokio_postgres::Error },
    #[error("{place} closed the listening connection")]
    Closed { place: Box<Place> },
    #[error("{place}: no answer within {} ms while trying to {doing}", .waited.as_millis())]
    Stalled { place: Box<Place>, doing: &'static str, waited: Duration },
    #[error("{place}: login refused: {}: check the password file and pg_hba.conf", root(.source))]
    Refused { place: Box<Place>, source: tokio_postgres::Error },
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
    /// Tables of the control plane differ from the expected schema, one line each.
    #[error("tables of this database differ from what gatepost reads; nothing was changed:\n  {}", .0.join("\n  "))]
    Differs(Vec<String>),
    #[error("migration {name} failed: {message}")]
    Migration { name: String, message: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{place}: could not {doing}: {}", root(.source))]
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
            | Self::Standby { .. } => true,
            Self::Query { source, .. } => source.code().is_none_or(|code| {
                matches!(
                    *code,
                    SqlState::T_R_SERIALIZATION_FAILURE
                        | SqlState::T_R_DEADLOCK_DETECTED
                        | SqlState::LOCK_NOT_AVAILABLE
                        | SqlState::QUERY_CANCELED
                        | SqlState::TOO_MANY_CONNECTIONS
                )
            }),
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
            return Self::Unreachable { place, source };
        };
        let hint = error.hint().unwrap_or_default().to_owned();
        let message = error.message().to_owned();
        match error.code().code() {
            "28P01" | "28000" => Self::Refused { place, source },
            // The server is starting, stopping, crashed or full. The statement is not at fault.
            "57P01" | "57P02" | "57P03" | "57P05" | "53300" => Self::Unreachable { place, source },
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
            "GP008" => Self::EnrollmentRefused { message, hint },
            _ => Self::Query { place, doing, source },
        }
    }
}

/// The first few: after a restore without rights there are many.
fn listed(misfits: &[String]) -> String {
    const FIRST: usize = 3;
    let first = misfits.iter().take(FIRST).map(String::as_str).collect::<Vec<_>>().join("; ");
    match misfits.len().saturating_sub(FIRST) {
        0 => first,
        more => format!("{first}; and {more} more"),
    }
}

/// What resolves a [`StoreError::Misfit`].
fn remedy(misfits: &[String]) -> &'static str {
    // `gatepost migrate` makes its own tables again.
    let ours = |misfit: &str| misfit.starts_with("table gatepost.");
    let theirs =
        |misfit: &&String| misfit.starts_with("column ") || misfit.ends_with(" is missing");
    if misfits.iter().filter(theirs).any(|misfit| !ours(misfit)) {
        "restore them, then run `gatepost migrate`"
    } else {
        "run `gatepost migrate`"
    }
}

/// The server's error, wherever it is wrapped.
pub(super) fn server_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a DbError> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<DbError>())
}

/// The innermost message. The driver's own says only "db error" or "error connecting to server".
fn root(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        words = format!("{words}: {inner}");
        source = inner.source();
    }
    words
}
