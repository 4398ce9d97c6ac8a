//! What was found, and how bad it is.

use serde::Serialize;

use crate::exit::Exit;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// Good to know; nothing is known to be wrong.
    Note,
    /// Something does not work, or may stop working.
    Warning,
    /// The configuration is wrong: no restart will help.
    Wrong,
}

/// One thing that was looked at. The fields are stable: `check --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at, in one word.
    pub subject: &'static str,
    /// What was found.
    pub text: String,
    /// What to do; `null` where nothing needs to be done.
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject, text: text.into(), remedy: None }
    }

    pub fn note(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Note, remedy: Some(remedy.into()), ..Self::ok(subject, text) }
    }

    pub fn warning(
        subject: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warning, remedy: Some(remedy.into()), ..Self::ok(subject, text) }
    }

    /// A wrong configuration. Its text says the way out itself, as every error does.
    pub fn wrong(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Wrong, ..Self::ok(subject, text) }
    }
}

/// The exit code that the worst finding asks for.
#[must_use]
pub fn exit(findings: &[Finding]) -> Exit {
    match findings.iter().map(|finding| finding.level).max() {
        None | Some(Level::Ok | Level::Note) => Exit::Success,
        Some(Level::Warning) => Exit::Failure,
        Some(Level::Wrong) => Exit::Config,
    }
}
