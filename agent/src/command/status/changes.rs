//! Describes the changes from one status to the next. Pure.

use std::collections::BTreeSet;

use gatepost::reconcile::status::Status;

use crate::output::count;

/// A line for each change that an operator would want to see.
#[must_use]
pub fn changes(before: &Status, after: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let mut moved = |what: &str, from: String, to: String| {
        if from != to {
            lines.push(format!("{what}: {from} -> {to}"));
        }
    };
    moved("state", before.state.to_string(), after.state.to_string());
    moved("agent", started(before), started(after));
    moved("mode", mode(before), mode(after));
    for (what, of) in FIGURES {
        moved(what, of(before).to_string(), of(after).to_string());
    }
    let drift = after.sync.drift_repaired.saturating_sub(before.sync.drift_repaired);
    if drift > 0 {
        lines.push(format!("drift: repaired {}", count(drift, "time")));
    }
    lines.extend(listed("warning", warnings(before), warnings(after)));
    lines.extend(listed("quarantined", quarantined(before), quarantined(after)));
    lines.extend(listed("blocked", blocked(before), blocked(after)));
    lines
}

type Figure = fn(&Status) -> u64;

const FIGURES: [(&str, Figure); 5] = [
    ("peers in the kernel", |status| status.peers.in_kernel),
    ("peers connected", |status| status.peers.connected),
    ("peers held", |status| status.peers.held),
    ("peers ineligible", |status| status.peers.ineligible),
    ("peers quarantined", |status| status.peers.quarantined),
];

fn started(status: &Status) -> String {
    let at = status.agent.started_at.map(|at| format!(", started {at}")).unwrap_or_default();
    format!("{}{at}", status.agent.version)
}

fn mode(status: &Status) -> String {
    status.sync.mode.map_or_else(|| "none".to_owned(), |mode| mode.to_string())
}

fn warnings(status: &Status) -> BTreeSet<String> {
    status.warnings.iter().cloned().collect()
}

fn quarantined(status: &Status) -> BTreeSet<String> {
    status.quarantined.iter().map(|peer| format!("{}: {}", peer.name(), peer.reason)).collect()
}

fn blocked(status: &Status) -> BTreeSet<String> {
    let text = |kind: &str, id: &str, name: &str| match name {
        "" => format!("{kind} {id}"),
        name => format!("{kind} {name}"),
    };
    status.blocked.iter().map(|block| text(&block.kind, &block.id, &block.name)).collect()
}

fn listed(what: &str, before: BTreeSet<String>, after: BTreeSet<String>) -> Vec<String> {
    let new = after.difference(&before).map(|text| format!("{what}: {text}"));
    let over = before.difference(&after).map(|text| format!("no longer {what}: {text}"));
    new.chain(over).collect()
}

#[cfg(test)]
mod tests {
    use gatepost::reconcile::status::State;

    use super::*;

    #[test]
    fn each_change_has_its_line_and_no_change_has_none() {
        let before = Status { state: State::Ready, ..Status::default() };
        assert_eq!(changes(&before, &before), Vec::<String>::new());
        let mut after = before.clone();
        after.state = State::Degraded { why: "the database is unreachable".into() };
        after.peers.connected = 4;
        after.sync.drift_repaired = 2;
        after.warnings = vec!["the disk is full".into()];
        assert_eq!(
            changes(&before, &after),
            [
                "state: ready -> degraded: the database is unreachable",
                "peers connected: 0 -> 4",
                "drift: repaired 2 times",
                "warning: the disk is full",
            ]
        );
        assert_eq!(
            changes(&after, &Status { state: after.state.clone(), ..before }),
            ["peers connected: 4 -> 0", "no longer warning: the disk is full"]
        );
    }
}
