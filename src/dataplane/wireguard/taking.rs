//! The requests of steps that only take away. Pure.

use zeroize::Zeroizing;

use super::DeviceReading;
use super::uapi;
use crate::plan::Step;

/// The request of a step that only takes away; `None`: it is another step.
pub(super) fn taking(step: &Step) -> Option<Zeroizing<String>> {
    match step {
        Step::RemovePeer { key } => Some(uapi::removal(key).into()),
        Step::NarrowPeer { key, allowed_ips } => Some(uapi::narrowing(key, allowed_ips)),
        _ => None,
    }
}

/// The request of several such steps.
pub(super) fn all_taking<'a>(steps: impl Iterator<Item = &'a Step>) -> Option<String> {
    let lines = steps.map(taking).collect::<Option<Vec<_>>>()?;
    Some(lines.iter().map(|it| it.as_str()).collect::<Vec<_>>().concat())
}

/// Follows a step that only takes away.
pub(super) fn note_taken(step: &Step, known: &mut Option<DeviceReading>) {
    let Some(known) = known else { return };
    match step {
        Step::RemovePeer { key } => {
            known.peers.remove(key);
        }
        Step::NarrowPeer { key, allowed_ips } => {
            if let Some(peer) = known.peers.get_mut(key) {
                peer.allowed_ips = allowed_ips.clone();
            }
        }
        _ => {}
    }
}
