//! Which of our packets a chain of another program sees. Pure.

use super::hook::Hook;

/// By which link packets come or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Ours,
    Another,
    /// None: the host itself sends or receives them.
    Absent,
    /// Not routed yet, or not known at that hook.
    Unknown,
}

/// Packets of ours that a hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub incoming: Link,
    pub outgoing: Link,
    /// They are datagrams of WireGuard's port. `None`: they may be anything.
    pub wireguard: Option<Datagrams>,
}

/// WireGuard's own datagrams, by its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datagrams {
    To(u16),
    From(u16),
}

impl Way {
    /// What peers send through the gateway.
    pub const FROM_PEERS: Self = Self::between(Link::Ours, Link::Another);
    /// What others send to peers through the gateway.
    pub const TO_PEERS: Self = Self::between(Link::Another, Link::Ours);
    /// What peers send to each other.
    pub const BETWEEN_PEERS: Self = Self::between(Link::Ours, Link::Ours);
    /// What peers send to the gateway itself.
    pub const TO_HOST: Self = Self::between(Link::Ours, Link::Absent);
    /// What the gateway itself sends to peers.
    pub const FROM_HOST: Self = Self::between(Link::Absent, Link::Ours);
    /// What peers send, before it is routed.
    pub const UNROUTED: Self = Self::between(Link::Ours, Link::Unknown);
    /// What goes to peers, wherever it came from.
    pub const LEAVING: Self = Self::between(Link::Unknown, Link::Ours);

    /// WireGuard's own packets, which other hosts send to its port and it sends to them. `None`: none of them
    /// passes this hook.
    #[must_use]
    pub const fn of_wireguard_at(hook: Hook, port: u16) -> Option<Self> {
        let (way, wireguard) = match hook {
            Hook::Prerouting => (Self::between(Link::Another, Link::Unknown), Datagrams::To(port)),
            Hook::Input => (Self::between(Link::Another, Link::Absent), Datagrams::To(port)),
            Hook::Forward => return None,
            Hook::Output | Hook::Postrouting => {
                (Self::between(Link::Absent, Link::Another), Datagrams::From(port))
            }
        };
        Some(Self { wireguard: Some(wireguard), ..way })
    }

    const fn between(incoming: Link, outgoing: Link) -> Self {
        Self { incoming, outgoing, wireguard: None }
    }
}

/// What rules name about our packets, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Named {
    #[default]
    Nothing,
    /// Their protocol, or ports that do not include theirs. A rule that accepts by this alone is not for them.
    Protocol,
    /// Our link, or their port.
    Us,
}
