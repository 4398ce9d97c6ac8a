//! Previews a pass, and explains why a packet passes or not, without a running agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::explain::{ExplainError, explain};
use super::peers::held_peer;
use super::status::{self, Explanation, PlanReport, PlannedStep};
use super::takeover;
use crate::dataplane::{Dataplane, DataplaneError, DataplaneHandle, Reading};
use crate::model::policy::{ReachChange, describe_changes};
use crate::model::{
    BuildError, DesiredState, KeyText, ObservedState, PeerRow, Profile, PublicKey, SnapshotRows,
    Standing,
};
use crate::plan::guard::{Guard, HeldBack, Whose, plan_guarded};
use crate::plan::{HeldPeer, PlanError, Scope, Step};
use crate::reconcile::name::peer_name;
use crate::reconcile::note::no_sealing_key;
use crate::reconcile::options::MachineOptions;
use crate::reconcile::row_status::{LISTED_PEERS, quarantined, row_warnings};
use crate::store::{Store, StoreError};

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    #[error("{0}")]
    Blocks(String),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Database(#[from] StoreError),
    #[error("could not read the kernel")]
    Kernel(#[from] DataplaneError),
    #[error(transparent)]
    Explain(#[from] ExplainError),
}

/// Plans without touching anything: what a pass would change now.
///
/// # Errors
/// Why nothing can be planned.
pub async fn preview<D: Dataplane + 'static>(
    machine: &MachineOptions,
    store: &Store,
    dataplane: &DataplaneHandle<D>,
) -> Result<PlanReport, PreviewError> {
    let (desired, reading) = both_sides(machine, store, dataplane).await?;
    Ok(plan_report(machine, &desired, &reading.state)?)
}

/// Plans what a pass would change with these rows instead of those in the database.
///
/// # Errors
/// Why nothing can be planned.
pub async fn preview_rows<D: Dataplane + 'static>(
    machine: &MachineOptions,
    rows: SnapshotRows,
    dataplane: &DataplaneHandle<D>,
) -> Result<PlanReport, PreviewError> {
    let desired = build(machine, rows)?;
    Ok(plan_report(machine, &desired, &dataplane.observe().await?.state)?)
}

/// The link as it should be, as far as firewalls of other programs are judged by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub listen_port: u16,
    pub addresses: Vec<IpNet>,
}

/// Explains without an agent: from the database and the kernel as they are now.
///
/// # Errors
/// Why nothing can be said.
pub async fn preview_explanation<D: Dataplane + 'static>(
    machine: &MachineOptions,
    store: &Store,
    dataplane: &DataplaneHandle<D>,
    who: &str,
    destination: &str,
) -> Result<(Explanation, Link), PreviewError> {
    let (desired, reading) = both_sides(machine, store, dataplane).await?;
    let held = guard(machine, &BTreeSet::new()).hold_all(&desired, &reading.state);
    let gone = held.without_row().filter_map(|key| machine.withdrawals.departed.get_key_value(key));
    let gone = gone.map(|(key, departed)| (*key, departed)).collect();
    let answers = explain((&desired, &held), &gone, Some(&reading.state), who, destination)?;
    let explanation = answers.in_words(store).await.counted(dataplane).await;
    let interface = desired.interface();
    let addresses = interface.addresses.iter().copied().collect();
    Ok((explanation, Link { listen_port: interface.listen_port, addresses }))
}

/// The desired and the observed state, read at the same time.
async fn both_sides<D: Dataplane + 'static>(
    machine: &MachineOptions,
    store: &Store,
    dataplane: &DataplaneHandle<D>,
) -> Result<(DesiredState, Reading), PreviewError> {
    let (rows, reading) = tokio::join!(store.snapshot(), dataplane.observe());
    Ok((build(machine, rows?.0)?, reading?))
}

fn build(machine: &MachineOptions, rows: SnapshotRows) -> Result<DesiredState, PreviewError> {
    if let Some(why) = machine.block_list.why_unreadable() {
        return Err(PreviewError::Blocks(why.to_owned()));
    }
    let block_list = Arc::new(machine.block_list.clone());
    let mut desired = DesiredState::build_without(block_list, machine.local.clone(), rows)?;
    desired.keep_out(machine.withdrawals.lost.keys().copied().collect());
    Ok(desired)
}

/// No agent has asked yet.
const NONE_KNOWN: &BTreeMap<PublicKey, Arc<Profile>> = &BTreeMap::new();

/// The guard of an agent that begins.
fn guard<'a>(machine: &MachineOptions, confirmed: &'a BTreeSet<PublicKey>) -> Guard<'a> {
    let (limit, held) = (machine.max_removed, machine.withdrawals.recalled());
    Guard { limit, held, confirmed, granted: NONE_KNOWN, whose: Whose::Ours }
}

/// The changes of a pass if too many removals wait, also in the words of users and devices.
fn plan_report(
    machine: &MachineOptions,
    desired: &DesiredState,
    observed: &ObservedState,
) -> Result<PlanReport, PlanError> {
    let unconfirmed = BTreeSet::new();
    let guard = guard(machine, &unconfirmed);
    let (plan, held) = plan_guarded(desired, observed, &Scope::Everything, guard);
    let plan = plan?;
    let steps = plan.steps().iter().map(|step| PlannedStep {
        phase: format!("{:?}", step.phase()).to_lowercase(),
        step: step.to_string(),
    });
    let kept: BTreeMap<&IpNet, &Arc<Profile>> = held.reach().collect();
    let shifts =
        desired.rows().map(|(row, standing)| shift(desired, observed, &kept, row, standing));
    let taken_over = takeover::in_words(desired, observed);
    let policy = taken_over.unwrap_or_else(|| {
        let changes = describe_changes(desired.policies(), shifts);
        changes.into_iter().map(|change| change.to_string()).collect()
    });
    let stays = |(key, held): (&PublicKey, &HeldPeer)| {
        let departed = machine.withdrawals.departed.get(key);
        held_peer(Some(desired), departed, Some(observed), key, held)
    };
    let stay: Vec<status::HeldPeer> = held.peers().iter().map(stays).collect();
    let words = plan.steps().iter().filter_map(|step| in_words(desired, observed, step));
    let words = words.chain(policy).chain(stay.iter().map(|peer| {
        format!("{}: the removal waits for `gatepost confirm`: {}", peer.name(), peer.reason)
    }));
    let (removals, present) = (held.peers().len(), observed.peers.len());
    let waits = HeldBack::new(removals, present);
    let warning = waits.map(|held| held.to_string());
    let sealed = desired.sealed_count();
    let sealed = (sealed > 0).then(|| no_sealing_key(sealed));
    let mut warnings: Vec<_> = warning.into_iter().chain(sealed).collect();
    warnings.extend(row_warnings(desired));
    let left_out = quarantined(desired).into_iter();
    let left_out = left_out.filter(|peer| !stay.iter().any(|it| it.peer_id == Some(peer.peer_id)));
    warnings.extend(left_out.map(|peer| format!("{} is left out: {}", peer.name(), peer.reason)));
    let unlisted = desired.quarantined_count().saturating_sub(LISTED_PEERS);
    if unlisted > 0 {
        warnings.push(format!("and {unlisted} more"));
    }
    Ok(PlanReport {
        steps: steps.collect(),
        held_back: waits,
        words: words.collect(),
        held: stay,
        warnings,
    })
}

/// The destinations of a peer by the kernel's table, and the desired ones.
fn shift<'a>(
    desired: &'a DesiredState,
    observed: &'a ObservedState,
    kept: &BTreeMap<&IpNet, &'a Arc<Profile>>,
    row: &'a PeerRow,
    standing: Standing<'_>,
) -> ReachChange<'a> {
    let prefix = row.address();
    let admitted = matches!(standing, Standing::Admitted(_));
    let table = observed.firewall.as_ref();
    let new = if admitted {
        desired.firewall().assignments.get(&prefix)
    } else {
        kept.get(&prefix).copied()
    };
    ReachChange {
        user_id: row.user_id,
        device_id: row.device_id,
        username: &row.username,
        device_name: &row.device_name,
        // A row that is left out may share its address with one that is not.
        old: table
            .and_then(|table| table.profile_of(&prefix))
            .map(AsRef::as_ref)
            .filter(|_| admitted || !desired.firewall().assignments.contains_key(&prefix)),
        new: new.map(AsRef::as_ref),
    }
}

fn in_words(desired: &DesiredState, observed: &ObservedState, step: &Step) -> Option<String> {
    let name = |key| match desired.row_of(key) {
        Some(row) => peer_name(row),
        None => format!("a device without a row ({key})"),
    };
    match step {
        Step::AddPeer { key, .. } => Some(format!("{} can connect", name(key))),
        Step::RemovePeer { key } => {
            let had = observed.peers.get(key).map(|peer| &peer.allowed_ips);
            let was = |row: &PeerRow| {
                row.public_key == KeyText::Key(*key)
                    || had.is_some_and(|had| had.contains(&row.assigned_ip))
            };
            let row = desired.rows().find(|(row, _)| was(row));
            let name = row.map_or_else(|| name(key), |(row, _)| peer_name(row));
            Some(format!("{name} is cut off"))
        }
        Step::NarrowPeer { key, allowed_ips } => {
            Some(format!("{} keeps only {allowed_ips}", name(key)))
        }
        Step::WidenPeer { key, allowed_ips } => Some(format!("{} gains {allowed_ips}", name(key))),
        Step::SetPresharedKey { key, .. } => {
            Some(format!("{} gets another preshared key at its next handshake", name(key)))
        }
        _ => None,
    }
}
