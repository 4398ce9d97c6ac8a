//! The effect of an acknowledged step on a reading of the kernel.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Step;
use crate::model::{
    LinkOwner, ObservedFirewall, ObservedInterface, ObservedState, Peer, PublicKey, Tag, network,
};

/// The MTU the kernel gives a new WireGuard link: 1500 less 80 bytes of outer headers
/// (`wg_setup` in `drivers/net/wireguard/device.c`).
const NEW_LINK_MTU_BYTES: u32 = 1420;

impl ObservedState {
    /// Changes this reading as an acknowledged `step` changes the kernel.
    ///
    /// A step whose object is missing (another program removed the peer meanwhile) changes nothing, as in the
    /// kernel.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Firewall { change, .. } => ObservedFirewall::apply(&mut self.firewall, change),
            Step::RemovePeer { key } => {
                self.peers.remove(key);
            }
            Step::AddPeer { key, peer } => {
                self.peers.insert(*key, peer.clone());
            }
            Step::NarrowPeer { key, allowed_ips } => {
                self.with_peer(key, |peer| {
                    peer.allowed_ips = peer.allowed_ips.intersection(allowed_ips);
                });
            }
            Step::WidenPeer { key, allowed_ips } => self.with_peer(key, |peer| {
                peer.allowed_ips = peer.allowed_ips.iter().chain(allowed_ips.iter()).collect();
            }),
            Step::SetPresharedKey { key, preshared_key } => {
                self.with_peer(key, |peer| peer.preshared_key.clone_from(preshared_key));
            }
            Step::SetKeepalive { key, keepalive_secs } => {
                self.with_peer(key, |peer| peer.keepalive_secs = *keepalive_secs);
            }
            Step::AddRoute { prefix } => {
                self.routes.insert(*prefix, Tag::Ours);
            }
            Step::RemoveRoute { prefix } => {
                self.routes.remove(prefix);
            }
            Step::AddRules { rules } => self.routing.rules.extend(rules.iter().cloned()),
            Step::RemoveRules { rules } => {
                self.routing.rules.retain(|rule| !rules.contains(rule));
            }
            Step::CutFlows { .. } => {}
            _ => self.apply_to_link(step),
        }
    }

    fn apply_to_link(&mut self, step: &Step) {
        if let Step::CreateLink { name, gateway_id } = step {
            self.interface = Some(ObservedInterface {
                name: name.as_str().into(),
                owner: LinkOwner::Ours(*gateway_id),
                up: false,
                has_master: false,
                sessions_ended: false,
                public_key: None,
                listen_port: 0,
                fwmark: 0,
                mtu_bytes: NEW_LINK_MTU_BYTES,
                addresses: BTreeMap::new(),
            });
        }
        if let Step::TakeDown { name } = step
            && let Some(stray) = self.strays.get_mut(name)
        {
            stray.up = false;
        }
        let Self { interface: Some(interface), routes, .. } = self else { return };
        match step {
            Step::RenameLink { to, .. } => interface.name = to.as_str().into(),
            Step::FreeLink { .. } => {
                interface.has_master = false;
                if interface.up {
                    make_routes(interface, routes);
                }
            }
            Step::OpenSessions => interface.sessions_ended = false,
            Step::ClaimLink { gateway_id } => interface.owner = LinkOwner::Ours(*gateway_id),
            Step::SetMtu { bytes } => interface.mtu_bytes = *bytes,
            Step::SetPrivateKey { private_key } => {
                interface.public_key = Some(private_key.public_key());
            }
            Step::SetListenPort { port } => interface.listen_port = *port,
            Step::SetFwmark { fwmark } => interface.fwmark = *fwmark,
            Step::AddAddress { address } => add_address(interface, routes, *address),
            Step::ReplaceAddress { from, to } => {
                remove_address(interface, routes, from);
                add_address(interface, routes, *to);
            }
            Step::RemoveAddress { address } => remove_address(interface, routes, address),
            Step::SetUp => {
                interface.up = true;
                make_routes(interface, routes);
            }
            _ => {}
        }
    }

    fn with_peer(&mut self, key: &PublicKey, change: impl FnOnce(&mut Peer)) {
        if let Some(peer) = self.peers.get_mut(key) {
            change(peer);
        }
    }
}

/// A link that comes up gets a route to the network of each of its addresses.
fn make_routes(interface: &ObservedInterface, routes: &mut BTreeMap<IpNet, Tag>) {
    for network in interface.networks() {
        routes.entry(network).or_insert(Tag::Foreign);
    }
}

/// On a link that is up the kernel makes a route to an address's network.
fn add_address(
    interface: &mut ObservedInterface,
    routes: &mut BTreeMap<IpNet, Tag>,
    address: IpNet,
) {
    interface.addresses.insert(address, Tag::Ours);
    if let Some(network) = network(&address)
        && interface.up
    {
        routes.entry(network).or_insert(Tag::Foreign);
    }
}

/// Removes an address. With the last address in a network the kernel removes the route there.
fn remove_address(
    interface: &mut ObservedInterface,
    routes: &mut BTreeMap<IpNet, Tag>,
    address: &IpNet,
) {
    interface.addresses.remove(address);
    if let Some(network) = network(address)
        && routes.get(&network) == Some(&Tag::Foreign)
        && !interface.networks().any(|left| left == network)
    {
        routes.remove(&network);
    }
}
