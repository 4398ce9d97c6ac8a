//! The page of faults: each row is a fault that a test causes, and each fault of a test has a row.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::documents::root;

/// The faults that the page lists, each once.
fn rows() -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let rows = page.lines().filter(|line| line.contains("::") && line.starts_with("| "));
    let mut faults: Vec<_> =
        rows.filter_map(|row| Some(row[2..].split_once(" | ")?.0.to_owned())).collect();
    faults.sort();
    faults.dedup();
    faults
}

fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        // This file names no fault.
        let is_this = path.ends_with("commands/faults.rs");
        if path.is_dir() && !path.ends_with("bench") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_this {
            found.push((path.clone(), fs::read_to_string(path).unwrap()));
        }
    }
}

/// The tests that may print a row.
fn tests() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&root().join("tests"), &mut found);
    sources(&root().join("src/dataplane/netlink"), &mut found);
    found
}

/// The text of a literal that begins after a quotation mark, and what follows.
fn literal(source: &str) -> (String, &str) {
    let mut text = String::new();
    let mut rest = source.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '"' => break,
            '\\' => match rest.next() {
                Some('\n') => rest = rest.as_str().trim_start().chars(),
                escaped => text.extend(escaped),
            },
            letter => text.push(letter),
        }
    }
    (text, rest.as_str())
}

fn literals(mut source: &str) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((_, rest)) = source.split_once('"') {
        let (text, after) = literal(rest);
        found.push(text);
        source = after;
    }
    found
}

/// The parts of a format around its arguments.
fn parts(format: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = format;
    while let Some((part, after)) = rest.split_once('{') {
        parts.push(part);
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    parts.push(rest);
    parts
}

/// Whether a format with some arguments gives this text.
fn gives(format: &str, text: &str) -> bool {
    let parts = parts(format);
    let [first, middle @ .., last] = &parts[..] else { return format == text };
    let Some(mut rest) = text.strip_prefix(first).and_then(|it| it.strip_suffix(last)) else {
        return false;
    };
    middle.iter().all(|part| {
        let found = rest.split_once(*part);
        rest = found.map_or("", |(_, after)| after);
        found.is_some()
    })
}

/// The faults that a source names where it tells of them.
fn told(path: &Path, source: &str) -> Vec<String> {
    let mut markers = vec!["Fault::new(", "Fault::told(", "Fault::told_lasting(", " fault: "];
    if path.ancestors().any(|folder| folder.ends_with("tests/postgres")) {
        markers.extend([" row(", "fault::row(", " fault("]);
    }
    // Those that are named before they are caused. What is formatted there is a message.
    let named = source.split("let what =").skip(1).map(str::trim_start);
    let named = named.filter_map(|after| Some(literal(after.strip_prefix('"')?).0));
    let mut found: Vec<_> = named.collect();
    for marker in markers {
        for after in source.split(marker).skip(1) {
            let Some((before, rest)) = after.split_once('"') else { continue };
            let words = before.replace("format!(", "").replace("self.", "");
            let is_next = words.chars().all(|it| " \n&,(".contains(it) || "lab".contains(it));
            if is_next {
                found.push(literal(rest).0);
            }
        }
    }
    found
}

#[test]
fn each_fault_that_a_test_tells_of_is_a_row_of_the_page() {
    let rows = rows();
    let faults: Vec<_> = tests().iter().flat_map(|(path, source)| told(path, source)).collect();
    let has_row = |fault: &&String| rows.iter().any(|row| gives(fault, row));
    let missing: Vec<_> = faults.iter().filter(|fault| !has_row(fault)).collect();
    assert!(missing.is_empty(), "without a row in docs/faults.md: {missing:#?}");
    assert!(faults.len() > 40, "{faults:#?}");
}

#[test]
fn each_row_of_the_page_of_faults_is_told_by_a_test() {
    /// Formats of less say nothing.
    const LEAST: usize = 4;
    let literals: Vec<_> = tests().iter().flat_map(|(_, source)| literals(source)).collect();
    let says = |format: &&String| parts(format).concat().len() >= LEAST;
    let formats: Vec<_> = literals.iter().filter(says).collect();
    let is_told = |row: &&String| formats.iter().any(|format| gives(format, row));
    let rows = rows();
    let untold: Vec<_> = rows.iter().filter(|row| !is_told(row)).collect();
    assert!(untold.is_empty(), "no test tells of these: {untold:#?}");
    assert!(rows.len() > 80, "{rows:#?}");
}

#[test]
fn each_fault_of_the_packaged_agent_is_a_row_of_the_page_and_each_of_its_rows_is_caused() {
    let [page, script] = ["docs/faults.md", "tests/guest/package"]
        .map(|name| fs::read_to_string(root().join(name)).unwrap());
    let rows: BTreeSet<&str> = page
        .lines()
        .filter(|row| row.ends_with("| `tests/guest/package` |"))
        .filter_map(|row| Some(row.strip_prefix("| ")?.split_once(" | ")?.0))
        .collect();
    let caused: BTreeSet<&str> = script
        .split("under_fire \"")
        .skip(1)
        .filter_map(|after| Some(after.split_once('"')?.0))
        .collect();
    assert_eq!(rows, caused);
    assert!(rows.len() >= 5, "{rows:#?}");
}
