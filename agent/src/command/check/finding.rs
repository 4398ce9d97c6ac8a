//! One finding of `gatepost check`.

use serde::Serialize;

use crate::config::ConfigError;
use crate::exit::Exit;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing is known to be wrong.
    Note,
    /// Something does not work, or may stop working.
    Warning,
    /// The configuration is wrong, so that restarting cannot help.
    Wrong,
}

/// The result for one subject. The fields are stable: `check --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// The subject of the check, in one word.
    pub subject: &'static str,
    /// The finding.
    pub text: String,
    /// The remedy. `None` if there is nothing to do, or if `text` says it.
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

    /// An error that is no mistake of the configuration. Its text names the remedy.
    pub fn failure(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Warning, ..Self::ok(subject, text) }
    }

    /// A wrong configuration. The text names the remedy.
    pub fn wrong(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Wrong, ..Self::ok(subject, text) }
    }

    /// An error of the configuration, or of the right to read it.
    pub fn config_error(subject: &'static str, error: &ConfigError) -> Self {
        if error.is_permission_denied() {
            Self::failure(subject, error.to_string())
        } else {
            Self::wrong(subject, error.to_string())
        }
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
