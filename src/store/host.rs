//! The hosts of a gateway. A row of `gateways` is for one host: each proves its own kernel.

use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio_postgres::types::{ToSql, Type};

use super::decode::Columns;
use super::refusal::Refusal;
use super::{Attached, Store, StoreError};

/// The first version of the schema that knows hosts, and in which reports wait.
pub(super) const HOSTS_SINCE: i32 = 11;

/// The first version of the schema that answers a proof with what a bell merges.
const PROVES_SINCE: i32 = 27;
/// The first version of the schema in which a heartbeat is one function.
const HEARTBEATS_SINCE: i32 = 29;

/// This host, as the database knows it. The default names none, as agents of earlier versions do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    machine: String,
    boot: String,
    name: String,
}

/// The other hosts of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts {
    /// The one that reports for the gateway now, in place of this one.
    pub leader: Option<String>,
    /// All others, each with the time when it was last heard of: `last_sync_at` waits for them, too.
    pub others: Vec<String>,
}

/// The result of a proof.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proven {
    /// `false`: the database is another one, or in an older state than at the last full read.
    pub taken: bool,
    pub hosts: Hosts,
    /// The refused reports, where a bell merges all reports: then [`Store::merge`] has nothing to do.
    pub merged_by_bell: Option<Vec<Refusal>>,
}

/// A host that the database knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownHost {
    /// Empty: an agent that does not name its host.
    pub name: String,
    /// Identifies the installation, not its machine-id.
    pub machine: String,
    /// Of the kernel that runs there.
    pub boot: String,
    pub since: SystemTime,
    pub seen_at: SystemTime,
    /// As of which its kernel was last proven equal.
    pub proven_at: Option<SystemTime>,
    /// It reports for the gateway now.
    pub leads: bool,
}

impl Host {
    /// `machine_id`: as in machine-id(5), which says to keep it secret: what leaves the host is derived
    /// from it. `boot_id`: as in random(4).
    #[must_use]
    pub fn new(machine_id: &str, boot_id: &str, name: &str) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(machine_id.trim().as_bytes())
            .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
        mac.update(b"gatepost host");
        let machine = mac.finalize().into_bytes();
        let machine = machine.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { machine, boot: boot_id.trim().to_owned(), name: name.trim().to_owned() }
    }

    /// How messages name it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the database knows it as this.
    #[must_use]
    pub fn is(&self, known: &KnownHost) -> bool {
        (&*self.machine, &*self.boot) == (&*known.machine, &*known.boot)
    }
}

impl Store {
    /// Reports that this host's kernel was proven equal to the database as of `proven_at`, the `taken_at`
    /// of the read that was proven; `None`: only that the host is there. The time never goes back, and
    /// never ahead of the database's clock. `gateways.last_sync_at` becomes the oldest proof of all hosts
    /// that the gateway has, at the next [`Store::merge`].
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn prove(&self, proven_at: Option<SystemTime>) -> Result<Proven, StoreError> {
        const DOING: &str = "report the last sync";
        let epoch = self.last_epoch();
        let Host { machine, boot, name } = &self.host;
        let all: [(&(dyn ToSql + Sync), Type); 5] = [
            (&proven_at, Type::TIMESTAMPTZ),
            (&epoch, Type::TEXT),
            (machine, Type::TEXT),
            (boot, Type::TEXT),
            (name, Type::TEXT),
        ];
        let (query, parameters) = if self.has_schema(PROVES_SINCE) {
            let query = "select taken, leader, others, is_merged, refused, refused_since \
                from gatepost.prove($1, $2, $3, $4, $5)";
            (query, &all[..])
        } else if self.has_schema(HOSTS_SINCE) {
            let query = "select taken, leader, others, false, '{}'::pg_catalog.text[], \
                '{}'::pg_catalog.timestamptz[] from gatepost.proven($1, $2, $3, $4, $5)";
            (query, &all[..])
        } else if proven_at.is_none() {
            return Ok(Proven::default());
        } else {
            let query = "select gatepost.synced($1, $2), null::pg_catalog.text, '{}'::pg_catalog.text[], \
                false, '{}'::pg_catalog.text[], '{}'::pg_catalog.timestamptz[]";
            (query, &all[..2])
        };
        let lease = self.lease(DOING).await?;
        let row = self.within(DOING, lease.query_typed_one(query, parameters)).await?;
        lease.done();
        proven(&Columns::of(&row, DOING))
    }

    /// Like [`Store::prove`], and with `listens` like [`Store::attach`], in one statement where the schema is recent.
    /// Only the former is an error.
    ///
    /// # Errors
    /// The errors of [`Store::prove`].
    pub async fn heartbeat(
        &self,
        proven_at: Option<SystemTime>,
        listens: Option<bool>,
    ) -> Result<(Proven, Option<Attached>), StoreError> {
        const DOING: &str = "report the last sync";
        let Some(listens) = listens else { return Ok((self.prove(proven_at).await?, None)) };
        if !self.has_schema(HEARTBEATS_SINCE) {
            let proven = self.prove(proven_at).await?;
            return Ok((proven, self.attach(listens).await.ok()));
        }
        let (epoch, Host { machine, boot, name }) = (self.last_epoch(), &self.host);
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&proven_at, Type::TIMESTAMPTZ),
            (&epoch, Type::TEXT),
            (machine, Type::TEXT),
            (boot, Type::TEXT),
            (name, Type::TEXT),
            (&listens, Type::BOOL),
        ];
        let query = "select taken, leader, others, is_merged, refused, refused_since, gateways, unwatched, \
                pg_catalog.current_setting('max_prepared_transactions')::integer \
            from gatepost.heartbeat($1, $2, $3, $4, $5, $6)";
        let lease = self.lease(DOING).await?;
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        lease.done();
        let columns = Columns::of(&row, DOING);
        let attached = match columns.get::<Option<i64>>(6)? {
            Some(gateways) => Some(Attached::of(gateways, columns.get(7)?, columns.get(8)?)),
            None => None,
        };
        Ok((proven(&columns)?, attached))
    }

    /// Like [`Store::prove`]: whether the proof was taken.
    ///
    /// # Errors
    /// The errors of [`Store::prove`].
    pub async fn synced(&self, proven_at: SystemTime) -> Result<bool, StoreError> {
        Ok(self.prove(Some(proven_at)).await?.taken)
    }

    /// The hosts of this gateway.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn hosts(&self) -> Result<Vec<KnownHost>, StoreError> {
        const DOING: &str = "list the hosts";
        let lease = self.lease(DOING).await?;
        let query =
            "select name, machine, boot, since, seen_at, proven_at, leads from gatepost.hosts()";
        let rows = self.within(DOING, lease.query_typed(query, &[])).await?;
        lease.done();
        let known = |row| {
            let columns = Columns::of(row, DOING);
            Ok(KnownHost {
                name: columns.get(0)?,
                machine: columns.get(1)?,
                boot: columns.get(2)?,
                since: columns.get(3)?,
                seen_at: columns.get(4)?,
                proven_at: columns.get(5)?,
                leads: columns.get(6)?,
            })
        };
        rows.iter().map(known).collect()
    }

    /// Forgets a host whose kernel holds nothing of this gateway any more, or that is gone.
    ///
    /// # Errors
    /// The errors of [`Store::hosts`].
    pub async fn forget_host(&self, host: &KnownHost) -> Result<(), StoreError> {
        self.forget(&host.machine, &host.boot).await
    }

    /// Like [`Store::forget_host`], of this host.
    ///
    /// # Errors
    /// The errors of [`Store::hosts`].
    pub async fn leave(&self) -> Result<(), StoreError> {
        self.forget(&self.host.machine, &self.host.boot).await
    }

    async fn forget(&self, machine: &str, boot: &str) -> Result<(), StoreError> {
        const DOING: &str = "forget a host";
        let lease = self.lease(DOING).await?;
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&machine, Type::TEXT), (&boot, Type::TEXT)];
        let query = "select gatepost.forget_host($1, $2)";
        self.within(DOING, lease.query_typed(query, &parameters)).await?;
        lease.done();
        Ok(())
    }
}

/// Decodes the first six columns of an answer to a proof.
fn proven(columns: &Columns<'_>) -> Result<Proven, StoreError> {
    let hosts = Hosts { leader: columns.get(1)?, others: columns.get(2)? };
    let (why, since): (Vec<String>, Vec<SystemTime>) = (columns.get(4)?, columns.get(5)?);
    let refusals = why.into_iter().zip(since).map(|(why, since)| Refusal { why, since });
    let merged_by_bell = columns.get::<bool>(3)?.then(|| refusals.collect());
    Ok(Proven { taken: columns.get(0)?, hosts, merged_by_bell })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_id_does_not_leave_the_host() {
        let id = &*"ab".repeat(16);
        let host = Host::new(&format!("{id}\n"), "boot", "fra-1");
        assert_eq!(host.machine.len(), 32);
        assert_ne!(host.machine, id);
        assert_eq!(host, Host::new(id, "boot\n", "fra-1\n"));
        assert_ne!(host.machine, Host::new("another", "boot", "fra-1").machine);
    }
}
