//! Peer steps as messages of `WG_CMD_SET_DEVICE` (include/uapi/linux/wireguard.h). Pure.

use std::ops::Range;

use ipnet::IpNet;
use netlink_packet_core::Emitable;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardPeer,
    WireguardPeerAttribute as Attribute, WireguardPeerFlags as Flags,
};

use crate::model::{AllowedIps, PublicKey};
use crate::plan::Step;

/// Beyond this a message is closed. Twice the size is no faster.
const MESSAGE_BYTES: usize = 12 * 1024;
/// An attribute holds 64 KiB less its header: this many IPv6 prefixes at 40 bytes are 40 KiB. A peer
/// with more is written in several messages.
const PREFIXES_PER_ENTRY: usize = 1024;

/// Steps that go in one message, or one step that needs several.
pub(super) struct Batch {
    /// Which of the steps given.
    pub steps: Range<usize>,
    /// The peers of each message.
    pub messages: Vec<Vec<WireguardPeer>>,
}

/// Packs peer steps into messages, in their order, each when it is asked for: the kernel works on
/// one while no other takes up memory. Any other step is a batch without messages.
pub(super) fn pack(steps: &[Step]) -> impl Iterator<Item = Batch> {
    let mut next = 0;
    // The entries of the next step, where they did not fit into the batch before.
    let mut ahead = None;
    std::iter::from_fn(move || {
        let mut message = ahead.take().or_else(|| steps.get(next).map(entries))?;
        let start = next;
        next += 1;
        if message.len() != 1 {
            let messages = message.into_iter().map(|entry| vec![entry]).collect();
            return Some(Batch { steps: start..next, messages });
        }
        let mut room = MESSAGE_BYTES.saturating_sub(len_bytes(&message));
        while let Some(step) = steps.get(next) {
            let mut entries = entries(step);
            let bytes = len_bytes(&entries);
            if entries.len() != 1 || bytes > room {
                ahead = Some(entries);
                break;
            }
            message.append(&mut entries);
            room -= bytes;
            next += 1;
        }
        Some(Batch { steps: start..next, messages: vec![message] })
    })
}

fn len_bytes(entries: &[WireguardPeer]) -> usize {
    entries.iter().map(Emitable::buffer_len).sum()
}

/// What removes a peer. An unknown peer stays unknown.
pub(super) fn removal(key: &PublicKey) -> WireguardPeer {
    entry(key, Flags::RemoveMe, [])
}

/// One step's entries in the peer list: one, unless its prefixes need more.
fn entries(step: &Step) -> Vec<WireguardPeer> {
    match step {
        Step::RemovePeer { key } => vec![removal(key)],
        Step::NarrowPeer { key, allowed_ips } => {
            with_prefixes(key, Flags::UpdateOnly | Flags::ReplaceAllowedIps, vec![], allowed_ips)
        }
        Step::WidenPeer { key, allowed_ips } => {
            with_prefixes(key, Flags::UpdateOnly, vec![], allowed_ips)
        }
        Step::AddPeer { key, peer } => {
            let mut attributes = Vec::with_capacity(4);
            if let Some(preshared_key) = &peer.preshared_key {
                attributes.push(Attribute::PresharedKey(*preshared_key.expose_bytes()));
            }
            if peer.keepalive_secs != 0 {
                attributes.push(Attribute::PersistentKeepalive(peer.keepalive_secs));
            }
            // Replacing costs nothing where there is nothing yet, and if the peer came to be since
            // it was looked for, it ends with these prefixes and no others.
            with_prefixes(key, Flags::ReplaceAllowedIps, attributes, &peer.allowed_ips)
        }
        Step::SetPresharedKey { key, preshared_key } => {
            // All zero is how the interface says "none".
            let bytes = preshared_key.as_ref().map_or([0; 32], |psk| *psk.expose_bytes());
            vec![entry(key, Flags::UpdateOnly, [Attribute::PresharedKey(bytes)])]
        }
        Step::SetKeepalive { key, keepalive_secs } => {
            let keepalive = Attribute::PersistentKeepalive(*keepalive_secs);
            vec![entry(key, Flags::UpdateOnly, [keepalive])]
        }
        _ => vec![],
    }
}

fn with_prefixes(
    key: &PublicKey,
    flags: Flags,
    attributes: Vec<Attribute>,
    allowed_ips: &AllowedIps,
) -> Vec<WireguardPeer> {
    let mut chunks = allowed_ips.as_slice().chunks(PREFIXES_PER_ENTRY);
    let first = chunks.next().unwrap_or_default();
    let mut entries = vec![entry(key, flags, attributes.into_iter().chain(prefixes(first)))];
    entries.extend(chunks.map(|chunk| entry(key, Flags::UpdateOnly, prefixes(chunk))));
    entries
}

fn entry(
    key: &PublicKey,
    flags: Flags,
    attributes: impl IntoIterator<Item = Attribute>,
) -> WireguardPeer {
    let mut all = vec![Attribute::PublicKey(*key.as_bytes()), Attribute::Flags(flags)];
    all.extend(attributes);
    WireguardPeer(all)
}

fn prefixes(prefixes: &[IpNet]) -> Option<Attribute> {
    let list = |prefix: &IpNet| {
        let family = match prefix {
            IpNet::V4(_) => WireguardAddressFamily::Ipv4,
            IpNet::V6(_) => WireguardAddressFamily::Ipv6,
        };
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(prefix.addr()),
            WireguardAllowedIpAttr::Cidr(prefix.prefix_len()),
        ])
    };
    let prefixes: Vec<_> = prefixes.iter().map(list).collect();
    (!prefixes.is_empty()).then_some(Attribute::AllowedIps(prefixes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Peer;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes).unwrap()
    }

    fn flags(entry: &WireguardPeer) -> Flags {
        let flags = entry.0.iter().find_map(|attribute| match attribute {
            Attribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        flags.unwrap()
    }

    fn add(number: u32, prefixes: usize) -> Step {
        let prefix = |index: usize| {
            let address = std::net::Ipv4Addr::from(u32::try_from(index).unwrap() + (10 << 24));
            IpNet::new(address.into(), 32).unwrap()
        };
        let allowed_ips = (0..prefixes).map(prefix).collect();
        Step::AddPeer { key: key(number), peer: Peer { allowed_ips, ..Peer::default() } }
    }

    #[test]
    fn every_step_is_in_exactly_one_batch_and_no_message_is_too_long() {
        let steps: Vec<Step> = (0..1000).map(|number| add(number, 1)).collect();
        let batches: Vec<Batch> = pack(&steps).collect();
        assert!(batches.len() > 4 && batches.len() < 20, "{}", batches.len());
        let mut next = 0;
        for batch in &batches {
            assert_eq!(batch.steps.start, next);
            next = batch.steps.end;
            assert_eq!(batch.messages.len(), 1);
            assert_eq!(batch.messages[0].len(), batch.steps.len());
            let bytes = len_bytes(&batch.messages[0]);
            assert!(bytes <= MESSAGE_BYTES, "{bytes}");
        }
        assert_eq!(next, steps.len());
    }

    #[test]
    fn a_peer_with_many_prefixes_is_replaced_once_and_then_only_widened() {
        let steps = [add(1, 1), add(2, 2500), add(3, 1)];
        let batches: Vec<Batch> = pack(&steps).collect();
        let counts: Vec<_> = batches.iter().map(|batch| batch.messages.len()).collect();
        assert_eq!(counts, [1, 3, 1]);
        let flags: Vec<_> = batches[1].messages.iter().map(|peers| flags(&peers[0])).collect();
        assert_eq!(flags, [Flags::ReplaceAllowedIps, Flags::UpdateOnly, Flags::UpdateOnly]);
    }

    #[test]
    fn only_an_added_peer_may_come_to_be() {
        let allowed_ips: AllowedIps = ["10.0.0.1/32".parse().unwrap()].into_iter().collect();
        let steps = [
            Step::NarrowPeer { key: key(1), allowed_ips: AllowedIps::default() },
            Step::WidenPeer { key: key(1), allowed_ips },
            Step::SetPresharedKey { key: key(1), preshared_key: None },
            Step::SetKeepalive { key: key(1), keepalive_secs: 25 },
        ];
        for step in &steps {
            let entries = entries(step);
            assert!(flags(&entries[0]).contains(Flags::UpdateOnly), "{step}");
        }
        assert_eq!(flags(&entries(&Step::RemovePeer { key: key(1) })[0]), Flags::RemoveMe);
    }
}
