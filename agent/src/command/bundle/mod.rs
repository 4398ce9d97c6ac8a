//! `gatepost bundle`: one file for support, without secrets.

pub mod error;
mod scrub;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use crate::command::{check, plan};
use crate::config::{Config, Source, known_secrets, load, secrets_beside};
use crate::control::Client;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::print;
use crate::{runtime, wiring};
use error::BundleError;
use scrub::Scrubber;

/// How many of the journal's newest lines the bundle holds.
const JOURNAL_LINES: &str = "2000";

/// Writes a new file that only this user may read. What cannot be had stands in it as the reason.
///
/// # Errors
/// [`BundleError`]
pub fn bundle(source: &Source, path: &Path) -> Result<Exit, CommandError> {
    let config = load(source.clone());
    let secrets = match &config {
        Ok(config) => known_secrets(config),
        Err(_) => secrets_beside(&source.path()),
    };
    let scrubber = Scrubber::new(secrets.iter().map(|secret| secret.expose_text()));
    let configured = |section: fn(&Config) -> Result<String, CommandError>| match &config {
        Ok(config) => section(config).unwrap_or_else(|error| failed(&error.text())),
        Err(error) => failed(&error.to_string()),
    };
    let sections = [
        ("versions", versions()),
        ("configuration", configuration(source)),
        ("status", configured(status)),
        ("check", check::text(source.clone()).unwrap_or_else(|error| failed(&error.text()))),
        ("plan", configured(planned)),
        ("journal", journal()),
    ];
    let text: String = sections
        .into_iter()
        .map(|(name, text)| format!("==> {name}\n{}\n\n", scrubber.scrub(text.trim_end())))
        .collect();
    write(path, &text)?;
    let content = if config.is_ok() {
        "it has no keys and no passwords, but names, addresses and public keys"
    } else {
        "the configuration could not be loaded, so search the file for keys and passwords before you send it"
    };
    print(&format!("wrote {}: {content}\n", path.display()))?;
    Ok(Exit::Success)
}

fn write(path: &Path, text: &str) -> Result<(), BundleError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => BundleError::Exists(path.to_owned()),
        _ => BundleError::Write { path: path.to_owned(), source },
    };
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)
}

fn failed(why: &str) -> String {
    format!("(not available: {why})")
}

fn versions() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/etc/os-release");
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    format!(
        "gatepost {}\nLinux {}\n{}\nup for {} s",
        env!("CARGO_PKG_VERSION"),
        read("/proc/sys/kernel/osrelease").trim(),
        system.unwrap_or("unknown system").trim_matches('"'),
        read("/proc/uptime").split(' ').next().unwrap_or_default(),
    )
}

/// The file as it is, but for secrets, and which variables override it.
fn configuration(source: &Source) -> String {
    let path = source.path();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| failed(&error.to_string()));
    let variables: Vec<&str> = source.variables().collect();
    let variables = if variables.is_empty() { "none".to_owned() } else { variables.join(", ") };
    format!("{}\n{}\noverridden by variables: {variables}", path.display(), text.trim_end())
}

fn status(config: &Config) -> Result<String, CommandError> {
    let status = Client::new(&config.control.socket).status()?;
    Ok(serde_json::to_string_pretty(&status).unwrap_or_else(|error| failed(&error.to_string())))
}

fn planned(config: &Config) -> Result<String, CommandError> {
    let planning = async { wiring::prepare(config)?.plan().await };
    Ok(plan::describe(&runtime::on_this_thread()?.block_on(planning)?))
}

fn journal() -> String {
    let units = ["--unit=gatepost.service", "--unit=gatepost-device@*.service"];
    let mut command = Command::new("journalctl");
    command.args(units).args([
        "--no-pager",
        "--output=short-iso-precise",
        "--lines",
        JOURNAL_LINES,
    ]);
    match command.output() {
        Ok(done) if done.status.success() => String::from_utf8_lossy(&done.stdout).into_owned(),
        Ok(done) => failed(String::from_utf8_lossy(&done.stderr).trim()),
        Err(error) => failed(&format!("journalctl: {error}")),
    }
}
