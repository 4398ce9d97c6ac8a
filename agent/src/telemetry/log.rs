//! The log: entries of the journal under systemd, else lines on standard error.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use tracing::field::Field;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::newest::Keeper;

/// The reader of the log, which decides how much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The readers of a daemon's journal: every change of state is logged.
    Daemon,
    /// A person who waits for a command: only warnings and errors are logged.
    Person,
}

/// Changes the filter. `None`: `--log` or `RUST_LOG` decides for good.
static FILTER: OnceLock<Option<reload::Handle<EnvFilter, Registry>>> = OnceLock::new();

/// Starts the log. `filter` is the text of `--log`, in the syntax of `RUST_LOG`; without it `RUST_LOG`
/// itself is used, else the default of the audience.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn start_log(filter: Option<&str>, audience: Audience) -> Result<(), ParseError> {
    let default = match audience {
        Audience::Daemon => "info",
        Audience::Person => "warn",
    };
    let variable = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let named = filter.or(variable.as_deref());
    let filter = parse(named.unwrap_or(default))?;
    let (filter, handle) = reload::Layer::new(filter);
    // The log starts once.
    let _ = FILTER.set(named.is_none().then_some(handle));
    let registry = tracing_subscriber::registry().with(filter);
    let registry = registry.with((audience == Audience::Daemon).then_some(Keeper));
    match journal() {
        Some(journal) => registry.with(journal).init(),
        None => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
            let lines = lines.fmt_fields(debug_fn(message_only)).with_ansi(colour);
            registry.with(lines.with_target(false)).init();
        }
    }
    Ok(())
}

/// From now on `log.filter` decides, unless the command line or `RUST_LOG` does.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn set_filter(filter: &str) -> Result<(), ParseError> {
    let filter = parse(filter)?;
    if let Some(Some(handle)) = FILTER.get() {
        // It fails only when the log has ended.
        let _ = handle.reload(filter);
    }
    Ok(())
}

/// A level alone is for our own entries: what libraries log has no meaning without their sources, and a
/// userspace device's engine complains of each packet that it cannot send.
fn parse(filter: &str) -> Result<EnvFilter, ParseError> {
    match filter.trim().parse::<LevelFilter>() {
        Ok(level) => format!("{}={level}", env!("CARGO_BIN_NAME")).parse(),
        Err(_) => filter.parse(),
    }
}

/// Only an entry's message; the fields are for the journal.
fn message_only(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() == "message" { write!(writer, "{value:?}") } else { Ok(()) }
}

/// The journal's native protocol, which keeps fields, if standard error is the journal.
fn journal() -> Option<tracing_journald::Layer> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = std::fs::metadata("/proc/self/fd/2").ok()?;
    if !is_journal(&stream, stderr.dev(), stderr.ino()) {
        return None;
    }
    let layer = tracing_journald::layer().ok()?;
    Some(layer.with_field_prefix(None).with_priority_mappings(PriorityMappings {
        // The layer's default for INFO is "notice", which many people alert on.
        info: Priority::Informational,
        ..PriorityMappings::new()
    }))
}

/// `$JOURNAL_STREAM` is the device and inode of the stream that systemd connected to the journal. A
/// child that redirects its output inherits the variable, too (systemd.exec(5)).
fn is_journal(stream: &str, device: u64, inode: u64) -> bool {
    stream == format!("{device}:{inode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_alone_is_for_our_own_entries() {
        assert_eq!(parse("info").unwrap().to_string(), "gatepost=info");
        assert_eq!(parse(" Debug ").unwrap().to_string(), "gatepost=debug");
        let named = parse("info,tokio_postgres=debug").unwrap().to_string();
        assert!(named.contains("tokio_postgres=debug") && !named.contains("gatepost"), "{named}");
        assert!(parse("no such=filter=").is_err());
    }

    #[test]
    fn only_the_stream_that_systemd_created_is_the_journal() {
        assert!(is_journal("8:12345", 8, 12345));
        assert!(!is_journal("8:12345", 8, 12346));
        assert!(!is_journal("", 8, 12345));
    }
}
