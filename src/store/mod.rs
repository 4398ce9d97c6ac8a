//! Postgres: connect, migrate, read, listen, report. Makes no decisions.
//!
//! An agent reads no table. It calls the functions of schema `gatepost`, which act for the gateway
//! that its login role is bound to (`migrations/`). To miss nothing, call [`Store::listen`], then
//! [`Store::snapshot`], then [`Store::changes`] from each cursor to the next, woken by the listener or
//! by a timer.

mod bell;
mod changes;
mod connect;
mod connector;
mod cursor;
mod decode;
#[cfg(any(test, feature = "fuzzing"))]
mod decoders;
mod dial;
mod enroll;
mod error;
mod grant;
mod hello;
mod host;
mod hosts;
mod ineffective;
mod listen;
mod marks;
mod merge;
mod migrate;
mod misfits;
mod options;
mod patience;
mod place;
mod poll;
mod profile;
#[cfg(test)]
mod qualified;
mod refusal;
mod rehearse;
mod report;
mod require_auth;
mod script;
mod seats;
mod shared;
mod snapshot;
mod tls;
mod token;
mod without_peer;
mod words;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

pub use bell::{Held, KnownBell, MERGED_AT_MOST, Ring, Together};
pub use changes::Read;
pub use cursor::Cursor;
#[cfg(any(test, feature = "fuzzing"))]
pub use decoders::DECODERS;
pub use dial::Source;
pub use enroll::{Enrollment, KeyChange};
pub use error::{Limit, Place, StoreError, Unavailable};
pub use grant::{
    CreateRole, Granted, GrantedToken, allow_enrollment, bound_elsewhere, grant, grant_bell,
    grant_token, revoke_tokens,
};
pub use hello::Hello;
pub use host::{Host, Hosts, KnownHost, Proven};
pub use ineffective::{Ineffective, ineffective_rows};
pub use listen::Listener;
pub use marks::AskedMark;
pub use merge::{Merged, try_reports};
pub use migrate::{
    Migration, SCHEMA_VERSION, Telling, Unmigration, migrate, migrate_telling, pending,
    publications_of_all_tables, unmigrate, unmigration,
};
pub use misfits::misfits;
pub use options::{ConnectOptions, Password};
pub use poll::{Attached, Polled};
pub use profile::{FoundPeer, ProfileDesk, Rekeyed};
pub use refusal::Refusal;
pub use rehearse::{HeldLock, LockMode, REHEARSAL_WITHIN, Rehearsal, Unchanged, rehearse};
pub use report::{AuditEntry, AuditEvent, AuditStatus, Audited, Entity, Handshake, Reported};
pub use require_auth::{Method, RefusedMethod, RequireAuth, RequireAuthError};
pub use script::{ScriptError, Statement, split};
pub use shared::{PublicRights, SharedRole, rights_of_public};
pub use tls::{Tls, TlsFiles};
pub use token::{Token, TokenError};
pub use words::Words;

/// One gateway's database. Cheap to clone: the clones share their connections.
#[derive(Clone)]
pub struct Store {
    dialer: dial::Dialer,
    place: Place,
    pool: deadpool_postgres::Pool,
    seats: seats::Seats,
    connect_within: std::time::Duration,
    answer_within: std::time::Duration,
    host: Host,
    /// The epoch of the last read. Proofs of its rows hold for no other epoch.
    epoch: Arc<Mutex<Option<String>>>,
    /// The policies that reads have shown. None is forgotten: a read whose
    /// answer was lost is made again from an earlier cursor.
    policies: Arc<Mutex<BTreeSet<Uuid>>>,
    /// The version of the schema, as the last [`Store::hello`] told it; 0: unknown.
    schema_version: Arc<AtomicI32>,
}

impl Store {
    /// The database and the role that connects to it.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether many gateways log in as this role, behind a pool of sessions: none can listen.
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.dialer.token().is_some()
    }

    /// The epoch of the last read.
    fn last_epoch(&self) -> Option<String> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes in the epoch of a read.
    fn follow_epoch(&self, epoch: &str) {
        let mut last = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(epoch) {
            *last = Some(epoch.to_owned());
        }
    }

    /// Whether the schema is of this version at least, as far as is known.
    fn has_schema(&self, version: i32) -> bool {
        let found = self.schema_version.load(Ordering::Relaxed);
        found == 0 || found >= version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reconcile loop runs these in tasks of a many-threaded runtime.
    #[tokio::test]
    async fn every_call_may_move_between_threads() {
        fn movable<T: Send>(_: T) {}
        let store = Store::connect(&ConnectOptions::new("postgres://a@nowhere/vpn")).unwrap();
        let cursor = Cursor { snapshot: String::new(), epoch: String::new() };
        movable(store.snapshot());
        movable(store.changes(&cursor));
        movable(store.poll(&cursor));
        movable(store.attach(false));
        movable(store.report(&[]));
        movable(store.audit(&[]));
        movable(store.merge());
        movable(store.hello());
        movable(store.words(&BTreeSet::new(), &BTreeSet::new()));
    }
}
