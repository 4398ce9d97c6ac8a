//! WireGuard in the kernel, by generic netlink on one socket that stays open.

use std::collections::BTreeMap;

use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs};
use netlink_packet_generic::{GenlHeader, GenlMessage};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage, WireguardPeer};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::{DeviceReading, codec, dump::DeviceDump};
use crate::dataplane::netlink::{Borrowed, Channel, NetlinkError, Request};
use crate::model::PrivateKey;
use crate::plan::Step;

/// The kernel's WireGuard devices in this thread's network namespace, each known by its link's index:
/// a name may pass to another link at any time.
pub(crate) struct Kernel {
    channel: Channel,
    /// The number the kernel gave the family `wireguard` when its module was loaded.
    family: Option<u16>,
}

impl Kernel {
    /// Opens the socket. The module need not be loaded yet.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { channel: Channel::open(NETLINK_GENERIC)?, family: None })
    }

    /// Reads a device with all its peers.
    pub fn read(&mut self, link_index: u32) -> Result<DeviceReading, NetlinkError> {
        self.with_family(|channel, family| {
            let get = || message(family, WireguardCmd::GetDevice, link_index, []);
            let dump = channel.dump(get, |dump: &mut DeviceDump, _, payload| dump.take(payload))?;
            Ok(dump.finish())
        })
    }

    /// Reads a device without its peers. The kernel tells of a device only by dumping it, but with
    /// the first message of the dump comes all that is not a peer.
    pub fn read_but_peers(&mut self, link_index: u32) -> Result<DeviceReading, NetlinkError> {
        self.with_family(|_, family| {
            let get = message(family, WireguardCmd::GetDevice, link_index, []);
            let take = |dump: &mut DeviceDump, _, payload: &[u8]| dump.take(payload);
            let dump = Channel::open(NETLINK_GENERIC)?.first_of_dump(get, take)?;
            Ok(DeviceReading { peers: BTreeMap::new(), traffic: BTreeMap::new(), ..dump.finish() })
        })
    }

    /// Sets the private key.
    pub fn set_private_key(
        &mut self,
        link_index: u32,
        key: &PrivateKey,
    ) -> Result<(), NetlinkError> {
        self.set(link_index, WireguardAttribute::PrivateKey(*key.expose_bytes()))
    }

    /// Sets the UDP port. On a link that is up, a port in use is refused with `EADDRINUSE` and the
    /// old one goes on; on a link that is down, it is the link's coming up that is refused.
    pub fn set_listen_port(&mut self, link_index: u32, port: u16) -> Result<(), NetlinkError> {
        self.set(link_index, WireguardAttribute::ListenPort(port))
    }

    /// Sets the mark on encrypted packets.
    pub fn set_fwmark(&mut self, link_index: u32, fwmark: u32) -> Result<(), NetlinkError> {
        self.set(link_index, WireguardAttribute::Fwmark(fwmark))
    }

    /// Obeys peer steps, many in a message, and returns what became of each.
    pub fn write_peers(
        &mut self,
        link_index: u32,
        steps: &[Step],
    ) -> Vec<Result<(), NetlinkError>> {
        settle(steps, |messages| self.set_peers(link_index, messages))
    }

    fn set_peers(
        &mut self,
        link_index: u32,
        messages: Vec<Vec<WireguardPeer>>,
    ) -> Result<(), NetlinkError> {
        for peers in messages {
            self.set(link_index, WireguardAttribute::Peers(peers))?;
        }
        Ok(())
    }

    fn set(&mut self, link_index: u32, attribute: WireguardAttribute) -> Result<(), NetlinkError> {
        let mut set = message(0, WireguardCmd::SetDevice, link_index, [attribute]);
        self.with_family(|channel, family| {
            set.set_resolved_family_id(family);
            channel.request(Request::new(Borrowed(&set)))
        })
    }

    /// The family's number is looked up once. It changes when the module is unloaded and loaded
    /// again; the kernel then says `ENOENT` to the old one, and it is looked up once more.
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
/// which: the steps of such a message are sent again one by one, so that exactly the bad one is
/// refused. A peer that could not be added whole is not left half there.
fn settle(
    steps: &[Step],
    mut send: impl FnMut(Vec<Vec<WireguardPeer>>) -> Result<(), NetlinkError>,
) -> Vec<Result<(), NetlinkError>> {
    let mut verdicts = Vec::with_capacity(steps.len());
    for batch in codec::pack(steps) {
        let steps = &steps[batch.steps];
        if batch.messages.is_empty() {
            verdicts.extend(steps.iter().map(|_| Err(NetlinkError::Unsuited("no step of a peer"))));
            continue;
        }
        match send(batch.messages) {
            Ok(()) => verdicts.extend(steps.iter().map(|_| Ok(()))),
            Err(NetlinkError::Refused { .. }) => {
                verdicts.extend(steps.iter().map(|step| settle_one(step, &mut send)));
            }
            Err(error) => verdicts.extend(steps.iter().map(|_| Err(error.clone()))),
        }
    }
    verdicts
}

fn settle_one(
    step: &Step,
    send: &mut impl FnMut(Vec<Vec<WireguardPeer>>) -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    let batches = codec::pack(std::slice::from_ref(step));
    let sent = send(batches.flat_map(|batch| batch.messages).collect());
    if let (Err(_), Step::AddPeer { key, .. }) = (&sent, step) {
        // If this fails too, the next reading finds the remains.
        let _ = send(vec![vec![codec::removal(key)]]);
    }
    sent
}

fn message<const N: usize>(
    family: u16,
    cmd: WireguardCmd,
    link_index: u32,
    more: [WireguardAttribute; N],
) -> GenlMessage<WireguardMessage> {
    let mut attributes = vec![WireguardAttribute::IfIndex(link_index)];
    attributes.extend(more);
    let header = GenlHeader { cmd: cmd.into(), version: 1 };
    GenlMessage::new(header, WireguardMessage { cmd, attributes }, family)
}

fn look_up(channel: &mut Channel) -> Result<u16, NetlinkError> {
    let name = GenlCtrlAttrs::FamilyName("wireguard".to_owned());
    let payload = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] };
    let mut request = GenlMessage::from_payload(payload);
    request.finalize();
    let family = channel.get(request, |family: &mut Option<u16>, kind, payload| {
        let mut header = netlink_packet_core::NetlinkHeader::default();
        header.message_type = kind;
        let answer = GenlMessage::<GenlCtrl>::deserialize(&header, payload)
            .map_err(|_| NetlinkError::Malformed("an answer about the family wireguard"))?;
        *family = answer.payload.nlas.iter().find_map(|nla| match nla {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        Ok(())
    })?;
    family.ok_or(NetlinkError::Malformed("the family wireguard has no number"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netlink_packet_wireguard::{WireguardPeerAttribute, WireguardPeerFlags};

    use super::*;
    use crate::model::{Peer, PublicKey};

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    /// A kernel that makes every peer, and then finds that it does not like one of them.
    struct Picky {
        dislikes: PublicKey,
        holds: BTreeSet<[u8; 32]>,
        refusals: usize,
    }

    impl Picky {
        fn obey(&mut self, messages: Vec<Vec<WireguardPeer>>) -> Result<(), NetlinkError> {
            for entry in messages.into_iter().flatten() {
                let removes = WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe);
                let WireguardPeerAttribute::PublicKey(key) = entry.0[0] else { unreachable!() };
                if entry.0.contains(&removes) {
                    self.holds.remove(&key);
                    continue;
                }
                self.holds.insert(key);
                if key == *self.dislikes.as_bytes() {
                    self.refusals += 1;
                    let message = String::new();
                    return Err(NetlinkError::Refused { errno: Errno::EINVAL, message });
                }
            }
            Ok(())
        }
    }

    #[test]
    fn a_bad_peer_in_the_middle_is_refused_alone_and_leaves_nothing_behind() {
        let mut kernel = Picky { dislikes: key(3), holds: BTreeSet::new(), refusals: 0 };
        let add = |number| Step::AddPeer { key: key(number), peer: Peer::default() };
        let steps: Vec<Step> = (1..=5).map(add).collect();
        let verdicts = settle(&steps, |messages| kernel.obey(messages));
        let refused: Vec<_> = verdicts.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, false, true, false, false]);
        assert_eq!(kernel.refusals, 2, "once in the batch, once alone");
        let expected: BTreeSet<_> = [1, 2, 4, 5].map(|number| [number; 32]).into();
        assert_eq!(kernel.holds, expected);
    }

    #[test]
    fn what_is_no_step_of_a_peer_is_not_called_done() {
        let steps =
            [Step::RemovePeer { key: key(1) }, Step::SetUp, Step::RemovePeer { key: key(2) }];
        let verdicts = settle(&steps, |_| Ok(()));
        let refused: Vec<_> = verdicts.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, true, false]);
    }

    #[test]
    fn after_a_broken_socket_no_step_is_called_done() {
        let broken = NetlinkError::Socket { call: "send", errno: Errno::EBADF };
        let steps = [Step::RemovePeer { key: key(1) }, Step::RemovePeer { key: key(2) }];
        let verdicts = settle(&steps, |_| Err(broken.clone()));
        assert_eq!(verdicts, [Err(broken.clone()), Err(broken.clone())]);
    }
}
