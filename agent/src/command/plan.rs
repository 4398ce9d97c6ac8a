//! `gatepost plan`: what a pass would change.

use crate::config::Config;
use crate::exit::{CommandError, Exit};
use crate::output::{self, count, harmless};
use crate::{command, wiring};
use gatepost::model::WithoutPskKeys;
use gatepost::reconcile::status::PlanReport;

/// Reads the database and the kernel, and prints the steps between them.
///
/// # Errors
/// Either cannot be read.
pub fn plan(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let report = command::small_runtime()?
        .block_on(async { wiring::prepare(config, WithoutPskKeys::Refuse)?.plan().await })?;
    if json {
        output::print_json(&report)?;
    } else {
        output::print(&describe(&report))?;
    }
    let equal = report.steps.is_empty() && report.held_back.is_none();
    Ok(if equal { Exit::Success } else { Exit::Differs })
}

/// One stable line per step, then the same in words, then what was left out.
#[must_use]
pub fn describe(report: &PlanReport) -> String {
    let mut text = String::new();
    for step in &report.steps {
        text.push_str(&format!("{:<7}{}\n", step.phase, harmless(&step.step)));
    }
    for (heading, lines) in [("in words", &report.words), ("warnings", &report.warnings)] {
        if !lines.is_empty() {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{heading}\n"));
            text.extend(lines.iter().map(|line| format!("  {}\n", harmless(line))));
        }
    }
    let gap = if text.is_empty() { "" } else { "\n" };
    let summary = match (report.steps.len() as u64, &report.held_back) {
        (0, None) => "nothing to change".to_owned(),
        (0, Some(held)) => format!("{} held back", count(held.removals, "removal")),
        (steps, None) => format!("{} to take", count(steps, "step")),
        (steps, Some(held)) => {
            format!(
                "{} to take, {} held back",
                count(steps, "step"),
                count(held.removals, "removal")
            )
        }
    };
    format!("{text}{gap}{summary}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost::reconcile::status::PlannedStep;

    #[test]
    fn each_step_has_its_line() {
        let step = |phase: &str, step: &str| PlannedStep { phase: phase.into(), step: step.into() };
        let report = PlanReport {
            steps: vec![
                step("revoke", "peer remove KEY"),
                step("peers", "peer add KEY 10.8.0.7/32"),
            ],
            held_back: None,
            words: vec!["anna / laptop is revoked".into()],
            warnings: vec!["ben / phone is left out: no key".into()],
        };
        assert_eq!(
            describe(&report),
            "\
revoke peer remove KEY
peers  peer add KEY 10.8.0.7/32

in words
  anna / laptop is revoked

warnings
  ben / phone is left out: no key

2 steps to take
"
        );
        assert_eq!(describe(&PlanReport::default()), "nothing to change\n");
    }
}
