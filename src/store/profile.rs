//! Reads the parts of a client's configuration, and notes that it was issued. For an owner of the database:
//! the role is bound to the gateway only within a transaction that is rolled back.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::connect::single;
use super::decode::{Columns, Text};
use super::error::{Place, StoreError};
use super::options::ConnectOptions;
use super::snapshot;
use super::token::Caller;
use crate::model::{PeerId, PublicKey, SnapshotRows};

/// A connection of an owner of the database.
pub struct ProfileDesk {
    client: Client,
    place: Place,
}

/// A device's peer on one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPeer {
    pub peer_id: PeerId,
    /// `gateways.name`.
    pub gateway: String,
    /// `gateways.endpoint`.
    pub endpoint: String,
    /// `gateways.public_key`.
    pub gateway_key: String,
    /// `wireguard_peers.public_key`.
    public_key: String,
    /// `wireguard_peers.preshared_key_ciphertext`.
    envelope: Option<String>,
}

/// Another key of a peer, with the envelope of its preshared key sealed for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rekeyed {
    pub public_key: PublicKey,
    pub envelope: Option<String>,
}

const DOING: &str = "issue a profile";

impl ProfileDesk {
    /// Connects.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection.
    pub async fn open(options: &ConnectOptions) -> Result<Self, StoreError> {
        let target = options.target()?;
        Ok(Self { client: single(&target).await?, place: target.place })
    }

    /// The peers of a user's device, one for each gateway that has one.
    ///
    /// # Errors
    /// [`StoreError::NotOwner`], or another of the connection.
    pub async fn find(&self, user: &str, device: &str) -> Result<Vec<FoundPeer>, StoreError> {
        let query = "select p.id, g.name::text, g.endpoint::text, g.public_key::text, \
            p.public_key::text, p.preshared_key_ciphertext::text \
            from public.wireguard_peers p \
            join public.devices d on d.id = p.device_id and d.deleted_at is null \
            join public.users u on u.id = d.user_id and u.deleted_at is null \
            join public.gateways g on g.id = p.gateway_id and g.deleted_at is null \
            where p.deleted_at is null and lower(u.username::text) = lower($1) and d.name::text = $2 \
            order by 2";
        let names: [(&(dyn ToSql + Sync), Type); 2] = [(&user, Type::TEXT), (&device, Type::TEXT)];
        let rows = self.client.query_typed(query, &names).await.map_err(|it| self.failed(it))?;
        let found = rows.iter().map(|row| {
            let columns = Columns::of(row, DOING);
            let text = |column| columns.get::<Text<'_>>(column).map(|text| text.0.into_owned());
            Ok(FoundPeer {
                peer_id: columns.get::<Uuid>(0)?.into(),
                gateway: text(1)?,
                endpoint: text(2)?,
                gateway_key: text(3)?,
                public_key: text(4)?,
                envelope: columns.get::<Option<Text<'_>>>(5)?.map(|text| text.0.into_owned()),
            })
        });
        found.collect()
    }

    /// The users and devices that a profile could be for, as `(user, device)`.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub async fn names(&self) -> Result<Vec<(String, String)>, StoreError> {
        let query = "select u.username::text, d.name::text from public.devices d \
            join public.users u on u.id = d.user_id and u.deleted_at is null \
            where d.deleted_at is null";
        let rows = self.client.query_typed(query, &[]).await.map_err(|it| self.failed(it))?;
        let named = rows.iter().map(|row| {
            let columns = Columns::of(row, DOING);
            let text = |column| columns.get::<Text<'_>>(column).map(|text| text.0.into_owned());
            Ok((text(0)?, text(1)?))
        });
        named.collect()
    }

    /// Everything that decides what this gateway's peers may reach, as of one instant.
    ///
    /// # Errors
    /// [`StoreError::NotOwner`], or another of the connection.
    pub async fn rows(&self, gateway: &str) -> Result<SnapshotRows, StoreError> {
        let begin = "begin isolation level repeatable read";
        self.client.batch_execute(begin).await.map_err(|error| self.failed(error))?;
        let bind = "insert into gatepost.gateway_role as r (role_name, gateway_name, gateway_id) \
            select session_user, g.name, g.id from public.gateways g where g.name = $1 \
            on conflict (role_name) do update set gateway_name = excluded.gateway_name, \
                gateway_id = excluded.gateway_id";
        let name: [(&(dyn ToSql + Sync), Type); 1] = [(&gateway, Type::TEXT)];
        self.client.query_typed(bind, &name).await.map_err(|error| self.failed(error))?;
        let caller = Caller { client: &self.client, token: None };
        let read = snapshot::read(caller, "", "rollback").await;
        Ok(read.map_err(|error| self.failed(error))??.0)
    }

    /// Writes that a profile was issued, and the peer's other key if it has one, in a transaction that
    /// [`Self::commit`] ends: without that, nothing is written. Returns the profile's number: the first
    /// keeps the row's.
    ///
    /// # Errors
    /// [`StoreError::PeerChanged`]: the peer no longer has the key or the envelope that was found;
    /// [`StoreError::NotOwner`], or another of the connection.
    pub async fn issue(
        &self,
        found: &FoundPeer,
        rekeyed: Option<&Rekeyed>,
    ) -> Result<i32, StoreError> {
        let issue = "with peer as (
                update public.wireguard_peers set
                    last_profile_issued_at = now(),
                    profile_revision =
                        profile_revision + (last_profile_issued_at is not null)::integer,
                    public_key = coalesce($2, public_key),
                    preshared_key_ciphertext =
                        case when $2 is null then preshared_key_ciphertext else $3 end,
                    updated_at = now()
                where id = $1 and deleted_at is null and public_key::text = $4
                    and preshared_key_ciphertext::text is not distinct from $5
                returning device_id, profile_revision
            ), device as (
                update public.devices d set public_key = $2, updated_at = now()
                from peer where $2 is not null and d.id = peer.device_id
            )
            select profile_revision from peer";
        let key = rekeyed.map(|rekeyed| rekeyed.public_key.to_string());
        let envelope = rekeyed.and_then(|rekeyed| rekeyed.envelope.as_deref());
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&found.peer_id.0, Type::UUID),
            (&key, Type::TEXT),
            (&envelope, Type::TEXT),
            (&found.public_key, Type::TEXT),
            (&found.envelope, Type::TEXT),
        ];
        self.client.batch_execute("begin").await.map_err(|error| self.failed(error))?;
        let row = self.client.query_typed(issue, &parameters).await;
        match row.map_err(|error| self.failed(error))?.first() {
            Some(row) => Columns::of(row, DOING).get(0),
            None => Err(StoreError::PeerChanged),
        }
    }

    /// Commits what [`Self::issue`] wrote.
    ///
    /// # Errors
    /// Any of the connection.
    pub async fn commit(&self) -> Result<(), StoreError> {
        self.client.batch_execute("commit").await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: tokio_postgres::Error) -> StoreError {
        match StoreError::of(&self.place, DOING, error) {
            StoreError::NoRights { place, .. } => StoreError::NotOwner { place },
            error => error,
        }
    }
}
