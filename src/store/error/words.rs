//! Errors of the driver in words, with what to do about them.

use std::io;

use tokio_postgres::error::{DbError, SqlState};

use crate::causes::find;
use crate::store::patience::{CONNECT_WITHIN, SILENT_FOR};
use crate::store::require_auth::RefusedMethod;
use crate::store::tls::words::tls_trouble;

/// The remedy for a [`StoreError::NoRoom`](super::StoreError::NoRoom).
pub(super) const ROOM: &str = "an agent uses up to four sessions, and can poll with one: raise the connection limit \
    of the role (`alter role ROLE connection limit 10`) or of the database, or the server's \
    max_connections";

/// What to do about a [`StoreError::PoolFull`](super::StoreError::PoolFull).
pub(super) const POOL: &str = "raise default_pool_size (and max_client_conn) in PgBouncer, or end the transactions that hold \
    its sessions: `show servers` on its console names them, and idle_transaction_timeout and query_timeout end them";

/// Settings of PgBouncer that end a client's wait, as its errors name them.
pub(super) const POOL_LIMITS: [&str; 2] = ["query_wait_timeout", "max_client_conn"];

// Texts of the driver, which has no types for these.
const PASSWORD_MISSING: &str = "invalid configuration: password missing";
const AUTHENTICATION: &str = "authentication error";
const NO_WRITES: &str = "database does not allow writes";

/// The obstacle that the driver met on its way to an answer of the server.
pub(super) enum Obstacle {
    /// The server asks for a login in a way that is not allowed.
    Method(RefusedMethod),
    Tls(String),
    Login,
    /// The server takes no writes, and `target_session_attrs` asks for one that does.
    ReadOnly,
    NoAnswer,
}

pub(super) fn obstacle(error: &tokio_postgres::Error) -> Obstacle {
    if let Some(refused) = find::<RefusedMethod>(error) {
        return Obstacle::Method(refused.clone());
    }
    if let Some(why) = tls_trouble(error) {
        return Obstacle::Tls(why);
    }
    let text = root(error);
    if text.starts_with(PASSWORD_MISSING) || text.starts_with(AUTHENTICATION) {
        return Obstacle::Login;
    }
    if find::<io::Error>(error).is_some_and(|error| error.to_string() == NO_WRITES) {
        return Obstacle::ReadOnly;
    }
    Obstacle::NoAnswer
}

/// How much the error of one of several hosts says about what to do: a standby is as it should be beside a
/// primary, and a host that does not answer may only be down.
pub(in crate::store) fn tells(error: &tokio_postgres::Error) -> u8 {
    match obstacle(error) {
        _ if error.as_db_error().is_some() => 2,
        Obstacle::ReadOnly => 0,
        Obstacle::NoAnswer => 1,
        Obstacle::Method(_) | Obstacle::Tls(_) | Obstacle::Login => 2,
    }
}

/// Whether a new password or certificate may let the same login succeed.
pub(in crate::store) fn is_about_secrets(error: &tokio_postgres::Error) -> bool {
    let refused = error.code().is_some_and(|code| ["28P01", "28000"].contains(&code.code()));
    refused || root(error).starts_with(PASSWORD_MISSING) || tls_trouble(error).is_some()
}

/// The remedy for a login that the server refused, or that this agent ended.
pub(super) fn login_remedy(error: &tokio_postgres::Error) -> &'static str {
    let text = root(error);
    if text.starts_with(PASSWORD_MISSING) {
        "the server asks for a password: set database.password_file"
    } else if text.starts_with(AUTHENTICATION) {
        "the server does not prove that it knows the role's password, or asks for a login that \
         Gatepost does not speak: check database.url and pg_hba.conf"
    } else if text.contains("certificate") {
        "set database.tls_cert_file and database.tls_key_file to a certificate whose common name is \
         the role"
    } else if text.contains("no encryption") {
        "the server accepts this role only with TLS: remove database.tls = \"disable\""
    } else if text.contains("no pg_hba.conf entry") {
        "add a line for this role, database and host to pg_hba.conf"
    } else {
        "check the password file and pg_hba.conf"
    }
}

/// The first few: after a restore without rights there are many.
pub(super) fn listed(misfits: &[String]) -> String {
    const FIRST: usize = 3;
    let first = misfits.iter().take(FIRST).map(String::as_str).collect::<Vec<_>>().join("; ");
    match misfits.len().saturating_sub(FIRST) {
        0 => first,
        more => format!("{first}; and {more} more"),
    }
}

/// The remedy for a [`StoreError::Misfit`](super::StoreError::Misfit).
pub(super) fn remedy(misfits: &[String]) -> &'static str {
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
pub(in crate::store) fn server_error<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a DbError> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<DbError>())
}

/// Why no answer came. Names the limit that ended the wait.
pub(super) fn way(error: &tokio_postgres::Error) -> String {
    let is_connecting = error.to_string().starts_with("error connecting");
    match find::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::TimedOut) if is_connecting => {
            format!("no answer within {} s", CONNECT_WITHIN.as_secs())
        }
        Some(io::ErrorKind::TimedOut) => {
            format!("it acknowledged nothing for {} s", SILENT_FOR.as_secs())
        }
        // The TLS library says so with a link to its manual.
        Some(io::ErrorKind::UnexpectedEof) => {
            "it closed the connection without sending an error".to_owned()
        }
        _ => root(error),
    }
}

/// The limit by which the server ended a statement, and where it is set.
pub(super) fn limit_of(error: &tokio_postgres::Error) -> &'static str {
    match error.code().map(SqlState::code) {
        Some("57014") => ": the limit is sync.statement_timeout",
        Some("55P03") => ": another transaction holds the lock",
        _ => "",
    }
}

/// The innermost message. The driver's own says only "db error" or "error connecting to server".
pub(super) fn root(error: &tokio_postgres::Error) -> String {
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
