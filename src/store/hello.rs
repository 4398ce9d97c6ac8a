//! The first query: which gateway this role acts for, and whether the schema fits.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::decode::{Columns, Text};
use super::migrate::OLDEST_SCHEMA;
use super::{Store, StoreError};
use crate::model::GatewayId;

/// The role's gateway, and the versions of schema and server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub gateway_id: GatewayId,
    pub gateway_name: String,
    /// The latest migration applied; at least [`OLDEST_SCHEMA`].
    pub schema_version: i32,
    /// As `server_version_num`: 150018 means 15.18.
    pub server_version: i32,
}

const DOING: &str = "ask which gateway this role acts for";

impl Store {
    /// Asks which gateway this role acts for.
    ///
    /// # Errors
    /// Out of reach, login refused, a standby, not migrated, too old a schema, no rights, a role
    /// bound to no gateway, a gateway without a row: each its own [`StoreError`].
    pub async fn hello(&self) -> Result<Hello, StoreError> {
        match self.explain(self.ask_hello()).await {
            // A start between two tokens has none, and asks as a role that is bound to no gateway.
            Err(StoreError::TokenRefused { .. } | StoreError::Unbound { .. })
                if self.dialer.renew_token().await =>
            {
                self.explain(self.ask_hello()).await
            }
            answer => answer,
        }
    }

    async fn ask_hello(&self) -> Result<Hello, StoreError> {
        let lease = self.lease(DOING).await?;
        let row = self
            .within(
                DOING,
                lease.query_typed_one(
                    "select gateway_id, gateway_name, schema_version, server_version \
                     from gatepost.hello()",
                    &[],
                ),
            )
            .await?;
        lease.done();
        let columns = Columns::of(&row, DOING);
        let hello = Hello {
            gateway_id: columns.get::<Uuid>(0)?.into(),
            gateway_name: columns.get::<Text<'_>>(1)?.0.into(),
            schema_version: columns.get(2)?,
            server_version: columns.get(3)?,
        };
        if hello.schema_version < OLDEST_SCHEMA {
            return Err(StoreError::OldSchema {
                place: Box::new(self.place.clone()),
                found: hello.schema_version,
                needed: OLDEST_SCHEMA,
            });
        }
        self.schema_version.store(hello.schema_version, Ordering::Relaxed);
        Ok(hello)
    }
}
