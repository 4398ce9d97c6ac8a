//! Who may change our table.
//!
//! A table may have an owner, the socket that made it or took it over: no other program can change, flush
//! or delete it, and `nft flush ruleset` leaves it out. From Linux 6.9 such a table may also persist: when
//! its owner's socket closes, it stays without an owner, until another socket takes it over
//! (`nf_tables_updtable` and `nft_rcv_nl_event` in the kernel's net/netfilter/nf_tables_api.c). Flags are
//! given when a table is made, and no other table can get them later.

use nix::errno::Errno;

use super::attr::Attr;
use super::batch::Batch;
use super::error::NftError;
use super::name::TABLE;
use super::probe;
use super::socket::NftSocket;
use super::sys::{msg, table};

/// Who may change our table, besides this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// Every program.
    #[default]
    Shared,
    /// The agent's socket alone. It is another process's, so this one only reads.
    Respected,
    /// No program: the table belongs to this process, from the first reading on.
    Taken,
}

impl Ownership {
    /// What this kernel can do. Before Linux 6.9 a table that is owned would go with its owner.
    pub(super) fn supported(self) -> Result<Self, NftError> {
        if self == Self::Shared || probe::keeps_owned_tables()? {
            Ok(self)
        } else {
            Ok(Self::Shared)
        }
    }

    /// The flags that a table is made with.
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::Shared => 0,
            Self::Respected | Self::Taken => table::OWNED,
        }
    }

    /// Whether a table with these flags is as we would make it. An owner may be gone.
    pub(super) const fn is_as_made(self, flags: u32) -> bool {
        match self {
            Self::Shared => flags == 0,
            Self::Respected | Self::Taken => flags == table::OWNED || flags == table::FLAG_PERSIST,
        }
    }
}

/// Whether there is a table of ours without an owner that persists.
pub fn is_orphan(socket: &mut NftSocket) -> Result<bool, NftError> {
    let flags = socket.get(msg::GETTABLE, &[Attr::text(table::NAME, TABLE)], |found| {
        found.require(table::FLAGS)?.be32()
    })?;
    Ok(flags == Some(table::FLAG_PERSIST))
}

/// Takes over such a table.
pub fn take_over(batch: &mut Batch) {
    batch.add(
        msg::NEWTABLE,
        &[Attr::text(table::NAME, TABLE), Attr::be32(table::FLAGS, table::OWNED)],
    );
}

/// What a refusal means where tables have owners. Without the capability, the change as a whole is
/// refused; another owner's table is refused by name.
pub fn named(refusal: NftError) -> NftError {
    match refusal {
        NftError::Refused { request, errno: Errno::EPERM } if request.contains(TABLE) => {
            NftError::OtherOwner { request }
        }
        other => other,
    }
}
