//! `gatepost plan`: what a pass would change.

use std::fs;
use std::path::Path;

use gatepost::reconcile::status::{PlanReport, QuarantinedPolicy};
use gatepost::store::{HeldLock, LockMode, Unchanged, split};
use serde::Serialize;

use crate::cli::PlanArgs;
use crate::config::Config;
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, count, printable, shortened};
use crate::wiring::SqlPlan;
use crate::{runtime, wiring};

/// So much of a statement is repeated.
const STATEMENT_CHARS: usize = 120;

/// Reads the database and the kernel, and prints the steps that would make the kernel match.
///
/// # Errors
/// The database or the kernel cannot be read; with `--sql`, a statement cannot be run.
pub fn plan(config: &Config, args: &PlanArgs) -> Result<Exit, CommandError> {
    if let Some(file) = &args.sql {
        return plan_sql(config, file, args.json);
    }
    let mut report =
        runtime::on_this_thread()?.block_on(async { wiring::prepare(config)?.plan().await })?;
    // Only a running agent knows what the kernel refuses.
    if !report.steps.is_empty()
        && let Ok(status) = Client::new(&config.control.socket).status()
    {
        report.warnings.extend(status.quarantined_policies.iter().map(left_out));
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&describe(&report))?;
    }
    Ok(exit(&report))
}

/// Why a pass of the running agent leaves out what the plan has for these peers.
fn left_out(policy: &QuarantinedPolicy) -> String {
    format!(
        "the agent has quarantined policy {}, which applies to {}: the kernel does not load their \
         destinations: {}; a pass leaves these out until the policy changes or `gatepost resync`",
        policy.policy,
        count(policy.peers, "peer"),
        policy.reason
    )
}

fn exit(report: &PlanReport) -> Exit {
    let equal = report.steps.is_empty() && report.held_back.is_none();
    if equal { Exit::Success } else { Exit::Differs }
}

/// The file is checked before its first statement runs.
fn plan_sql(config: &Config, file: &Path, json: bool) -> Result<Exit, CommandError> {
    let text = fs::read_to_string(file)
        .map_err(|source| CommandError::SqlFile { path: file.to_owned(), source })?;
    let statements = split(&text)?;
    let planning = async { wiring::prepare(config)?.plan_sql(&statements).await };
    let plan = runtime::on_this_thread()?.block_on(planning)?;
    let report = SqlReport::of(plan);
    if json {
        output::print_json(&report)?;
    } else {
        output::print(&report.text())?;
    }
    Ok(exit(&report.plan))
}

/// The changes that statements would make. As JSON, stable.
#[derive(Debug, Serialize)]
pub struct SqlReport {
    #[serde(flatten)]
    pub plan: PlanReport,
    /// Devices that would lose their tunnel.
    pub cut_off: usize,
    /// The tables that the statements lock.
    pub locks: Vec<TableLock>,
    /// How long the locks were held.
    pub duration_ms: u64,
}

/// A table that the statements lock.
#[derive(Debug, Serialize)]
pub struct TableLock {
    pub table: String,
    /// `rows`, `writers` or `all`: who waits.
    pub waits: &'static str,
}

impl SqlReport {
    fn of(plan: SqlPlan) -> Self {
        let SqlPlan { mut after, already, locks, unchanged, ineffective, lasted } = plan;
        after.warnings.extend(unchanged.iter().map(changed_no_row));
        after.warnings.extend(ineffective.iter().map(ToString::to_string));
        if already > 0 {
            after.warnings.push(format!(
                "{} of these are pending even without the statements: `gatepost plan` shows them",
                count(already, "step")
            ));
        }
        let removes = |step: &str| step.starts_with("peer remove ");
        let waits = |HeldLock { table, mode }| {
            let waits = match mode {
                LockMode::Rows => "rows",
                LockMode::Writers => "writers",
                LockMode::All => "all",
            };
            TableLock { table, waits }
        };
        Self {
            cut_off: after.steps.iter().filter(|step| removes(&step.step)).count(),
            locks: locks.into_iter().map(waits).collect(),
            duration_ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            plan: after,
        }
    }

    fn text(&self) -> String {
        let mut text = describe(&self.plan);
        text.push_str("\nlocks, until the transaction ends\n");
        for TableLock { table, waits } in &self.locks {
            let words = match *waits {
                "all" => "others can neither read nor write it",
                "writers" => "others can read it, and not write it",
                _ => "others read it, and write other rows",
            };
            text.push_str(&format!("  {}: {words}\n", printable(table)));
        }
        if self.locks.is_empty() {
            text.push_str("  none\n");
        }
        let cut_off = match self.cut_off {
            0 => "no device".to_owned(),
            devices => count(devices, "device"),
        };
        text + &format!(
            "\nthe statements would cut off {cut_off}\nthey ran for {} ms and were rolled back\n",
            self.duration_ms
        )
    }
}

/// Such as one whose condition has a mistake.
fn changed_no_row(Unchanged { number, line, text }: &Unchanged) -> String {
    let text: Vec<&str> = text.split_whitespace().collect();
    let text = shortened(&text.join(" "), STATEMENT_CHARS);
    format!("statement {number} (line {line}) changed no row: {text}")
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
    use gatepost::model::PolicyId;
    use gatepost::reconcile::status::PlannedStep;
    use uuid::Uuid;

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

    #[test]
    fn statement_that_changed_no_row_is_named_on_one_line() {
        let text =
            format!("update devices\n  set status = 'revoked' where name = '{}'", "x".repeat(99));
        let told = changed_no_row(&Unchanged { number: 2, line: 3, text });
        let start = "statement 2 (line 3) changed no row: update devices set status = 'revoked' where name = 'xx";
        assert!(told.starts_with(start) && told.ends_with("xx…"), "{told}");
    }

    #[test]
    fn policy_that_the_agent_quarantined_is_named_with_its_reason() {
        let policy = QuarantinedPolicy {
            policy_id: PolicyId(Uuid::nil()),
            policy: "lab".into(),
            peers: 3,
            reason: "Invalid argument".into(),
            remedy: String::new(),
        };
        let told = left_out(&policy);
        assert!(told.contains("quarantined policy lab, which applies to 3 peers"), "{told}");
        assert!(told.contains("destinations: Invalid argument; "), "{told}");
    }
}
