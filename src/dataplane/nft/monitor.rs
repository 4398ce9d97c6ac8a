//! Hears of every change of the host's rulesets, and of who made it.

use std::collections::VecDeque;
use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::attr::{find_be32, find_text};
use super::error::NftError;
use super::socket::{Message, Messages};
use super::sys::{
    NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, NFPROTO_INET, OBJECT_TABLE,
    generation, msg,
};
use super::table::TABLE;

/// What the monitor heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftEvent {
    /// Somebody else committed a transaction.
    Foreign(ForeignChange),
    /// More came than the socket could hold: anything may have changed.
    Lost,
}

/// A transaction that was not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChange {
    /// The ruleset's generation after it.
    pub generation: u32,
    /// The process, as the host's first process namespace numbers it; 0: the kernel did not say.
    pub pid: u32,
    /// The first 15 bytes of the process's name.
    pub process: String,
    /// Whether it touched anything in our table.
    pub touched_ours: bool,
}

/// A listening socket. It must be read steadily; what it says is only a reason to look again.
pub struct NftMonitor {
    socket: TokioSocket,
    own_port: u32,
    touched_ours: bool,
    heard: VecDeque<NftEvent>,
    buffer: Vec<u8>,
}

impl NftMonitor {
    /// Starts to listen in the present network namespace, deaf to what is done from `own_port`
    /// ([`Nft::port`](super::Nft::port)). Needs a tokio
    /// runtime with I/O.
    ///
    /// # Errors
    /// No socket could be had.
    pub fn open(own_port: u32) -> Result<Self, NftError> {
        const QUEUE_BYTES: usize = 16 << 20;
        let listen = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind_auto()?;
            setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &QUEUE_BYTES)?;
            socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
            Ok(socket)
        };
        Ok(Self {
            socket: listen().map_err(NftError::Open)?,
            own_port,
            touched_ours: false,
            heard: VecDeque::new(),
            buffer: Vec::with_capacity(64 * 1024),
        })
    }

    /// Waits for the next event. Safe to drop and call again: no event is lost by that.
    ///
    /// # Errors
    /// The socket failed; open another monitor and look at everything again.
    pub async fn next(&mut self) -> Result<NftEvent, NftError> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer).await {
                Ok(()) => {
                    for message in Messages(&self.buffer) {
                        hear(&message, self.own_port, &mut self.touched_ours, &mut self.heard);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.touched_ours = false;
                    self.heard.push_back(NftEvent::Lost);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NftError::Receive(error)),
            }
        }
    }
}

/// A transaction's objects come first, then the generation it made, with the process.
fn hear(message: &Message, own_port: u32, touched_ours: &mut bool, heard: &mut VecDeque<NftEvent>) {
    if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || message.port == own_port {
        return;
    }
    if message.object() != msg::NEWGEN {
        let ours = message.family() == NFPROTO_INET
            && find_text(message.body, OBJECT_TABLE) == Some(TABLE);
        *touched_ours |= ours;
        return;
    }
    heard.push_back(NftEvent::Foreign(ForeignChange {
        generation: find_be32(message.body, generation::ID).unwrap_or_default(),
        pid: find_be32(message.body, generation::PROC_PID).unwrap_or_default(),
        process: find_text(message.body, generation::PROC_NAME).unwrap_or_default().to_owned(),
        touched_ours: std::mem::take(touched_ours),
    }));
}
