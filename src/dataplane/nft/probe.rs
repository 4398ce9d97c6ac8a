//! What this kernel's nf_tables can do, found out without changing anything.

use nix::errno::Errno;

use super::attr::Attr;
use super::chain::declare;
use super::error::NftError;
use super::gateway::labelling;
use super::name::TABLE;
use super::socket::NftSocket;
use super::sys::{msg, table};

/// Whether this kernel labels flows (`CONFIG_NF_CONNTRACK_LABELS`), by which the flows that the gateway
/// itself opens are known.
///
/// # Errors
/// nf_tables cannot be used, as without `CAP_NET_ADMIN`.
pub fn labels_flows() -> Result<bool, NftError> {
    const PROBE: &str = "probe";
    const MISSING: &str = "missing";
    let mut socket = NftSocket::open()?;
    let mut batch = socket.begin(None);
    batch.add(msg::NEWTABLE, &[Attr::text(table::NAME, TABLE)]);
    batch.add(msg::NEWCHAIN, &declare(PROBE, None));
    batch.add_rule(PROBE, None, &labelling());
    // The kernel refuses this in any case, and with it all that stands before.
    batch.delete_chain(MISSING);
    let batch = batch.finish();
    match socket.commit(&batch) {
        Err(NftError::Refused { errno: Errno::ENOENT, .. }) => Ok(true),
        Err(NftError::Refused { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Err(NftError::NoAnswer),
    }
}
