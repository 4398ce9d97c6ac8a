//! What an acknowledged step makes of the observed state.

use crate::model::{LinkOwner, ObservedFirewall, ObservedInterface, ObservedState, Tag};
use crate::plan::Step;

/// Makes `observed` what it is after the kernel has acknowledged `step`.
pub(super) fn acknowledge(observed: &mut ObservedState, step: &Step) {
    match step {
        Step::Firewall { change, .. } => ObservedFirewall::obey(&mut observed.firewall, change),
        Step::RemovePeer { key } => {
            observed.peers.remove(key);
        }
        Step::AddPeer { key, peer } => {
            observed.peers.insert(*key, peer.clone());
        }
        Step::AddRoute { prefix } => {
            observed.routes.insert(*prefix);
        }
        Step::RemoveRoute { prefix } => {
            observed.routes.remove(prefix);
        }
        Step::NarrowPeer { .. }
        | Step::WidenPeer { .. }
        | Step::SetPresharedKey { .. }
        | Step::SetKeepalive { .. } => acknowledge_peer(observed, step),
        _ => acknowledge_interface(&mut observed.interface, step),
    }
}

fn acknowledge_peer(observed: &mut ObservedState, step: &Step) {
    match step {
        Step::NarrowPeer { key, allowed_ips } => {
            if let Some(peer) = observed.peers.get_mut(key) {
                peer.allowed_ips = allowed_ips.clone();
            }
        }
        Step::WidenPeer { key, allowed_ips } => {
            if let Some(peer) = observed.peers.get_mut(key) {
                peer.allowed_ips = peer.allowed_ips.iter().chain(allowed_ips.iter()).collect();
            }
        }
        Step::SetPresharedKey { key, preshared_key } => {
            if let Some(peer) = observed.peers.get_mut(key) {
                peer.preshared_key = preshared_key.clone();
            }
        }
        Step::SetKeepalive { key, keepalive_secs } => {
            if let Some(peer) = observed.peers.get_mut(key) {
                peer.keepalive_secs = *keepalive_secs;
            }
        }
        _ => {}
    }
}

fn acknowledge_interface(slot: &mut Option<ObservedInterface>, step: &Step) {
    if let Step::CreateLink { gateway_id, .. } = step {
        *slot = Some(ObservedInterface {
            owner: LinkOwner::Ours(*gateway_id),
            up: false,
            public_key: None,
            listen_port: 0,
            fwmark: 0,
            mtu_bytes: 0,
            addresses: std::collections::BTreeMap::default(),
        });
    }
    let Some(interface) = slot else { return };
    match step {
        Step::ClaimLink { gateway_id } => interface.owner = LinkOwner::Ours(*gateway_id),
        Step::SetMtu { bytes } => interface.mtu_bytes = *bytes,
        Step::SetPrivateKey { private_key } => {
            interface.public_key = Some(private_key.public_key());
        }
        Step::SetListenPort { port } => interface.listen_port = *port,
        Step::SetFwmark { fwmark } => interface.fwmark = *fwmark,
        Step::SetUp => interface.up = true,
        Step::AddAddress { address } => {
            interface.addresses.insert(*address, Tag::Ours);
        }
        Step::RemoveAddress { address } => {
            interface.addresses.remove(address);
        }
        _ => {}
    }
}
