//! What can go wrong between us and nf_tables.

use nix::errno::Errno;

use crate::dataplane::netlink::NetlinkError;
use crate::model::ProfileId;

/// Why the firewall could not be read or changed. [`NftError::table_is_as_before`] says whether a change
/// may have been made.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error(
        "nf_tables cannot be used: {0}; the agent needs CAP_NET_ADMIN and a kernel with nf_tables"
    )]
    Open(#[source] NetlinkError),

    #[error("reading from nf_tables: {0}")]
    Read(#[source] NetlinkError),

    #[error(
        "the kernel takes no firewall change of {bytes} bytes at once: {errno}; fewer or smaller \
         policies, or more memory, are needed; the rules before the change stay in force"
    )]
    TooLarge { bytes: usize, errno: Errno },

    #[error(
        "sending a firewall change of {bytes} bytes: {source}; the rules before it stay in force"
    )]
    Send {
        bytes: usize,
        #[source]
        source: NetlinkError,
    },

    #[error("the kernel refuses to {request}: {errno}; the rules before the change stay in force")]
    Refused { request: String, errno: Errno },

    #[error(
        "the kernel refuses to {request}, because the table belongs to another process: two agents \
         run here, or one that was stopped; end it, or set firewall.own_table = false for both"
    )]
    OtherOwner { request: String },

    #[error("the kernel gave no answer; read the table back")]
    NoAnswer,

    #[error("profile {} is to be changed, but is not in the table as it was read; read it again", .0.0)]
    UnknownProfile(ProfileId),

    #[error("the chain of profile {} is not as gatepost writes it; load the table anew", .0.0)]
    EditedProfile(ProfileId),

    #[error("{0}; the sets for it were loaded before and cannot be removed: read the table back")]
    SetsLeft(#[source] Box<Self>),

    #[error("the ruleset changed while it was read; read it again")]
    Changed,

    #[error(
        "other programs changed the ruleset during each of {attempts} attempts; find them with \
         `nft monitor`"
    )]
    Unstable { attempts: usize },
}

impl NftError {
    /// Whether a change that failed so left the table as it was. The kernel takes a transaction as a whole
    /// or not at all; without its answer that is unknown.
    #[must_use]
    pub const fn table_is_as_before(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::OtherOwner { .. }
            | Self::TooLarge { .. }
            | Self::UnknownProfile(_)
            | Self::EditedProfile(_)
            | Self::Changed
            | Self::Unstable { .. } => true,
            // The generation is asked for after a change, too.
            Self::SetsLeft(_)
            | Self::NoAnswer
            | Self::Send { .. }
            | Self::Open(_)
            | Self::Read(_) => false,
        }
    }
}

impl From<NetlinkError> for NftError {
    fn from(error: NetlinkError) -> Self {
        match error.refusal() {
            Some(Errno::EPERM) => Self::Open(error),
            _ => Self::Read(error),
        }
    }
}
