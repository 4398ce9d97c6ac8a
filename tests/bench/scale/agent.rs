//! The agent's part: read, build, plan; then one changed device after another.

use std::time::Duration;

use gatepost::model::{ChangedRows, DesiredState, ObservedState};
use gatepost::plan::{Plan, Scope, plan};
use gatepost::store::Read;
use tokio::time::Instant;

use super::feed::{BARE_QUERY, beside, plain};
use super::figures::{Bar, median, timed};
use super::fleet::{Fleet, local};

const ROUNDS: usize = 3;
const CHANGES: usize = 100;

/// What one changed device costs the agent's own processor.
pub async fn measure(fleet: &Fleet<'_>) -> Duration {
    let store = fleet.store(1);
    let (mut reads, mut builds) = (Vec::new(), Vec::new());
    let mut built = None;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let (rows, cursor) = store.snapshot().await.unwrap();
        reads.push(started.elapsed());
        let mut desired = None;
        builds.push(timed(|| desired = Some(DesiredState::build(local(), rows).unwrap())));
        built = desired.zip(Some(cursor));
    }
    let (mut desired, mut cursor) = built.unwrap();
    assert_eq!(desired.peers().len(), fleet.peers);
    let bare = fleet.sql_time(&format!("copy ({BARE_QUERY}) to stdout"));
    let size = fleet.size();
    beside("snapshot, read and decoded", size.clone(), median(&reads), bare, "psql COPY", None);
    plain("desired state from rows", size.clone(), median(&builds), Bar::None);

    let mut kernel = ObservedState::default();
    let fill = plan(&desired, &kernel, &Scope::Everything).unwrap();
    apply(&mut kernel, &fill);
    let equal =
        |_| timed(|| assert!(plan(&desired, &kernel, &Scope::Everything).unwrap().is_empty()));
    let planned: Vec<Duration> = (0..ROUNDS).map(equal).collect();
    plain("plan of equal states", size.clone(), median(&planned), Bar::None);

    let (mut reading, mut deciding) = (Vec::new(), Vec::new());
    let devices = fleet.sql(&format!("select id from devices order by id limit {}", CHANGES / 2));
    for status in ["revoked", "active"] {
        for device in devices.lines() {
            fleet.sql(&format!("update devices set status = '{status}' where id = '{device}'"));
            let started = Instant::now();
            let read = store.changes(&cursor).await.unwrap();
            reading.push(started.elapsed());
            let Read::Changed(rows, next) = read else { panic!("{read:?}") };
            cursor = next;
            deciding.push(timed(|| decide(&mut desired, &mut kernel, rows)));
        }
    }
    assert!(plan(&desired, &kernel, &Scope::Everything).unwrap().is_empty());
    plain("one changed device: read", size.clone(), median(&reading), Bar::None);
    plain("one changed device: decide and prove", size, median(&deciding), Bar::None);
    median(&deciding)
}

fn apply(kernel: &mut ObservedState, plan: &Plan) {
    plan.steps().iter().for_each(|step| kernel.apply(step));
}

/// What the agent does between the rows and the report; the kernel's part is a few writes.
fn decide(desired: &mut DesiredState, kernel: &mut ObservedState, rows: ChangedRows) {
    let touched = desired.apply(rows);
    let scope = Scope::Changed { peers: touched.peers, prefixes: touched.prefixes };
    let planned = plan(desired, kernel, &scope).unwrap();
    assert!(!planned.is_empty(), "a change changes something");
    apply(kernel, &planned);
    assert!(plan(desired, kernel, &scope).unwrap().is_empty());
}
