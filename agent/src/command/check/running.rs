//! Evaluates the running agent's status. Pure.

use gatepost::reconcile::status::{State, Status};

use super::facts::Facts;
use super::finding::{Finding, Level};
use crate::control::ControlError;
use crate::output::count;

/// How many quarantined peers are named.
const NAMED: usize = 3;
/// The remedy where an agent of the last version names none.
const FEWER_DESTINATIONS: &str = "give the policy fewer destinations, or the host more memory";

/// The agent's state and warnings, but for what other findings say already.
pub fn running(facts: &Facts, others: &[Finding]) -> Vec<Finding> {
    match &facts.agent {
        Ok(status) => {
            let told = others.iter().filter(|other| other.level >= Level::Warning);
            let told: Vec<_> = told.map(|other| &*other.text).collect();
            let is_told = |warning: &str| told.iter().any(|text| warning.contains(text));
            let mut findings = vec![state(status)];
            findings.extend(drift(status));
            findings.extend(held_back(status));
            findings.extend(quarantined(status));
            let warnings = status.warnings.iter().filter(|warning| !is_told(warning));
            findings.extend(warnings.map(|warning| Finding::failure("agent", warning)));
            findings
        }
        Err(ControlError::NoAgent { path, .. }) => vec![Finding::note(
            "agent",
            format!("none answers on {}", path.display()),
            "`systemctl start gatepost`, unless it is stopped on purpose",
        )],
        Err(error) if error.is_permission_denied() => {
            vec![Finding::note(
                "agent",
                "this user may not query it",
                "run this as root or in group gatepost",
            )]
        }
        Err(error) => vec![Finding::failure("agent", error.to_string())],
    }
}

fn state(status: &Status) -> Finding {
    let version = &status.agent.version;
    match &status.state {
        State::Ready => Finding::ok("agent", format!("ready, version {version}")),
        State::Starting => Finding::note(
            "agent",
            "starting: its first pass has not ended",
            "wait; `gatepost status` says when it has",
        ),
        state @ (State::Degraded { .. } | State::NotReady { .. }) => {
            Finding::failure("agent", state.to_string())
        }
    }
}

/// Repaired, and so nothing to do unless it goes on.
fn drift(status: &Status) -> Option<Finding> {
    (status.sync.drift_repaired > 0).then(|| {
        let times = count(status.sync.drift_repaired, "time");
        Finding::note(
            "agent",
            format!("repaired what other programs had changed, {times} since it started"),
            "`journalctl MESSAGE_ID=9d323062618a413dadf58abd5df9bce2` names what and whose",
        )
    })
}

fn held_back(status: &Status) -> Option<Finding> {
    let held = status.held_back?;
    let text = format!("removing {} of {} waits", held.removals, count(held.of, "peer"));
    let remedy = "`gatepost confirm` shows whom, and removes them; or restore their rows";
    Some(Finding::warning("agent", text, remedy))
}

fn quarantined(status: &Status) -> Vec<Finding> {
    let peers = status.quarantined.iter().take(NAMED);
    let peers = peers.map(|peer| format!("quarantined {}: {}", peer.name(), peer.reason));
    let more = status.peers.quarantined.saturating_sub(NAMED as u64);
    let more = (more > 0).then(|| format!("quarantined: {}", count(more, "more peer")));
    let policies = status.quarantined_policies.iter().map(|it| {
        let text = format!("quarantined policy {}: {}", it.policy, it.reason);
        let remedy = Some(&it.remedy).filter(|remedy| !remedy.is_empty());
        Finding::warning("agent", text, remedy.map_or(FEWER_DESTINATIONS, String::as_str))
    });
    let remedy = "correct the row; `gatepost peers --quarantined` lists all";
    let peers = peers.chain(more).map(|text| Finding::warning("agent", text, remedy));
    peers.chain(policies).collect()
}
