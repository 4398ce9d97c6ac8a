//! Hears of every change of the host's rulesets, and of who made it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};

use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, TokioSocket};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::attr::{find_be32, find_text};
use super::error::NftError;
use super::membership::Membership;
use super::message::{Message, Messages};
use super::name::TABLE;
use super::sys::{
    NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFPROTO_INET, OBJECT_TABLE, generation, msg,
};

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
    membership: Arc<Membership>,
    ear: Ear,
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
        let listen = || -> io::Result<(TokioSocket, Arc<Membership>)> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            let membership = join(socket.socket_mut())?;
            Ok((socket, Arc::new(membership)))
        };
        let (socket, membership) = listen().map_err(NftError::Open)?;
        let (ear, buffer) = (Ear::new(own_port), Vec::with_capacity(BUFFER_BYTES));
        Ok(Self { socket, membership, ear, buffer })
    }

    /// For [`Nft::spare`](super::Nft::spare).
    #[must_use]
    pub fn membership(&self) -> Weak<Membership> {
        Arc::downgrade(&self.membership)
    }

    /// Waits for the next event. Safe to drop and call again: no event is lost by that.
    ///
    /// # Errors
    /// The socket failed; open another monitor and look at everything again.
    pub async fn next(&mut self) -> Result<NftEvent, NftError> {
        loop {
            if let Some(event) = self.ear.heard.pop_front() {
                return Ok(event);
            }
            self.buffer.clear();
            let received = self.socket.recv(&mut self.buffer).await;
            self.ear.take(received, &self.buffer)?;
        }
    }
}

/// The same without a runtime: asked now and then for what was heard meanwhile.
pub struct NftWatch {
    socket: Socket,
    membership: Arc<Membership>,
    ear: Ear,
    buffer: Vec<u8>,
}

impl NftWatch {
    pub fn open(own_port: u32) -> Result<Self, NftError> {
        let listen = || -> io::Result<(Socket, Arc<Membership>)> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            let membership = join(&mut socket)?;
            Ok((socket, Arc::new(membership)))
        };
        let (socket, membership) = listen().map_err(NftError::Open)?;
        let (ear, buffer) = (Ear::new(own_port), Vec::with_capacity(BUFFER_BYTES));
        Ok(Self { socket, membership, ear, buffer })
    }

    pub fn membership(&self) -> Weak<Membership> {
        Arc::downgrade(&self.membership)
    }

    /// What was heard since this was last asked.
    pub fn heard(&mut self) -> Result<VecDeque<NftEvent>, NftError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(std::mem::take(&mut self.ear.heard));
                }
                received => self.ear.take(received.map(drop), &self.buffer)?,
            }
        }
    }
}

const BUFFER_BYTES: usize = 64 * 1024;

fn join(socket: &mut Socket) -> io::Result<Membership> {
    const QUEUE_BYTES: usize = 16 << 20;
    let address = socket.bind_auto()?;
    setsockopt(&*socket, sockopt::RcvBufForce, &QUEUE_BYTES)?;
    Membership::join(socket, address.port_number())
}

/// Makes events of messages.
struct Ear {
    own_port: u32,
    touched_ours: bool,
    heard: VecDeque<NftEvent>,
}

impl Ear {
    const fn new(own_port: u32) -> Self {
        Self { own_port, touched_ours: false, heard: VecDeque::new() }
    }

    fn take(&mut self, received: io::Result<()>, buffer: &[u8]) -> Result<(), NftError> {
        match received {
            Ok(()) => Messages(buffer).for_each(|message| self.hear(&message)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.touched_ours = false;
                self.heard.push_back(NftEvent::Lost);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(NftError::Receive(error)),
        }
        Ok(())
    }

    /// A transaction's objects come first, then the generation it made, with the process.
    fn hear(&mut self, message: &Message) {
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || message.port == self.own_port {
            return;
        }
        if message.object() != msg::NEWGEN {
            self.touched_ours |= message.family() == NFPROTO_INET
                && find_text(message.body, OBJECT_TABLE) == Some(TABLE);
            return;
        }
        self.heard.push_back(NftEvent::Foreign(ForeignChange {
            generation: find_be32(message.body, generation::ID).unwrap_or_default(),
            pid: find_be32(message.body, generation::PROC_PID).unwrap_or_default(),
            process: find_text(message.body, generation::PROC_NAME).unwrap_or_default().to_owned(),
            touched_ours: std::mem::take(&mut self.touched_ours),
        }));
    }
}
