//! What can go wrong between us and nf_tables.

use std::io;

use crate::model::ProfileId;

/// Why the firewall could not be read or changed. The ruleset is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error(
        "no netlink socket to nf_tables: {0}; the agent needs CAP_NET_ADMIN and a kernel with nf_tables"
    )]
    Open(#[source] io::Error),

    #[error("reading from nf_tables: {0}")]
    Receive(#[source] io::Error),

    #[error(
        "the kernel takes no firewall change of {bytes} bytes at once: {source}; fewer or smaller \
         policies, or more memory, are needed; the rules before the change stay in force"
    )]
    TooLarge {
        bytes: usize,
        #[source]
        source: io::Error,
    },

    #[error(
        "sending a firewall change of {bytes} bytes: {source}; the rules before it stay in force"
    )]
    Send {
        bytes: usize,
        #[source]
        source: io::Error,
    },

    #[error("the kernel refuses to {request}: {source}; the rules before the change stay in force")]
    Refused {
        request: String,
        #[source]
        source: io::Error,
    },

    #[error("the kernel did not say what became of a firewall change; read the table back")]
    NoAnswer,

    #[error("profile {} is to be changed, but is not in the table as it was read; read it again", .0.0)]
    UnknownProfile(ProfileId),

    #[error("the chain of profile {} is not as gatepost writes it; load the table anew", .0.0)]
    EditedProfile(ProfileId),

    #[error("the ruleset changed while it was read; read it again")]
    Changed,

    #[error(
        "other programs changed the ruleset during each of {attempts} attempts; find them with \
         `nft monitor`"
    )]
    Unstable { attempts: usize },
}
