//! Writes a gateway's own row from its host.

use ipnet::IpNet;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::model::{GatewayId, PublicKey};

/// Whether [`Store::enroll`] may replace a key that the gateway's row has. Every client needs the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    Refused,
    Allowed,
}

/// A host's values for its gateway's row. `None` leaves a column unchanged. A new row needs endpoint,
/// listen port and `vpn_cidr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrollment {
    pub name: String,
    pub public_key: PublicKey,
    /// Where clients find the gateway: `host:port`.
    pub endpoint: Option<String>,
    pub listen_port: Option<u16>,
    /// Host bits are dropped.
    pub vpn_cidr: Option<IpNet>,
    pub dns_servers: Option<Vec<String>>,
    pub key_change: KeyChange,
}

const DOING: &str = "enroll the gateway";

impl Store {
    /// Inserts or updates the gateway's row, and binds this role to it if permitted. After the first time
    /// a change needs [`allow_enrollment`](super::allow_enrollment).
    ///
    /// # Errors
    /// [`StoreError::EnrollmentRefused`]: the row has another key, or may not be changed again.
    /// [`StoreError::Unbound`]: the role has no gateway. [`StoreError::GatewayUnknown`]: the role is
    /// bound to another gateway, or the row does not exist and values to create it are missing.
    pub async fn enroll(&self, enrollment: &Enrollment) -> Result<GatewayId, StoreError> {
        let lease = self.lease(DOING).await?;
        let key = enrollment.public_key.to_string();
        let port = enrollment.listen_port.map(i32::from);
        let cidr = enrollment.vpn_cidr.map(|cidr| cidr.trunc().to_string());
        let query = "select gatepost.enroll($1, $2, $3, $4, $5::pg_catalog.cidr, $6, $7)";
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 7] = [
            (&enrollment.name, Type::TEXT),
            (&key, Type::TEXT),
            (&enrollment.endpoint, Type::TEXT),
            (&port, Type::INT4),
            (&cidr, Type::TEXT),
            (&enrollment.dns_servers, Type::TEXT_ARRAY),
            (&(enrollment.key_change == KeyChange::Allowed), Type::BOOL),
        ];
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        lease.done();
        Ok(super::decode::Columns::of(&row, DOING).get::<Uuid>(0)?.into())
    }
}
