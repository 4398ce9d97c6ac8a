//! Notes as journal entries: INFO where state changed, WARN where an operator should look.
//!
//! The text says everything, because the text is what `journalctl` shows; the fields beside it are
//! for whoever searches.

use std::fmt;

use tracing::{info, warn};

use super::StalePolicy;
use super::event::{Mode, Note};

/// Writes one note to the journal.
pub(super) fn say(note: &Note) {
    match note {
        Note::DatabaseUp { mode } => info!(?mode, "{note}"),
        Note::Synced { steps, took, .. } => info!(steps, took_ms = took.as_millis(), "{note}"),
        Note::Released { peer } => info!(%peer, "{note}"),
        Note::DatabaseDown { error, retry_in } => {
            warn!(error, retry_in_ms = retry_in.as_millis(), "{note}");
        }
        Note::ReadFailed { error }
        | Note::ObserveFailed { error }
        | Note::ReportFailed { error } => warn!(error, "{note}"),
        Note::CannotBuild(error) => warn!(%error, "{note}"),
        Note::CannotPlan(error) => warn!(%error, "{note}"),
        Note::HeldBack(held) => warn!(removed = held.removed, present = held.present, "{note}"),
        Note::DriftRepaired { steps, why, .. } => warn!(steps, why, "{note}"),
        Note::StepRefused { step, error } => warn!(step, error, "{note}"),
        Note::NotConverged { steps, retry_in, .. } => {
            warn!(steps, retry_in_ms = retry_in.as_millis(), "{note}");
        }
        Note::Quarantined { peer, name, reason } => warn!(%peer, name, reason, "{note}"),
        Note::AuditRefused { entries, .. } => warn!(entries, "{note}"),
        Note::Stale { since, policy } => {
            warn!(away_secs = since.as_secs(), ?policy, "{note}");
        }
        Note::Restored { .. }
        | Note::GatewayInactive
        | Note::Ignored { .. }
        | Note::NotifyMissed => {
            warn!("{note}");
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DatabaseUp { mode: Mode::Listen } => {
                f.write_str("connected to the database; it tells of changes")
            }
            Self::DatabaseUp { mode: Mode::Turns } => f.write_str(
                "connected to the database; gateways take turns to ask it and tell of changes",
            ),
            Self::DatabaseUp { mode: Mode::Poll } => {
                f.write_str("connected to the database; it is asked for changes")
            }
            Self::DatabaseDown { error, retry_in } => write!(
                f,
                "the database is out of reach, the host stays as it is; next try in {} ms: {error}",
                retry_in.as_millis()
            ),
            Self::ReadFailed { error } => write!(f, "the database could not be read: {error}"),
            Self::ObserveFailed { error } => write!(f, "the kernel could not be read: {error}"),
            Self::CannotBuild(error) => write!(f, "the kernel is not touched: {error}"),
            Self::CannotPlan(error) => write!(f, "the kernel is not touched: {error}"),
            Self::HeldBack(held) => held.fmt(f),
            Self::GatewayInactive => {
                f.write_str("the gateway's row is not active: all peers are revoked until it is")
            }
            Self::Restored { as_of } => write!(
                f,
                "the database is away: starting from the last good rows, of {}",
                humantime::format_rfc3339_seconds(*as_of)
            ),
            Self::Synced { steps, took, first } => {
                write!(f, "brought up to date in {} ms: ", took.as_millis())?;
                write_steps(f, *steps, first)
            }
            Self::DriftRepaired { steps, first, why } => {
                write!(f, "repaired what is ours and others changed ({why}): ")?;
                write_steps(f, *steps, first)
            }
            Self::StepRefused { step, error } => write!(f, "the kernel refused {step}: {error}"),
            Self::NotConverged { steps, first, retry_in } => {
                write!(
                    f,
                    "the kernel does not come to rest, somebody may be fighting over it; next try \
                     in {} ms; left: ",
                    retry_in.as_millis()
                )?;
                write_steps(f, *steps, first)
            }
            Self::Quarantined { peer, name, reason } => {
                write!(f, "{name} is left out: {reason} (peer {peer})")
            }
            Self::Released { peer } => write!(f, "peer {peer} is no longer left out"),
            Self::Ignored { what } => write!(f, "without effect: {what}"),
            Self::NotifyMissed => {
                f.write_str("a change was found by the timer: its notification never came")
            }
            Self::ReportFailed { error } => write!(f, "the report waits for the next try: {error}"),
            Self::AuditRefused { entries, first } => {
                write!(f, "the database refuses an audit entry, which is left out: {first}")?;
                match entries.saturating_sub(1) {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
            Self::Stale { since, policy } => write!(
                f,
                "the database has been away for {} s, longer than [stale] after: {}",
                since.as_secs(),
                match policy {
                    StalePolicy::Keep => "everything stays as it was last told",
                    StalePolicy::DenyNew => "peers without a live session are removed",
                    StalePolicy::Down => "all peers are removed",
                }
            ),
        }
    }
}

/// The first steps in full, and how many there are more.
fn write_steps(f: &mut fmt::Formatter<'_>, steps: usize, first: &[String]) -> fmt::Result {
    f.write_str(&first.join("; "))?;
    match steps.saturating_sub(first.len()) {
        0 => Ok(()),
        more => write!(f, "; and {more} steps more"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_text_alone_says_what_happened() {
        let first = vec!["peer remove A".to_owned(), "flows cut 10.0.0.1/32".to_owned()];
        let took = Duration::from_millis(12);
        assert_eq!(
            Note::Synced { steps: 5, took, first: first.clone() }.to_string(),
            "brought up to date in 12 ms: peer remove A; flows cut 10.0.0.1/32; and 3 steps more"
        );
        assert_eq!(
            Note::DriftRepaired { steps: 2, first, why: "nft (pid 7) changed our firewall".into() }
                .to_string(),
            "repaired what is ours and others changed (nft (pid 7) changed our firewall): \
             peer remove A; flows cut 10.0.0.1/32"
        );
    }
}
