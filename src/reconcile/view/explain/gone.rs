//! The answer for a held peer that no row names.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;

use super::answer::{Answer, Grounds, contradiction, reaches};
use crate::model::{Departed, ObservedState, PublicKey};
use crate::plan::HeldPeer;
use crate::reconcile::name::{is_named, name_of};

/// Whether `who` means this peer: by a name, an id, its key or one of its addresses.
pub(super) fn is_meant(
    (key, departed, held): (&PublicKey, &Departed, &HeldPeer),
    who: &str,
) -> bool {
    let is_held = |address: IpAddr| held.allowed_ips().contains(&IpNet::from(address));
    key.to_string() == who || who.parse().is_ok_and(is_held) || is_named(departed, who)
}

/// What the peer may reach is what it keeps, whatever policies would grant it if its row were there.
pub(super) fn answer(
    (key, departed, held): (&PublicKey, &Departed, &HeldPeer),
    observed: Option<&ObservedState>,
    destination: IpAddr,
) -> Answer {
    let prefixes = held.allowed_ips();
    // Rather its address than a network behind it.
    let prefix = prefixes.iter().max_by_key(|it| it.prefix_len()).unwrap_or_default();
    let wanted = held.allows(&prefix, destination);
    let allows = observed.map(|observed| reaches(observed, key, &prefix, destination));
    let mut remarks = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        remarks,
        "  the removal waits for `gatepost confirm`: {}; the peer keeps what it could reach, less what \
         policies have taken since",
        held.cause()
    );
    let details = json!({
        "peer_id": departed.peer_id,
        "user": departed.username,
        "device": departed.device_name,
        "allowed": wanted,
        "left_out": null,
        "held": held.cause().to_string(),
        "kernel_allows": allows,
        "counters": null,
        "explanation": null,
    });
    let judged_by = observed.and_then(|observed| {
        let firewall = observed.firewall.as_ref()?;
        let (_, id) = firewall.judged_by(prefix.addr())?;
        Some((id, firewall.holders(id)))
    });
    Answer {
        allowed: wanted && allows != Some(false),
        admitted: true,
        peer: format!("{} ({})", name_of(&departed.username, &departed.device_name), prefix.addr()),
        grounds: Grounds::Kept { destination, allowed: wanted },
        device_id: departed.device_id,
        left_out: None,
        remarks: remarks + &contradiction(wanted, allows),
        details,
        judged_by,
    }
}
