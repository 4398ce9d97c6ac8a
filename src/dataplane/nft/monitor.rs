//! Notices every change of the host's rulesets, and which process made it.

use std::collections::VecDeque;
use std::sync::Weak;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::error::NftError;
use super::message::ObjectMessage;
use super::name::TABLE;
use super::sys::{
    NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, NFPROTO_INET, OBJECT_TABLE, generation, msg,
};
use crate::dataplane::netlink::{
    Announcement, AsyncSubscription, Membership, Message, NetlinkError, Subscription,
};

/// What happened to a ruleset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftEvent {
    /// Another program committed a transaction.
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

/// A socket that receives changes. It must be read steadily; an event is only a reason to look again.
///
/// While any socket in the network namespace receives them, the kernel makes a message of some KiB for
/// every element of a change and keeps them all until it commits (`nf_tables_setelem_notify`): loading
/// a million elements then takes ten times as long. See [`Nft::mute`](super::Nft::mute).
pub struct NftMonitor {
    subscription: AsyncSubscription,
    changes: ChangeReader,
}

impl NftMonitor {
    /// Starts to listen in the present network namespace, and leaves out what is done from `own_port`
    /// ([`Nft::port`](super::Nft::port)). Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn open(own_port: u32) -> Result<Self, NftError> {
        let subscription = AsyncSubscription::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]);
        let subscription = subscription.map_err(NftError::Open)?;
        Ok(Self { subscription, changes: ChangeReader::new(own_port) })
    }

    /// For [`Nft::mute`](super::Nft::mute).
    #[must_use]
    pub fn membership(&self) -> Weak<Membership> {
        self.subscription.membership()
    }

    /// Waits for the next event. Dropping and calling it again loses no event.
    ///
    /// # Errors
    /// The socket failed or the kernel sent what cannot be read: open another monitor, and look at
    /// everything again.
    pub async fn next(&mut self) -> Result<NftEvent, NftError> {
        loop {
            if let Some(event) = self.changes.events.pop_front() {
                return Ok(event);
            }
            let changes = &mut self.changes;
            self.subscription.read(|announcement| changes.read(announcement)).await?;
        }
    }
}

/// A monitor without a runtime, which is asked for what happened since.
pub struct NftWatch {
    subscription: Subscription,
    changes: ChangeReader,
}

impl NftWatch {
    pub fn open(own_port: u32) -> Result<Self, NftError> {
        let subscription = Subscription::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]);
        let subscription = subscription.map_err(NftError::Open)?;
        Ok(Self { subscription, changes: ChangeReader::new(own_port) })
    }

    pub fn membership(&self) -> Weak<Membership> {
        self.subscription.membership()
    }

    /// What happened since the last call.
    pub fn events(&mut self) -> Result<VecDeque<NftEvent>, NftError> {
        while self.subscription.read(|announcement| self.changes.read(announcement))? {}
        Ok(std::mem::take(&mut self.changes.events))
    }
}

/// Makes one event of each transaction's messages.
pub(super) struct ChangeReader {
    own_port: u32,
    /// Whether the transaction that is being read touches our table.
    touched_ours: bool,
    events: VecDeque<NftEvent>,
}

impl ChangeReader {
    pub const fn new(own_port: u32) -> Self {
        Self { own_port, touched_ours: false, events: VecDeque::new() }
    }

    fn read(&mut self, announcement: &Announcement<'_>) -> Result<(), NetlinkError> {
        match announcement {
            Announcement::Message(message) => self.read_message(message)?,
            Announcement::Overrun => {
                self.touched_ours = false;
                self.events.push_back(NftEvent::Lost);
            }
        }
        Ok(())
    }

    /// A transaction's objects come first, then the generation it made, with the process.
    pub fn read_message(&mut self, message: &Message<'_>) -> Result<(), NetlinkError> {
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || message.port == self.own_port {
            return Ok(());
        }
        let ObjectMessage { kind, family, attributes } = ObjectMessage::read(message)?;
        if kind != msg::NEWGEN {
            let table = attributes.find(OBJECT_TABLE)?;
            let is_ours = table.is_some_and(|table| table.text() == Ok(TABLE));
            self.touched_ours |= is_ours && family == NFPROTO_INET;
            return Ok(());
        }
        let pid = attributes.find(generation::PROC_PID)?;
        let process = attributes.find(generation::PROC_NAME)?;
        self.events.push_back(NftEvent::Foreign(ForeignChange {
            generation: attributes.require(generation::ID)?.be32()?,
            pid: pid.map_or(Ok(0), |pid| pid.be32())?,
            process: process.map(|process| process.text_lossy()).unwrap_or_default(),
            touched_ours: std::mem::take(&mut self.touched_ours),
        }));
        Ok(())
    }
}
