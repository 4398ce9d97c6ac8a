//! What this kernel's nf_tables can do, and what our table denied, found out without changing anything.

use nix::errno::Errno;

use super::attr::Attr;
use super::batch::Batch;
use super::chain::declare_in;
use super::dump::{self, Counter};
use super::error::NftError;
use super::gateway::labelling;
use super::name::DENY;
use super::socket::NftSocket;
use super::sys::{msg, table};

/// No table has this name: what is tried with it is refused in any case.
const PROBE: &str = "gatepost-probe";

/// Whether this kernel labels flows (`CONFIG_NF_CONNTRACK_LABELS`), by which the flows that the gateway
/// itself opens are known.
///
/// # Errors
/// nf_tables cannot be used, as without `CAP_NET_ADMIN`.
pub fn labels_flows() -> Result<bool, NftError> {
    can(|batch| {
        batch.add(msg::NEWTABLE, &[Attr::text(table::NAME, PROBE)]);
        batch.add(msg::NEWCHAIN, &declare_in(PROBE, PROBE, None));
        batch.add_rule_in(PROBE, PROBE, None, &labelling());
    })
}

/// Whether this kernel keeps a table whose owner is gone (from Linux 6.9).
///
/// # Errors
/// As [`labels_flows`].
pub fn keeps_owned_tables() -> Result<bool, NftError> {
    can(|batch| {
        batch.add(
            msg::NEWTABLE,
            &[Attr::text(table::NAME, PROBE), Attr::be32(table::FLAGS, table::OWNED)],
        );
    })
}

/// What our table has denied since its fixed rules were loaded; `None`: there is no table.
///
/// # Errors
/// The kernel did not answer.
pub fn denied_packets() -> Result<Option<Counter>, NftError> {
    let mut socket = NftSocket::open()?;
    let (counters, _) =
        dump::at_one_generation(&mut socket, |socket| dump::counters_in(socket, DENY))?;
    Ok(counters.first().copied())
}

/// Whether the kernel would make these changes, which it does not.
fn can(change: impl FnOnce(&mut Batch)) -> Result<bool, NftError> {
    let mut socket = NftSocket::open()?;
    let mut batch = socket.begin(None);
    change(&mut batch);
    // The kernel refuses this in any case, and with it all that stands before.
    batch.delete(msg::DELTABLE, &[Attr::text(table::NAME, "gatepost-missing")]);
    let batch = batch.finish();
    match socket.commit(&batch) {
        Err(NftError::Refused { errno: Errno::ENOENT, .. }) => Ok(true),
        Err(NftError::Refused { errno: Errno::EOPNOTSUPP | Errno::EINVAL, .. }) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Err(NftError::NoAnswer),
    }
}
