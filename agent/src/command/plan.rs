//! `gatepost plan`: what a pass would change.

use crate::config::Config;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, count, printable};
use crate::{runtime, wiring};
use gatepost::reconcile::status::PlanReport;

/// Reads the database and the kernel, and prints the steps that would make the kernel match.
///
/// # Errors
/// The database or the kernel cannot be read.
pub fn plan(config: &Config, json: bool) -> Result<Exit, CommandError> {
    let report =
        runtime::on_this_thread()?.block_on(async { wiring::prepare(config)?.plan().await })?;
    if json {
        output::print_json(&report)?;
    } else {
        output::print(&describe(&report))?;
    }
    let equal = report.steps.is_empty() && report.held_back.is_none();
    Ok(if equal { Exit::Success } else { Exit::Differs })
}

/// One stable line per step, then the changes in words, then the warnings.
#[must_use]
pub fn describe(report: &PlanReport) -> String {
    let mut text = String::new();
    for step in &report.steps {
        text.push_str(&format!("{:<7}{}\n", step.phase, printable(&step.step)));
    }
    for (heading, lines) in [("in words", &report.words), ("warnings", &report.warnings)] {
        if !lines.is_empty() {
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}{heading}\n"));
            text.extend(lines.iter().map(|line| format!("  {}\n", printable(line))));
        }
    }
    let gap = if text.is_empty() { "" } else { "\n" };
    let summary = match (report.steps.len() as u64, &report.held_back) {
        (0, None) => "nothing to change".to_owned(),
        (0, Some(held)) => format!("{} held back", count(held.removals, "removal")),
        (steps, None) => format!("{} to apply", count(steps, "step")),
        (steps, Some(held)) => {
            format!(
                "{} to apply, {} held back",
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
            held: vec![],
            words: vec!["anna/laptop is revoked".into()],
            warnings: vec!["ben/phone is left out: no key".into()],
        };
        assert_eq!(
            describe(&report),
            "\
revoke peer remove KEY
peers  peer add KEY 10.8.0.7/32

in words
  anna/laptop is revoked

warnings
  ben/phone is left out: no key

2 steps to apply
"
        );
        assert_eq!(describe(&PlanReport::default()), "nothing to change\n");
    }
}
