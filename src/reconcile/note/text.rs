//! The words of a note.

use std::fmt;
use std::time::Duration;

use super::{Ignored, Note};
use crate::count::count;
use crate::model::policy::{Plain, Quoted};
use crate::model::{BlockChange, QuarantinedPolicy};
use crate::reconcile::error::DatabaseState;
use crate::reconcile::mode::Mode;
use crate::reconcile::options::StalePolicy;
use crate::store::Refusal;

/// Why no bell is heard, as far as is known.
pub(in crate::reconcile) fn because(trouble: Option<&str>) -> String {
    trouble.map(|trouble| format!(" ({trouble})")).unwrap_or_default()
}

/// Explains that changes to these tables are not announced.
pub(in crate::reconcile) fn not_announced(tables: &[String]) -> String {
    format!(
        "changes to {} are not announced (triggers missing, or the table was recreated or \
         partitioned, or is fed by logical replication). Reading everything each minute instead; \
         last_sync_at is paused. Run `gatepost migrate`",
        tables.join(", ")
    )
}

/// That the server has no session to listen on.
pub(in crate::reconcile) fn polls_for_want_of_a_session(error: &str) -> String {
    format!("polling until there is a session to listen on: {error}")
}

/// That a table refuses this gateway's reports.
pub(in crate::reconcile) fn refused(refusal: &Refusal) -> String {
    let since = humantime::format_rfc3339_seconds(refusal.since);
    format!(
        "the database has refused this gateway's reports since {since}, and they wait: {}",
        refusal.why
    )
}

/// The remedy, if the error does not name one.
const fn way_out(state: DatabaseState) -> &'static str {
    match state {
        DatabaseState::Unreachable => {
            "; see that its server runs and is the one that database.url names"
        }
        DatabaseState::Refuses | DatabaseState::Distrusted | DatabaseState::NotReady => "",
    }
}

/// That another host leads.
pub(in crate::reconcile) fn led_by(leader: &str) -> String {
    format!(
        "host {leader} reports for this gateway: two hosts must not share a row of gateways. Give this \
         host a gateway of its own, or take it out of service with `gatepost down`"
    )
}

/// That the database lost the withdrawals of these peers.
pub(in crate::reconcile) fn history_lost(peers: &[String]) -> String {
    format!(
        "the database lost the revocation of {} (a failover to a standby that lagged behind, or a \
         restored backup)",
        some_of(peers)
    )
}

/// The first of these names, and how many more there are.
fn some_of(names: &[String]) -> String {
    const FIRST: usize = 8;
    let first = names.iter().take(FIRST).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(FIRST) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Explains that this host has no sealing key although peers have a preshared key.
pub(in crate::reconcile) fn no_sealing_key(peers: usize) -> String {
    format!(
        "{} with a preshared key, but this host has no psk_keys to open it: peers in the kernel keep \
         their present key, and no such peer is added. Name the file of sealing keys in \
         gateway.psk_keys_file, or keep it beside the configuration as psk.keys, from where the unit's \
         credential may come, too",
        count(peers, "peer")
    )
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(text) | Self::Gateway(text) => f.write_str(text),
            Self::Policy(note) => note.fmt(f),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DatabaseUp { mode } => write!(
                f,
                "connected to the database ({})",
                match mode {
                    Mode::Listen => "listening for notifications",
                    Mode::Hints => "following the bell's hints",
                    Mode::Poll => "polling for changes",
                }
            ),
            Self::DatabaseDown { state, error, retry_in } => write!(
                f,
                "{state}; the kernel stays as it is; retrying in {} ms: {error}{}",
                retry_in.as_millis(),
                way_out(*state)
            ),
            Self::ReadFailed { state, error } => {
                write!(f, "{state}; the kernel stays as it is: {error}{}", way_out(*state))
            }
            Self::ObserveFailed { error } => write!(f, "could not read the kernel: {error}"),
            Self::CannotBuild(error) => write!(f, "applying withdrawals only: {error}"),
            Self::CannotPlan(error) => write!(f, "applying withdrawals only: {error}"),
            Self::HeldBack(held) => held.fmt(f),
            Self::NoSealingKey { peers } => f.write_str(&no_sealing_key(*peers)),
            Self::GatewayInactive => {
                f.write_str("this gateway's row is not active: all peers are revoked until it is")
            }
            Self::Restored { as_of } => write!(
                f,
                "the database is unreachable: starting from the last good rows, as of {}",
                humantime::format_rfc3339_seconds(*as_of)
            ),
            Self::Synced { changes, steps, took, first } if changes.is_nothing() => {
                write!(f, "brought up to date in {} ms: ", took.as_millis())?;
                write_steps(f, *steps, first)
            }
            Self::Withdrawn { changes, steps, took, first } if changes.is_nothing() => {
                write!(f, "applied withdrawals only, in {} ms: ", took.as_millis())?;
                write_steps(f, *steps, first)
            }
            Self::Synced { changes, took, .. } | Self::Withdrawn { changes, took, .. } => {
                write!(f, "{changes} in {} ms", took.as_millis())
            }
            Self::Over(trouble) => trouble.fmt(f),
            Self::DriftRepaired { steps, first, why } => {
                write!(f, "repaired drift ({why}): ")?;
                write_steps(f, *steps, first)
            }
            Self::StepRefused { step, error } => write!(f, "the kernel refused {step}: {error}"),
            Self::NotConverged { steps, first, retry_in } => {
                write!(
                    f,
                    "kernel state keeps changing; another program may be managing it too; retrying \
                     in {} ms; left: ",
                    retry_in.as_millis()
                )?;
                write_steps(f, *steps, first)
            }
            Self::Quarantined { peer, name, reason, .. } => {
                write!(f, "quarantined {name}: {reason} (peer {peer})")
            }
            Self::Released { peer, name } => {
                write!(f, "{name} is no longer quarantined (peer {peer})")
            }
            Self::PolicyQuarantined { policy: QuarantinedPolicy { name, peers, why, remedy }, .. } => {
                write!(
                    f,
                    "quarantined policy {}, which applies to {}: the kernel does not load their \
                     destinations: {why}; they keep the former ones, or reach nothing, until the policy \
                     changes or `gatepost resync`: {remedy}",
                    Quoted(name),
                    count(*peers, "peer")
                )
            }
            Self::PolicyReleased { name, .. } => {
                write!(f, "policy {} is no longer quarantined", Quoted(name))
            }
            Self::Ignored(what) => write!(f, "ignored: {what}"),
            Self::NotifyMissed => {
                f.write_str("found a change by polling; its notification did not arrive")
            }
            Self::BellSilent { trouble } => {
                write!(f, "no bell is heard{}", because(trouble.as_deref()))?;
                f.write_str(
                    "; until one is, the agent polls for changes. See `gatepost status`",
                )
            }
            Self::NoSession { error } => f.write_str(&polls_for_want_of_a_session(error)),
            Self::BellHeard => f.write_str("the bell is heard"),
            Self::HintsMissed => f.write_str(
                "the bell is running, but sent no hint of a change: this gateway polls until hints arrive. \
                 Compare its id with its user's permissions at the broker",
            ),
            Self::HintsAgain => f.write_str("hints arrive again"),
            Self::Unannounced { tables } => f.write_str(&not_announced(tables)),
            Self::AnnouncedAgain => f.write_str("changes to all tables are announced again"),
            Self::OtherEpoch { why } => write!(f, "read everything again: {why}"),
            Self::HistoryLost { peers, held_for, .. } => {
                f.write_str(&history_lost(peers))?;
                match held_for.as_secs() {
                    0 => f.write_str(". Following the database at once (guard.lost_history)"),
                    secs => write!(
                        f,
                        ". They stay out for {}; `gatepost confirm` lets them in. Revoke them again \
                         if they must not connect",
                        humantime::format_duration(Duration::from_secs(secs))
                    ),
                }
            }
            Self::HistoryFollowed { peers, confirmed } => write!(
                f,
                "letting in again, {}: {}",
                if *confirmed { "confirmed" } else { "as the database says" },
                some_of(peers)
            ),
            Self::ReportFailed { error } => {
                write!(f, "could not write the report; retrying later: {error}")
            }
            Self::ReportsRefused(refusal) => f.write_str(&refused(refusal)),
            Self::LedBy { leader } => f.write_str(&led_by(leader)),
            Self::ReportsLost { reports, first } => {
                write!(f, "the database refused a report, which is lost: {first}")?;
                match reports.saturating_sub(1) {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
            Self::Stale { since, policy } => write!(
                f,
                "no usable rows for {} s, longer than stale.after: {}",
                since.as_secs(),
                match policy {
                    StalePolicy::Keep => "the kernel stays as it is",
                    StalePolicy::DenyNew => "removing peers without a live session",
                    StalePolicy::Down => "removing all peers",
                }
            ),
            Self::Block(change) => write_block(f, change),
            Self::BlocksUnknown { error } => write!(f, "applying withdrawals only: {error}"),
        }
    }
}

fn write_block(f: &mut fmt::Formatter<'_>, change: &BlockChange) -> fmt::Result {
    let (BlockChange { whom, block, peers, .. }, verb) = (change, change.verb());
    write!(f, "{verb} {whom}")?;
    if !block.name.is_empty() {
        write!(f, " ({})", Plain(&block.name))?;
    }
    write!(f, " on this host: {}", count(peers.len(), "peer"))
}

/// The first steps in full, and how many more there are.
fn write_steps(f: &mut fmt::Formatter<'_>, steps: usize, first: &[String]) -> fmt::Result {
    f.write_str(&first.join("; "))?;
    match steps.saturating_sub(first.len()) {
        0 => Ok(()),
        more => write!(f, "; and {}", count(more, "more step")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::changes::Changes;

    #[test]
    fn the_text_alone_says_what_happened() {
        let first = vec!["peer remove A".to_owned(), "flows cut 10.0.0.1/32".to_owned()];
        let took = Duration::from_millis(12);
        assert_eq!(
            Note::Synced { changes: Changes::default(), steps: 5, took, first: first.clone() }
                .to_string(),
            "brought up to date in 12 ms: peer remove A; flows cut 10.0.0.1/32; and 3 more steps"
        );
        assert_eq!(
            Note::DriftRepaired { steps: 2, first, why: "nft, pid 7, changed our firewall".into() }
                .to_string(),
            "repaired drift (nft, pid 7, changed our firewall): peer remove A; flows cut 10.0.0.1/32"
        );
    }
}
