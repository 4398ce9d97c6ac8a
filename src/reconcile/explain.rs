//! Answers "why can, or can't, this user reach that?", from the rows and from the kernel.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;

use super::ledger::peer_name;
use super::status::Explanation;
use crate::model::policy::{Verdict, dns_addresses};
use crate::model::{DesiredState, KeyText, ObservedState, PeerRow, Standing};

/// More peers than this are not explained at once.
const EXPLAINED_AT_MOST: usize = 10;

/// The verdict for what `who` (a user, a device, a tunnel address, a key, an id, or `user/device`)
/// sends to `destination`. Of several peers, one that is denied makes the whole denied.
///
/// # Errors
/// In words: whom nobody knows, or what is no address.
pub(super) fn explain(
    desired: &DesiredState,
    observed: Option<&ObservedState>,
    who: &str,
    destination: &str,
) -> Result<Explanation, String> {
    let destination: IpAddr = destination.trim().parse().map_err(|_| {
        format!("{destination:?} is no address: give one such as 172.16.1.20 or fd10::20")
    })?;
    let matching: Vec<_> = desired.rows().filter(|(row, _)| is_meant(row, who)).collect();
    if matching.is_empty() {
        return Err(format!(
            "no peer of this gateway is {who:?}: give a user, a device, user/device, a tunnel \
             address or a public key; `gatepost peers` lists them"
        ));
    }
    if matching.len() > EXPLAINED_AT_MOST {
        let count = matching.len();
        return Err(format!("{who:?} means {count} peers: give user/device or a tunnel address"));
    }
    let mut whole = Explanation { allowed: true, text: String::new(), details: json!([]) };
    let mut details = Vec::new();
    for (row, standing) in matching {
        let (allowed, text, detail) = one(desired, observed, row, standing, destination);
        whole.allowed &= allowed;
        whole.text.push_str(&text);
        details.push(detail);
    }
    whole.details = details.into();
    Ok(whole)
}

fn is_meant(row: &PeerRow, who: &str) -> bool {
    let by_address = who.parse::<IpAddr>().is_ok_and(|address| row.assigned_ip.addr() == address);
    let by_key = matches!(&row.public_key, KeyText::Key(key) if key.to_string() == who);
    let by_name = row.username.eq_ignore_ascii_case(who) || *row.device_name == *who;
    let by_both = who.split_once('/').is_some_and(|(user, device)| {
        row.username.eq_ignore_ascii_case(user) && *row.device_name == *device
    });
    let ids = [row.id.0, row.device_id.0, row.user_id.0];
    let by_id = who.parse().is_ok_and(|id| ids.contains(&id));
    by_address || by_key || by_name || by_both || by_id
}

fn one(
    desired: &DesiredState,
    observed: Option<&ObservedState>,
    row: &PeerRow,
    standing: Standing<'_>,
    destination: IpAddr,
) -> (bool, String, serde_json::Value) {
    let dns_servers: Vec<IpAddr> =
        [desired.gateway_dns(), &dns_addresses(&row.dns_servers)].concat();
    let explanation =
        desired.policies().explain(row.user_id, row.device_id, &dns_servers, destination);
    let admitted = matches!(standing, Standing::Admitted(_));
    let wanted = admitted && explanation.verdict == Verdict::Allow;
    let held = observed.map(|observed| kernel_allows(observed, row, destination));
    let mut text = format!("{} ({}) -> {explanation}", peer_name(row), row.assigned_ip.addr());
    let left_out = match standing {
        Standing::Admitted(_) => None,
        Standing::Ineligible => {
            Some("it is not eligible (revoked, inactive or deleted)".to_owned())
        }
        Standing::Quarantined(reason) => Some(reason.to_string()),
    };
    if let Some(why) = &left_out {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  but the peer is left out, so nothing passes: {why}");
    }
    if let Some(held) = held.filter(|held| *held != wanted) {
        let does = if held { "allows" } else { "denies" };
        let _ = writeln!(text, "  BUT the kernel {does} it at this moment: see `gatepost status`");
    }
    let detail = json!({
        "peer_id": row.id,
        "user": row.username,
        "device": row.device_name,
        "allowed": wanted,
        "left_out": left_out,
        "kernel_allows": held,
        "explanation": explanation,
    });
    (wanted && held != Some(false), text, detail)
}

fn kernel_allows(observed: &ObservedState, row: &PeerRow, destination: IpAddr) -> bool {
    let KeyText::Key(key) = &row.public_key else { return false };
    let prefix = IpNet::from(row.assigned_ip.addr());
    let profile = observed.firewall.as_ref().and_then(|table| table.profile_of(&prefix));
    observed.peers.contains_key(key) && profile.is_some_and(|profile| profile.allows(destination))
}
