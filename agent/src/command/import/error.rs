//! Why no SQL is printed.

use std::io;
use std::path::PathBuf;

use super::file::Remark;

/// Why no SQL is printed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "no WireGuard interface {name}, neither in the kernel ({kernel}) nor in userspace \
         ({userspace}): name a running interface, or a file such as /etc/wireguard/{name}.conf"
    )]
    NoLink { name: String, kernel: io::Error, userspace: io::Error },
    #[error("cannot read the addresses of {name}: {why}")]
    Addresses { name: String, why: String },
    #[error("{name} changes too often to be read whole: run the command again")]
    Restless { name: String },
    #[error("interface {name} belongs to Gatepost already: its peers are in the database")]
    Ours { name: String },
    #[error("{source_name} cannot be imported:\n{}", listed(remarks))]
    Unusable { source_name: String, remarks: Vec<Remark> },
    #[error(
        "{peers} a preshared key, and there are no sealing keys to seal it with: make some with \
         `(umask 077; echo \"k1 $(head -c 32 /dev/urandom | base64)\" >psk.keys)`, and name them \
         with --keys"
    )]
    NoSealingKeys { peers: String },
    #[error("cannot get random bytes from the kernel: {0}")]
    Random(getrandom::Error),
}

fn listed(remarks: &[Remark]) -> String {
    remarks.iter().map(|remark| format!("  {remark}")).collect::<Vec<_>>().join("\n")
}
