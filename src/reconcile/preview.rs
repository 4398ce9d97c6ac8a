//! What a pass would do, and why something passes or not, without a running agent.

use super::MachineOptions;
use super::database::chain;
use super::shell::Host;
use super::status::{Explanation, PlanReport};
use crate::dataplane::DataplaneHandle;
use crate::model::DesiredState;
use crate::plan::{Scope, plan};
use crate::store::Store;

/// Plans without touching anything: what a pass would change now.
///
/// # Errors
/// In words: why nothing can be planned.
pub async fn preview<D: Host>(
    machine: &MachineOptions,
    store: &Store,
    dataplane: &DataplaneHandle<D>,
) -> Result<PlanReport, String> {
    let (rows, _) = store.snapshot().await.map_err(|error| chain(&error))?;
    let desired = DesiredState::build(machine.local.clone(), rows).map_err(|e| chain(&e))?;
    let reading = dataplane.observe().await.map_err(|error| chain(&error))?;
    let plan = plan(&desired, &reading.state, &Scope::Everything).map_err(|e| chain(&e))?;
    Ok(super::summary::plan_report(&desired, &reading.state, &plan))
}

/// Explains without an agent: from the database and the kernel as they are now.
///
/// # Errors
/// In words: why nothing can be said.
pub async fn preview_explanation<D: Host>(
    machine: &MachineOptions,
    store: &Store,
    dataplane: &DataplaneHandle<D>,
    who: &str,
    destination: &str,
) -> Result<Explanation, String> {
    let (rows, _) = store.snapshot().await.map_err(|error| chain(&error))?;
    let desired = DesiredState::build(machine.local.clone(), rows).map_err(|e| chain(&e))?;
    let reading = dataplane.observe().await.map_err(|error| chain(&error))?;
    let answers = super::explain::explain(&desired, Some(&reading.state), who, destination)?;
    Ok(answers.counted(dataplane).await)
}
