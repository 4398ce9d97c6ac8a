//! `plan`: the difference between what should be and what is, as ordered steps.

use std::borrow::Cow;
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::join::side_by_side;
use super::prefix::prefixes_around;
use super::transfer::Transfers;
use super::wanted::Wanted;
use super::{Held, Plan, PlanError, Scope, Step, firewall, gate, link, pool, route};
use crate::model::{DesiredState, LinkOwner, ObservedInterface, ObservedState, Peer, PublicKey};

/// The steps that make `observed` what is `desired`, within `scope`.
///
/// The plan of equal states is empty, which is how a pass is verified. What is equal is never
/// written; what we do not own never appears.
///
/// # Errors
/// [`PlanError`] when the interface's name or its network is taken by something that is not ours, or
/// when the table guards another link of ours.
pub fn plan(
    desired: &DesiredState,
    observed: &ObservedState,
    scope: &Scope,
) -> Result<Plan, PlanError> {
    plan_around(desired, observed, scope, &Held::default())
}

/// Like [`plan`], but some peers stay although the rows do not admit them, with what they keep.
///
/// # Errors
/// The errors of [`plan`].
pub fn plan_around(
    desired: &DesiredState,
    observed: &ObservedState,
    scope: &Scope,
    held: &Held,
) -> Result<Plan, PlanError> {
    let mut steps = Vec::new();
    let prefixes = match scope {
        Scope::Everything => None,
        Scope::Changed { prefixes, .. } => Some(prefixes),
    };
    pool::refuse_unusable(desired, observed)?;
    link::steps(desired.interface(), observed, &mut steps)?;
    let mut compare = |key: &PublicKey, wanted: Option<&Peer>, present: Option<&Peer>| {
        let wanted = match wanted {
            Some(wanted) if desired.is_sealed(key) => present.map(|present| {
                let preshared_key = present.preshared_key.clone();
                Cow::Owned(Peer { preshared_key, ..wanted.clone() })
            }),
            Some(wanted) => Some(Cow::Borrowed(wanted)),
            None => held.peer(key, present).map(Cow::Owned),
        };
        peer_steps(key, wanted.as_deref(), present, &mut steps);
    };
    match scope {
        Scope::Everything => {
            let both = side_by_side(desired.peers(), &observed.peers);
            both.for_each(|(key, wanted, present)| compare(key, wanted, present));
        }
        Scope::Changed { peers, .. } => {
            for key in peers {
                compare(key, desired.peers().get(key), observed.peers.get(key));
            }
        }
    }
    let table = observed.firewall.as_ref();
    let wanted = Wanted::new(desired, held, observed);
    let transfers = Transfers::of(desired, held, wanted, observed, &steps);
    let mut diff = firewall::diff(wanted, table, prefixes, &transfers.taken, &transfers.closed);
    if takes_over(observed) {
        diff.keep(&kept_prefixes(desired, observed));
    }
    let changes = diff.into_changes().map(|(phase, change)| Step::Firewall { phase, change });
    let cut = desired.cuts_flows().then(|| transfers.to_cut(wanted, observed, scope));
    let cut = cut.filter(|prefixes| !prefixes.is_empty());
    let cut = cut.map(|prefixes| Step::CutFlows { prefixes });
    // Before the peers of the same phase.
    steps.splice(0..0, gate::removal(desired, observed).into_iter().chain(changes).chain(cut));
    route::steps(&held.routes(desired), observed, &mut steps);
    steps.extend(link::opening(observed));
    steps.extend(gate::addition(desired, observed));
    Ok(Plan::new(steps))
}

/// Whether the link is that of another program, which has forwarded without a table of ours. That its key
/// is ours was checked before.
fn takes_over(observed: &ObservedState) -> bool {
    let unmarked = |link: &ObservedInterface| link.owner == LinkOwner::Unmarked;
    observed.firewall.is_none() && observed.interface.as_ref().is_some_and(unmarked)
}

/// The prefixes that stay with the peer that has them, but for those around a prefix that does not stay
/// with its peer: they would judge it, too.
fn kept_prefixes(desired: &DesiredState, observed: &ObservedState) -> BTreeSet<IpNet> {
    let both = side_by_side(desired.peers(), &observed.peers);
    let kept = both.filter_map(|(_, wanted, present)| {
        Some(wanted?.allowed_ips.intersection(&present?.allowed_ips))
    });
    let mut kept: BTreeSet<IpNet> =
        kept.flat_map(|prefixes| prefixes.iter().collect::<Vec<_>>()).collect();
    let present = observed.peers.values().flat_map(|peer| peer.allowed_ips.iter());
    for leaving in present.filter(|it| !kept.contains(it)).collect::<Vec<_>>() {
        for around in prefixes_around(leaving) {
            kept.remove(&around);
        }
    }
    kept
}

fn peer_steps(
    key: &PublicKey,
    desired: Option<&Peer>,
    observed: Option<&Peer>,
    steps: &mut Vec<Step>,
) {
    let key = *key;
    match (desired, observed) {
        (None, None) => {}
        (None, Some(_)) => steps.push(Step::RemovePeer { key }),
        (Some(desired), None) => steps.push(Step::AddPeer { key, peer: desired.clone() }),
        (Some(desired), Some(observed)) => {
            if desired.allowed_ips != observed.allowed_ips {
                let kept = observed.allowed_ips.intersection(&desired.allowed_ips);
                let added = desired.allowed_ips.difference(&observed.allowed_ips);
                if kept != observed.allowed_ips {
                    steps.push(Step::NarrowPeer { key, allowed_ips: kept });
                }
                if !added.is_empty() {
                    steps.push(Step::WidenPeer { key, allowed_ips: added });
                }
            }
            if desired.preshared_key != observed.preshared_key {
                let preshared_key = desired.preshared_key.clone();
                steps.push(Step::SetPresharedKey { key, preshared_key });
            }
            if desired.keepalive_secs != observed.keepalive_secs {
                let keepalive_secs = desired.keepalive_secs;
                steps.push(Step::SetKeepalive { key, keepalive_secs });
            }
        }
    }
}
