//! Notes as journal entries: INFO where state changed, WARN where an operator should look.

use tracing::{info, warn};

use super::event::Note;

/// Writes one note to the journal.
pub(super) fn say(note: &Note) {
    match note {
        Note::DatabaseUp { mode } => info!(?mode, "connected to the database"),
        Note::DatabaseDown { error, retry_in } => warn!(
            error,
            retry_in_ms = retry_in.as_millis(),
            "the database is out of reach: the host stays as it is"
        ),
        Note::ReadFailed { error } => warn!(error, "the database could not be read"),
        Note::ObserveFailed { error } => warn!(error, "the kernel could not be read"),
        Note::CannotBuild(error) => warn!(%error, "the kernel is not touched"),
        Note::CannotPlan(error) => warn!(%error, "the kernel is not touched"),
        Note::HeldBack(held) => warn!(removed = held.removed, present = held.present, "{held}"),
        Note::Restored { as_of } => warn!(
            as_of = %humantime::format_rfc3339_seconds(*as_of),
            "the database is away: starting from the last good rows"
        ),
        Note::GatewayInactive => {
            warn!("the gateway's row is not active: all peers are revoked until it is");
        }
        Note::Synced { steps, took, first } => {
            info!(steps, took_ms = took.as_millis(), first = first.join("; "), "brought up to date")
        }
        Note::DriftRepaired { steps, first, why } => warn!(
            steps,
            why,
            first = first.join("; "),
            "somebody else changed what is ours: repaired"
        ),
        Note::StepRefused { step, error } => warn!(step, error, "the kernel refused a step"),
        Note::NotConverged { steps, first, retry_in } => warn!(
            steps,
            first = first.join("; "),
            retry_in_ms = retry_in.as_millis(),
            "the kernel does not come to rest: somebody may be fighting over it"
        ),
        Note::Quarantined { peer, name, reason } => {
            warn!(%peer, name, reason, "peer left out");
        }
        Note::Released { peer } => info!(%peer, "peer no longer left out"),
        Note::Ignored { what } => warn!(what, "left out"),
        Note::NotifyMissed => {
            warn!("a change was found by the timer: its notification never came");
        }
        Note::ReportFailed { error } => warn!(error, "the report waits for the next try"),
        Note::Stale { since, policy } => {
            warn!(away_secs = since.as_secs(), ?policy, "the database has been away for too long")
        }
    }
}
