//! Notices when somebody changes our link, its addresses or its routes.
//!
//! An event is never data: it says *look again*. What our own routes bring about is not passed on, or
//! every peer that gains or loses one would have everything read again. The kernel names nobody as
//! the author of what it does by itself, nor of most changes to a link; whoever looks again then
//! finds nothing to do. WireGuard announces nothing about peers.

use std::io;
use std::os::fd::AsFd;

use futures_util::StreamExt;
use futures_util::stream::{AbortHandle, Abortable};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr};

use crate::model::InterfaceName;

/// What to look at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostEvent {
    /// The link came, went or changed.
    Link,
    /// An address of the link came or went.
    Address,
    /// A route through the link came or went.
    Route,
    /// Events were lost: anything may have changed.
    Resync,
}

/// A busy host changes thousands of routes at once; only ours are passed on, but all are received.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

type Incoming =
    futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// A subscription to the kernel's events about one interface.
pub struct Monitor {
    interface: InterfaceName,
    own_port: u32,
    /// Known once the link has been seen.
    index: Option<u32>,
    incoming: Incoming,
    connection: AbortHandle,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace, within a tokio runtime. Everything
    /// that happens from now on is reported, but for what is done from `own_port`. The link's index is
    /// learnt from `index` and from the link's own events.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open(interface: InterfaceName, index: Option<u32>, own_port: u32) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (mut connection, _, incoming) = rtnetlink::new_multicast_connection(&groups)?;
        let socket = connection.socket_mut().socket_mut();
        // Without the privilege the socket is only quicker to say that events were lost.
        let _ = setsockopt(&socket.as_fd(), RcvBufForce, &SOCKET_BUFFER_BYTES);
        let (handle, registration) = AbortHandle::new_pair();
        tokio::spawn(Abortable::new(connection, registration));
        Ok(Self { interface, own_port, index, incoming: incoming.boxed(), connection: handle })
    }

    /// Waits for the next event. `None`: the subscription is broken, and only who looks without being
    /// told will see what changes.
    pub async fn next(&mut self) -> Option<HostEvent> {
        loop {
            let (message, _) = self.incoming.next().await?;
            let own = message.header.port_number == self.own_port;
            if let Some(event) = self.judge(&message.payload)
                && !own
            {
                return Some(event);
            }
        }
    }

    fn judge(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<HostEvent> {
        use RouteNetlinkMessage::{DelAddress, DelLink, DelRoute, NewAddress, NewLink, NewRoute};
        match payload {
            NetlinkPayload::Overrun(_) => Some(HostEvent::Resync),
            NetlinkPayload::InnerMessage(NewLink(link) | DelLink(link)) => self.judge_link(link),
            NetlinkPayload::InnerMessage(NewAddress(address) | DelAddress(address)) => {
                self.is_ours(address_index(address)).then_some(HostEvent::Address)
            }
            NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
                self.is_ours(route_index(route)).then_some(HostEvent::Route)
            }
            _ => None,
        }
    }

    fn judge_link(&mut self, link: &LinkMessage) -> Option<HostEvent> {
        let named = link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::IfName(name) if name == self.interface.as_str())
        });
        // A link that was renamed away comes with its new name and the index we knew.
        let known = self.is_ours(Some(link.header.index));
        if named {
            self.index = Some(link.header.index);
        }
        (named || known).then_some(HostEvent::Link)
    }

    fn is_ours(&self, index: Option<u32>) -> bool {
        self.index.is_some() && self.index == index
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn address_index(address: &AddressMessage) -> Option<u32> {
    Some(address.header.index)
}

fn route_index(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
