//! Changes of peers as the engine takes them.

use std::net::SocketAddr;

use gotatun::device::Peer;
use gotatun::device::configure::{DeviceWrite, PeerMut};
use gotatun::x25519::PublicKey as Point;
use ipnet::IpNet;
use ipnetwork::IpNetwork;

use super::request::PeerChange;
use super::transport::Transports;
use crate::model::PublicKey;

/// One change of a peer in the engine.
pub(super) enum Edit {
    Remove(PublicKey),
    Add(Box<Peer>),
    Modify(Modification),
}

/// A change of a peer that is there. What is `None` stays as it is.
pub(super) struct Modification {
    key: PublicKey,
    preshared_key: Option<Option<[u8; 32]>>,
    endpoint: Option<SocketAddr>,
    keepalive_secs: Option<u16>,
    prefixes: Vec<IpNetwork>,
}

impl Edit {
    /// With `reset`, what the change does not name is as in a new peer.
    pub fn of(change: &PeerChange, prefixes: Vec<IpNetwork>, is_there: bool, reset: bool) -> Self {
        let preshared_key = change.preshared_key.as_ref();
        let preshared_key = preshared_key.map(|key| key.as_ref().map(|key| *key.expose_bytes()));
        if is_there {
            return Self::Modify(Modification {
                preshared_key: preshared_key.or(reset.then_some(None)),
                endpoint: change.endpoint,
                keepalive_secs: change.keepalive_secs.or(reset.then_some(0)),
                ..Modification::of(change.key, prefixes)
            });
        }
        let mut peer = Peer::new(Point::from(*change.key.as_bytes()));
        peer.preshared_key = preshared_key.flatten();
        peer.endpoint = change.endpoint;
        peer.keepalive = change.keepalive_secs.filter(|secs| *secs != 0);
        peer.allowed_ips = prefixes;
        Self::Add(Box::new(peer))
    }

    pub async fn apply(self, device: &mut DeviceWrite<'_, Transports>) {
        match self {
            Self::Remove(key) => {
                device.remove_peer(&Point::from(*key.as_bytes())).await;
            }
            Self::Add(peer) => {
                device.add_peer(*peer);
            }
            Self::Modify(change) => {
                let key = Point::from(*change.key.as_bytes());
                device.modify_peer(&key, |peer| change.apply(peer)).await;
            }
        }
    }
}

impl Modification {
    pub const fn of(key: PublicKey, prefixes: Vec<IpNetwork>) -> Self {
        Self { key, preshared_key: None, endpoint: None, keepalive_secs: None, prefixes }
    }

    fn apply(self, peer: &mut PeerMut) {
        if let Some(preshared_key) = self.preshared_key {
            peer.set_preshared_key(preshared_key);
        }
        if self.endpoint.is_some() {
            peer.set_endpoint(self.endpoint);
        }
        if let Some(secs) = self.keepalive_secs {
            peer.set_keepalive(Some(secs).filter(|secs| *secs != 0));
        }
        peer.clear_allowed_ips();
        peer.add_allowed_ips(self.prefixes);
    }
}

pub(super) fn networks(prefixes: impl IntoIterator<Item = IpNet>) -> Vec<IpNetwork> {
    let network = |prefix: IpNet| IpNetwork::new(prefix.addr(), prefix.prefix_len()).ok();
    prefixes.into_iter().filter_map(network).collect()
}
