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
    let message_id = note.message_id();
    match note {
        Note::DatabaseUp { mode } => info!(message_id, ?mode, "{note}"),
        Note::Synced { steps, took, .. } => {
            info!(message_id, steps, took_ms = took.as_millis(), "{note}")
        }
        Note::Watched => info!(message_id, "{note}"),
        Note::Unwatched { tables } => warn!(message_id, ?tables, "{note}"),
        Note::Released { peer, name } => info!(message_id, %peer, name, "{note}"),
        Note::DatabaseDown { error, retry_in } => {
            warn!(message_id, error, retry_in_ms = retry_in.as_millis(), "{note}");
        }
        Note::ReadFailed { error }
        | Note::ObserveFailed { error }
        | Note::ReportFailed { error } => warn!(message_id, error, "{note}"),
        Note::CannotBuild(error) => warn!(message_id, %error, "{note}"),
        Note::CannotPlan(error) => warn!(message_id, %error, "{note}"),
        Note::HeldBack(held) => {
            warn!(message_id, removed = held.removed, present = held.present, "{note}")
        }
        Note::DriftRepaired { steps, why, .. } => warn!(message_id, steps, why, "{note}"),
        Note::StepRefused { step, error } => warn!(message_id, step, error, "{note}"),
        Note::NotConverged { steps, retry_in, .. } => {
            warn!(message_id, steps, retry_in_ms = retry_in.as_millis(), "{note}");
        }
        Note::Quarantined { peer, name, reason } => {
            warn!(message_id, %peer, name, reason, "{note}")
        }
        Note::AuditRefused { entries, .. } => warn!(message_id, entries, "{note}"),
        Note::Stale { since, policy } => {
            warn!(message_id, away_secs = since.as_secs(), ?policy, "{note}");
        }
        Note::Restored { .. }
        | Note::GatewayInactive
        | Note::Ignored { .. }
        | Note::NotifyMissed => {
            warn!(message_id, "{note}");
        }
    }
}

impl Note {
    /// Tells its kind to whoever searches the journal, where `systemd/gatepost.catalog` explains it.
    /// Never changes.
    const fn message_id(&self) -> Option<&'static str> {
        Some(match self {
            Self::Synced { .. } => "42989c19f37f4bc684c928a1659f5ee6",
            Self::DriftRepaired { .. } => "9d323062618a413dadf58abd5df9bce2",
            Self::HeldBack(_) => "635526e3b562432dacc352dc3763be88",
            Self::Quarantined { .. } => "722913497f41499da6d0f1241144e7e9",
            Self::DatabaseDown { .. } => "4d7e74ce7e2242348747c99fbca61a4e",
            Self::GatewayInactive => "2625b5a2f0224750b655f388dee51487",
            Self::CannotBuild(_) | Self::CannotPlan(_) => "d050681d68d8498f86b73d3201bc80ad",
            Self::NotConverged { .. } => "025278c9fee943ef89c66cfde16b13af",
            Self::Stale { .. } => "12586575cdf441dba5a21eb19840a2d7",
            Self::Unwatched { .. } => "3d27fae035eb4671bfbbcd87afd81861",
            Self::StepRefused { .. } => "37e836371fde4ac89ad47236b66da6c7",
            _ => return None,
        })
    }
}

/// What it means that nobody tells of changes of these tables.
pub(super) fn not_told(tables: &[String]) -> String {
    format!(
        "nobody tells of changes of {}: triggers are missing, the table was made anew, has partitions, \
         or its rows come by logical replication; everything is read once a minute instead, and \
         last_sync_at stands still; run `gatepost migrate`",
        tables.join(", ")
    )
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
            Self::Released { peer, name } => {
                write!(f, "{name} is no longer quarantined (peer {peer})")
            }
            Self::Ignored { what } => write!(f, "without effect: {what}"),
            Self::NotifyMissed => {
                f.write_str("a change was found by the timer: its notification never came")
            }
            Self::Unwatched { tables } => f.write_str(&not_told(tables)),
            Self::Watched => f.write_str("the database tells of all changes again"),
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
                "no rows could be read and used for {} s, longer than [stale] after: {}",
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
    fn the_catalog_explains_what_has_an_id() {
        let catalog = include_str!("../../systemd/gatepost.catalog");
        let reference = include_str!("../../docs/reference.md");
        let explained = |note: &Note| {
            let id = note.message_id().unwrap();
            assert!(catalog.contains(&format!("\n-- {id}\n")), "{note} is not explained");
            assert!(reference.contains(id), "{note} is not described");
        };
        let (error, why, name, reason) = <(String, String, String, String)>::default();
        explained(&Note::Synced { steps: 1, took: Duration::ZERO, first: Vec::new() });
        explained(&Note::DriftRepaired { steps: 1, first: Vec::new(), why });
        let limit = crate::plan::guard::MaxRemoved::Percent(50);
        explained(&Note::HeldBack(crate::plan::guard::HeldBack { removed: 9, present: 9, limit }));
        let peer = crate::model::PeerId(uuid::Uuid::nil());
        explained(&Note::Quarantined { peer, name, reason });
        explained(&Note::DatabaseDown { error, retry_in: Duration::ZERO });
        explained(&Note::GatewayInactive);
        explained(&Note::NotConverged { steps: 1, first: Vec::new(), retry_in: Duration::ZERO });
        explained(&Note::Stale { since: Duration::ZERO, policy: StalePolicy::Keep });
        explained(&Note::Unwatched { tables: Vec::new() });
        let (step, error) = <(String, String)>::default();
        explained(&Note::StepRefused { step, error });
        assert_eq!(
            catalog.matches("\n-- ").count(),
            12,
            "and the agent's start and what it touches not"
        );
    }

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
