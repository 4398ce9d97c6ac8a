//! The public surface, one section for each kind of name: `tests/golden/surface.txt`.
//!
//! Scripts, dashboards and databases rely on what stands there. A test that owns a section generates
//! its lines from the sources and compares them with the file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

use std::fs::File;
use std::path::PathBuf;

const FIRST_LINES: &str = "\
# What Gatepost promises to keep from release to release. Tests generate this file from the sources.
# A name is added, never renamed or removed without a line in CHANGELOG.md: `make bless-surface`.
";

/// Compares a section with the file, or writes it when `GATEPOST_BLESS` is set.
#[track_caller]
pub fn check(section: &str, lines: &[String]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // The agent's folder lies in the workspace's.
    let root = path.ancestors().find(|folder| folder.join("tests/golden").is_dir());
    let path = root.expect("the workspace").join("tests/golden/surface.txt");
    let found = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(!found.is_empty(), "section {section} is empty");
    if std::env::var_os("GATEPOST_BLESS").is_some() {
        bless(&path, section, &found);
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let golden = sections(&text).into_iter().find(|(name, _)| *name == section);
    let golden = golden.map_or(String::new(), |(_, body)| body);
    assert!(
        golden == found,
        "the public surface changed, section \"{section}\" of {}:\n{}\
         If that is intended, run `make bless-surface`, read the difference, and say it in CHANGELOG.md.",
        path.display(),
        difference(&golden, &found)
    );
}

/// Sections in the file's order, each with its name and its lines.
fn sections(text: &str) -> Vec<(&str, String)> {
    let mut sections = Vec::new();
    for part in text.split("\n## ").skip(1) {
        let (name, body) = part.split_once('\n').expect("a heading has lines below it");
        sections.push((name, format!("{}\n", body.trim_end())));
    }
    sections
}

fn bless(path: &PathBuf, section: &str, body: &str) {
    let lock = File::options().read(true).append(true).create(true).open(path).unwrap();
    lock.lock().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let mut all = sections(&text);
    all.retain(|(name, _)| *name != section);
    all.push((section, body.to_owned()));
    all.sort();
    let text = all.iter().map(|(name, body)| format!("\n## {name}\n{body}")).collect::<String>();
    std::fs::write(path, format!("{FIRST_LINES}{text}")).unwrap();
}

fn difference(golden: &str, found: &str) -> String {
    let only = |sign: char, these: &str, others: &str| {
        let missing = |line: &&str| !others.lines().any(|other| other == *line);
        these.lines().filter(missing).map(|line| format!("  {sign} {line}\n")).collect::<String>()
    };
    let difference = only('-', golden, found) + &only('+', found, golden);
    if difference.is_empty() { "  the order differs\n".to_owned() } else { difference }
}

/// Each field of a JSON value, by its path, with the type of what it holds: `sync.lag_ms: number`.
#[allow(dead_code, reason = "a test without JSON shares this file")]
pub fn fields(value: &serde_json::Value) -> Vec<String> {
    fn walk(path: &str, value: &serde_json::Value, lines: &mut Vec<String>) {
        use serde_json::Value::{Array, Bool, Null, Number, Object, String};
        let kind = match value {
            Object(fields) => {
                let dot = if path.is_empty() { "" } else { "." };
                return fields.iter().for_each(|(name, value)| {
                    walk(&format!("{path}{dot}{name}"), value, lines);
                });
            }
            Array(values) if !values.is_empty() => {
                return values.iter().for_each(|value| walk(&format!("{path}[]"), value, lines));
            }
            Array(_) => "list",
            Null => "null",
            Bool(_) => "true or false",
            Number(_) => "number",
            String(_) => "text",
        };
        let line = format!("{path}: {kind}");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let mut lines = Vec::new();
    walk("", value, &mut lines);
    lines
}
