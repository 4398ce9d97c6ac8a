//! Guards the names that scripts and dashboards rely on: see `tests/golden/surface.txt`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

#[path = "../../tests/support/surface.rs"]
mod golden;
mod json;
mod plan;

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use clap::CommandFactory;
use gatepost::model::{SettingFlaw, SettingRow, Settings};
use gatepost::reconcile::status::PeerState;
use gatepost::store::AuditEvent;

use crate::cli::Cli;
use crate::config::{Source, load};
use crate::exit::Exit;

const REFERENCE: &str = include_str!("../../docs/reference.md");

#[test]
fn commands_and_flags() {
    let mut lines = Vec::new();
    let mut command = Cli::command();
    command.build();
    describe_command("", &command, &mut lines);
    golden::check("commands", &lines);
}

fn describe_command(parents: &str, command: &clap::Command, lines: &mut Vec<String>) {
    let path = format!("{parents}{}", command.get_name());
    lines.push(format!("{path}{}", if command.is_hide_set() { "  hidden" } else { "" }));
    for argument in command.get_arguments() {
        let is_everywhere = argument.is_global_set() && !parents.is_empty();
        if !is_everywhere && !["help", "version"].contains(&argument.get_id().as_str()) {
            lines.push(format!("  {}", describe_argument(argument)));
        }
    }
    for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
        describe_command(&format!("{path} "), child, lines);
    }
}

fn describe_argument(argument: &clap::Arg) -> String {
    let mut words = Vec::new();
    words.extend(argument.get_short().map(|short| format!("-{short}")));
    words.extend(argument.get_long().map(|long| format!("--{long}")));
    if argument.get_action().takes_values() {
        let name = argument.get_value_names().map_or("", |names| names[0].as_str());
        words.push(name.to_owned());
    }
    let values = argument.get_possible_values();
    if argument.get_action().takes_values() && !values.is_empty() {
        words.push(values.iter().map(|value| value.get_name()).collect::<Vec<_>>().join("|"));
    }
    words.extend(argument.get_env().map(|name| format!("env {}", name.display())));
    let marks = [
        (argument.is_required_set(), "required"),
        (argument.is_hide_set(), "hidden"),
        (argument.is_global_set(), "everywhere"),
    ];
    words.extend(marks.iter().filter(|(set, _)| *set).map(|(_, mark)| format!(" {mark}")));
    words.join(" ")
}

#[test]
fn exit_codes() {
    let meaning = |exit: Exit| match exit {
        Exit::Success => "done; allowed; nothing to change",
        Exit::Failure => "failed; check: warnings; run --once: not proven equal",
        Exit::Differs => "plan: changes; explain: denied",
        Exit::NotReady => "status: not ready",
        Exit::NoAgent => "no agent answers",
        Exit::Usage => "wrong command line",
        Exit::AgentRuns => "run: another agent runs here",
        Exit::Config => "wrong configuration",
    };
    let all = [Exit::Success, Exit::Failure, Exit::Differs, Exit::NotReady, Exit::NoAgent];
    let all = all.into_iter().chain([Exit::Usage, Exit::AgentRuns, Exit::Config]);
    let lines: Vec<_> = all.map(|exit| format!("{}  {}", exit.code(), meaning(exit))).collect();
    golden::check("exit codes", &lines);
}

/// The text of the error that this configuration gives.
fn configuration_error(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gatepost.toml");
    std::fs::write(&file, text).unwrap();
    let error = load(Source { file: Some(file), ..Source::default() }).map(|_| ());
    error.map_or_else(|error| error.to_string(), |()| String::new())
}

/// The words that an error offers instead of one that it does not know.
fn offered(error: &str) -> Option<Vec<String>> {
    let (_, words) = error.split_once("; expected one of: ")?;
    Some(words.split(", ").map(str::to_owned).collect())
}

#[test]
fn configuration_keys_with_their_defaults() {
    let mut lines = Vec::new();
    for section in offered(&configuration_error("no-such-thing-anywhere = 1")).unwrap() {
        let unknown = format!("[{section}]\nno-such-thing-anywhere = 1");
        for key in offered(&configuration_error(&unknown)).unwrap() {
            let value = format!("[{section}]\n{key} = \"no-such-thing-anywhere\"");
            let words = offered(&configuration_error(&value));
            let row = format!("| `{section}.{key}` | ");
            let row = REFERENCE.lines().find_map(|line| line.strip_prefix(&row)).unwrap();
            let cell = row.split(" | ").nth(1).unwrap();
            let default = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            let mut line = format!("{section}.{key}");
            line += &words.map_or(String::new(), |words| format!("  {}", words.join("|")));
            line += &default.map_or(String::new(), |default| format!("  default {default}"));
            lines.push(line);
        }
    }
    golden::check("configuration", &lines);
}

#[test]
fn settings_in_the_database() {
    let rows = REFERENCE.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter(|row| row.starts_with("gateway`, `") || row.starts_with("policy`, `"));
    let mut lines = Vec::new();
    for row in rows {
        let words: Vec<_> = row.split('`').collect();
        let (category, key) = (words[0], words[2]);
        let default = row.rsplit('`').nth(1).unwrap();
        let setting =
            SettingRow { category: category.into(), key: key.into(), value: default.into() };
        let (settings, warnings) = Settings::parse("fra-1", &[setting], SystemTime::UNIX_EPOCH);
        assert_eq!((settings, warnings), (Settings::default(), Vec::new()), "{category}.{key}");
        lines.push(format!("{category}.{key}  default {default}"));
    }
    let unknown =
        SettingRow { category: "policy".into(), key: "allow_dnss".into(), value: "1".into() };
    let (_, warnings) = Settings::parse("fra-1", &[unknown], SystemTime::UNIX_EPOCH);
    assert!(matches!(warnings[0].flaw, SettingFlaw::UnknownKey { .. }), "unknown keys are told");
    golden::check("settings", &lines);
}

#[test]
fn metrics() {
    let (watcher, end, _stop) = crate::handles::channels(json::status(), Instant::now());
    let peers = Some(vec![json::peer(PeerState::InKernel)]);
    let scraped = crate::telemetry::Scraped { denied_packets: Some(1), peers };
    let text = crate::telemetry::metrics(&watcher, &scraped, Instant::now());
    drop(end);
    let mut lines = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, _value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let kind_of = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")))
        };
        let of_histogram = ["_bucket", "_sum", "_count"];
        let whole = of_histogram.iter().find_map(|part| name.strip_suffix(part));
        let kind = kind_of(name).or_else(|| whole.and_then(kind_of));
        let labels = labels.trim_end_matches('}').split(',').map(|label| {
            // Of `state` the values are promised, too.
            if label.starts_with("state=") { label } else { label.split('=').next().unwrap_or("") }
        });
        let labels = labels.collect::<Vec<_>>().join(",");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        lines.insert(format!("{name}{labels}  {}", kind.expect("each metric has a type")));
    }
    golden::check("metrics", &Vec::from_iter(lines));
}

#[test]
fn audit_events() {
    let lines: Vec<_> = AuditEvent::ALL.iter().map(|event| event.word().to_owned()).collect();
    golden::check("audit events", &lines);
}

/// The identifiers that the sources use, the catalog explains and the reference lists are the same;
/// the fields are those that the reference promises.
#[test]
fn message_ids_with_their_fields() {
    let catalog = include_str!("../../systemd/gatepost.catalog");
    let explained = catalog.lines().filter_map(|line| line.strip_prefix("-- "));
    let explained: BTreeSet<&str> = explained.collect();
    let mut used = BTreeSet::new();
    let agent = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in [agent.join("src"), agent.join("../src")] {
        collect_ids(&folder, &mut used);
    }
    assert_eq!(used, explained.iter().map(|id| (*id).to_owned()).collect());
    let mut lines = Vec::new();
    for id in explained {
        let row = REFERENCE.lines().find_map(|line| line.split_once(&format!("| `{id}` |")));
        let (_entry, fields) = row.expect("the reference lists each identifier");
        let fields = fields.trim_matches(['|', ' ']).replace(['`', ','], "");
        lines.push(format!("{id}  {fields}").trim_end().to_owned());
    }
    golden::check("message ids", &lines);
}

/// String literals of 32 hexadecimal digits in Rust sources.
fn collect_ids(folder: &std::path::Path, ids: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_ids(&path, ids);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(path).unwrap();
            let is_id =
                |word: &&str| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
            ids.extend(text.split('"').filter(is_id).map(str::to_owned));
        }
    }
}

#[test]
fn times_are_rfc_3339_with_milliseconds() {
    let time = gatepost::reconcile::status::Timestamp(SystemTime::UNIX_EPOCH);
    assert_eq!(time.to_string(), "1970-01-01T00:00:00.000Z");
}
