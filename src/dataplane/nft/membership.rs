//! Whether a socket hears of changes of the rulesets: not while we make a large one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{NetlinkAddr, bind};

use super::sys::NFNLGRP_NFTABLES;

/// A listening socket's place among those to whom the kernel tells every change.
///
/// While anybody in the network namespace listens, the kernel makes a message of some KiB for every
/// element of a change and keeps them all until it commits (`nf_tables_setelem_notify`): to load a
/// million elements then takes ten times as long.
pub struct Membership {
    socket: OwnedFd,
    port: u32,
}

impl Membership {
    /// Of a socket that is bound to `port`. Joins.
    pub(super) fn join(socket: &impl AsFd, port: u32) -> io::Result<Self> {
        let membership = Self { socket: socket.as_fd().try_clone_to_owned()?, port };
        membership.be_told()?;
        Ok(membership)
    }

    /// Hear of changes from now on. `bind` replaces the groups of a socket that is bound already
    /// (`netlink_bind` in the kernel's net/netlink/af_netlink.c).
    pub(super) fn be_told(&self) -> io::Result<()> {
        self.bind(1 << (NFNLGRP_NFTABLES - 1))
    }

    /// Hear of none.
    pub(super) fn be_spared(&self) -> io::Result<()> {
        self.bind(0)
    }

    fn bind(&self, groups: u32) -> io::Result<()> {
        Ok(bind(self.socket.as_raw_fd(), &NetlinkAddr::new(self.port, groups))?)
    }
}
