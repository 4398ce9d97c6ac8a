//! Why a part of a migration failed.

use crate::store::error::{Place, StoreError, server_error};

const DOING: &str = "migrate the database";

pub(super) fn of(place: &Place, error: tokio_postgres::Error) -> StoreError {
    StoreError::of(place, DOING, error)
}

pub(super) fn failed(place: &Place, name: &str, error: tokio_postgres::Error) -> StoreError {
    if error.as_db_error().is_none() {
        return of(place, error);
    }
    StoreError::Migration { name: name.into(), message: words(&error), source: Box::new(error) }
}

/// The message, detail and hint of the server's error, wherever it is wrapped.
pub(super) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    match server_error(error) {
        Some(error) => [Some(error.message()), error.detail(), error.hint()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("; "),
        None => error.to_string(),
    }
}
