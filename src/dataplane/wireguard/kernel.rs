//! WireGuard in the kernel, by generic netlink on one socket that stays open.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;
use zeroize::Zeroizing;

use super::codec::{Known, ObservedPeers, Peers};
use super::endpoints::Endpoints;
use super::sys::{
    CMD_GET_DEVICE, CMD_SET_DEVICE, DEVICE_FWMARK, DEVICE_IFINDEX, DEVICE_LISTEN_PORT,
    DEVICE_PEERS, DEVICE_PRIVATE_KEY, VERSION, ctrl,
};
use super::{DeviceReading, codec, dump::DeviceDump};
use crate::dataplane::netlink::{Channel, Encoded, NLA_F_NESTED, NetlinkError, Request, put};
use crate::model::PrivateKey;
use crate::plan::Step;

/// The kernel's WireGuard devices in this thread's network namespace, each known by its link's index:
/// a name may pass to another link at any time.
pub(crate) struct Kernel {
    channel: Channel,
    /// The number the kernel gave the family `wireguard` when its module was loaded.
    family: Option<u16>,
    endpoints: Endpoints,
}

impl Kernel {
    /// Opens the socket. The module need not be loaded yet.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            channel: Channel::open(NETLINK_GENERIC)?,
            family: None,
            endpoints: Endpoints::default(),
        })
    }

    /// Reads a device with all its peers.
    pub fn read(&mut self, link_index: u32) -> Result<DeviceReading, NetlinkError> {
        let body = device(CMD_GET_DEVICE, link_index, None);
        let reading = self.with_family(|channel, kind| {
            let dump = channel.dump(&Encoded { kind, body: &body }, DeviceDump::read)?;
            Ok(dump.finish())
        })?;
        self.endpoints.note(&reading.traffic, SystemTime::now(), Instant::now());
        Ok(reading)
    }

    /// Reads a device without its peers. The kernel describes a device only in a dump, but the first
    /// message of the dump has everything that is not a peer.
    pub fn read_but_peers(&mut self, link_index: u32) -> Result<DeviceReading, NetlinkError> {
        let body = device(CMD_GET_DEVICE, link_index, None);
        self.with_family(|_, kind| {
            let get = Encoded { kind, body: &body };
            let dump = Channel::open(NETLINK_GENERIC)?.first_of_dump(&get, DeviceDump::read)?;
            Ok(DeviceReading { peers: BTreeMap::new(), traffic: BTreeMap::new(), ..dump.finish() })
        })
    }

    /// Sets the private key.
    pub fn set_private_key(
        &mut self,
        link_index: u32,
        key: &PrivateKey,
    ) -> Result<(), NetlinkError> {
        self.set(link_index, DEVICE_PRIVATE_KEY, key.expose_bytes())
    }

    /// Sets the UDP port. On a link that is up, a port in use is refused with `EADDRINUSE` and the
    /// old one goes on; on a link that is down, it is the link's coming up that is refused.
    pub fn set_listen_port(&mut self, link_index: u32, port: u16) -> Result<(), NetlinkError> {
        self.set(link_index, DEVICE_LISTEN_PORT, &port.to_ne_bytes())
    }

    /// Sets the mark on encrypted packets.
    pub fn set_fwmark(&mut self, link_index: u32, fwmark: u32) -> Result<(), NetlinkError> {
        self.set(link_index, DEVICE_FWMARK, &fwmark.to_ne_bytes())
    }

    /// Applies peer steps, many in a message, and returns what became of each. `observed` are the peers
    /// before them.
    pub fn write_peers(
        &mut self,
        link_index: u32,
        steps: &[Step],
        observed: &ObservedPeers,
    ) -> Vec<Result<(), NetlinkError>> {
        let endpoints = std::mem::take(&mut self.endpoints);
        let known = Known { peers: observed, endpoints: &endpoints };
        let written = apply_peers(steps, known, |messages| {
            let set = |peers: &Peers| self.set(link_index, DEVICE_PEERS | NLA_F_NESTED, peers);
            messages.iter().try_for_each(set)
        });
        self.endpoints = endpoints;
        written
    }

    /// Begins a handshake with those of the peers that had a session until now: a link that was down, or
    /// had another key or port, has lost it, and its clients would notice only 15 s later.
    pub fn call_peers(
        &mut self,
        link_index: u32,
        peers: &ObservedPeers,
    ) -> Result<(), NetlinkError> {
        let endpoints = std::mem::take(&mut self.endpoints);
        let called = codec::calls(Known { peers, endpoints: &endpoints })
            .try_for_each(|calls| self.set(link_index, DEVICE_PEERS | NLA_F_NESTED, &calls));
        self.endpoints = endpoints;
        called
    }

    fn set(&mut self, link_index: u32, attribute: u16, value: &[u8]) -> Result<(), NetlinkError> {
        let body = device(CMD_SET_DEVICE, link_index, Some((attribute, value)));
        self.with_family(|channel, kind| {
            channel.request(Request::new(Encoded { kind, body: &body }))
        })
    }

    /// The family's number is looked up once. It changes when the module is unloaded and loaded
    /// again; the kernel then answers `ENOENT` to the old one, and it is looked up once more.
    fn with_family<T>(
        &mut self,
        mut act: impl FnMut(&mut Channel, u16) -> Result<T, NetlinkError>,
    ) -> Result<T, NetlinkError> {
        if let Some(family) = self.family {
            match act(&mut self.channel, family) {
                Err(error) if error.refusal() == Some(Errno::ENOENT) => self.family = None,
                done => return done,
            }
        }
        let family = look_up(&mut self.channel)?;
        self.family = Some(family);
        act(&mut self.channel, family)
    }
}

/// Sends steps in batches. The kernel stops a message at the first entry it refuses and does not say
/// which one: the steps of such a message are sent again one by one, so that only the bad one is
/// refused. A peer that could not be added completely is removed again.
fn apply_peers(
    steps: &[Step],
    known: Known<'_>,
    mut send: impl FnMut(&[Peers]) -> Result<(), NetlinkError>,
) -> Vec<Result<(), NetlinkError>> {
    let mut results = Vec::with_capacity(steps.len());
    for batch in codec::pack(steps, known) {
        let steps = &steps[batch.steps];
        if batch.messages.is_empty() {
            let unsuited = NetlinkError::Unsuited("the step changes no peer");
            results.extend(steps.iter().map(|_| Err(unsuited.clone())));
            continue;
        }
        match send(&batch.messages) {
            Ok(()) => results.extend(steps.iter().map(|_| Ok(()))),
            Err(NetlinkError::Refused { .. }) => {
                results.extend(steps.iter().map(|step| apply_peer(step, known, &mut send)));
            }
            Err(error) => results.extend(steps.iter().map(|_| Err(error.clone()))),
        }
    }
    results
}

fn apply_peer(
    step: &Step,
    known: Known<'_>,
    send: &mut impl FnMut(&[Peers]) -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    let batches = codec::pack(std::slice::from_ref(step), known);
    let sent = send(&batches.flat_map(|batch| batch.messages).collect::<Vec<_>>());
    // If this fails too, the next reading finds the remains.
    let _ = match (&sent, step) {
        (Err(_), Step::AddPeer { key, .. }) => send(&[codec::removal(key)]),
        (Err(_), Step::NarrowPeer { .. }) => send(&[codec::removal_of_throw_away()]),
        _ => Ok(()),
    };
    sent
}

/// A command about a device, with one more attribute. It may hold keys.
fn device(command: u8, link_index: u32, more: Option<(u16, &[u8])>) -> Zeroizing<Vec<u8>> {
    const OTHER_BYTES: usize = 32;
    let more_bytes = more.map_or(0, |(_, value)| value.len());
    let mut body = Zeroizing::new(Vec::with_capacity(OTHER_BYTES + more_bytes));
    body.extend_from_slice(&[command, VERSION, 0, 0]);
    put(&mut body, DEVICE_IFINDEX, &link_index.to_ne_bytes());
    if let Some((kind, value)) = more {
        put(&mut body, kind, value);
    }
    body
}

fn look_up(channel: &mut Channel) -> Result<u16, NetlinkError> {
    let mut body = vec![ctrl::CMD_GET_FAMILY, ctrl::VERSION, 0, 0];
    put(&mut body, ctrl::FAMILY_NAME, b"wireguard\0");
    let get = Encoded { kind: ctrl::FAMILY, body: &body };
    channel.get(&get, |family: &mut u16, message| {
        let (_, attributes) = message.split::<4>("CTRL_CMD_NEWFAMILY")?;
        *family = attributes.require(ctrl::FAMILY_ID)?.u16()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::sys::PEER_REMOVE_ME;
    use super::*;
    use crate::model::{Peer, PublicKey};

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    /// A kernel that creates every peer, and then refuses one of them.
    struct RefusingKernel {
        refuses: PublicKey,
        holds: BTreeSet<[u8; 32]>,
        refusals: usize,
    }

    impl RefusingKernel {
        fn apply(&mut self, messages: &[Peers]) -> Result<(), NetlinkError> {
            for (key, flags) in messages.iter().flat_map(|peers| codec::keys_and_flags(peers)) {
                if flags & PEER_REMOVE_ME != 0 {
                    self.holds.remove(&key);
                    continue;
                }
                self.holds.insert(key);
                if key == *self.refuses.as_bytes() {
                    self.refusals += 1;
                    let message = String::new();
                    return Err(NetlinkError::Refused { errno: Errno::EINVAL, message });
                }
            }
            Ok(())
        }
    }

    fn write(
        steps: &[Step],
        send: impl FnMut(&[Peers]) -> Result<(), NetlinkError>,
    ) -> Vec<Result<(), NetlinkError>> {
        let (peers, endpoints) = (ObservedPeers::default(), Endpoints::default());
        apply_peers(steps, Known { peers: &peers, endpoints: &endpoints }, send)
    }

    #[test]
    fn only_the_bad_peer_of_a_batch_is_refused_and_it_leaves_nothing_behind() {
        let mut kernel = RefusingKernel { refuses: key(3), holds: BTreeSet::new(), refusals: 0 };
        let add = |number| Step::AddPeer { key: key(number), peer: Peer::default() };
        let steps: Vec<Step> = (1..=5).map(add).collect();
        let results = write(&steps, |messages| kernel.apply(messages));
        let refused: Vec<_> = results.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, false, true, false, false]);
        assert_eq!(kernel.refusals, 2, "once in the batch, once alone");
        let expected: BTreeSet<_> = [1, 2, 4, 5].map(|number| [number; 32]).into();
        assert_eq!(kernel.holds, expected);
    }

    #[test]
    fn a_step_that_changes_no_peer_is_refused() {
        let steps =
            [Step::RemovePeer { key: key(1) }, Step::SetUp, Step::RemovePeer { key: key(2) }];
        let results = write(&steps, |_| Ok(()));
        let refused: Vec<_> = results.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, true, false]);
    }

    #[test]
    fn no_step_succeeds_on_a_broken_socket() {
        let broken = NetlinkError::Socket { call: "send", errno: Errno::EBADF };
        let steps = [Step::RemovePeer { key: key(1) }, Step::RemovePeer { key: key(2) }];
        let results = write(&steps, |_| Err(broken.clone()));
        assert_eq!(results, [Err(broken.clone()), Err(broken.clone())]);
    }
}
