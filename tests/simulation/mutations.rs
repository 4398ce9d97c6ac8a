//! Whether the simulation finds faults of the product: those that `mutations.toml` lists.
//!
//! The product has no switches for them. A copy of the tree gets them, all at once, so that one build
//! serves for all: in the copy, `crate::mutation::is(NAME)` says whether a fault is chosen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::Deserialize;

use super::{HISTORIES, search};

/// The variables that choose a fault in the copy, and the history that is tried first.
const CHOSEN: &str = "GATEPOST_MUTATION";
const FIRST: &str = "GATEPOST_FIRST_HISTORY";
const SWITCH: &str = r#"//! Which fault is chosen.
use std::sync::LazyLock;

static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("GATEPOST_MUTATION").ok());

pub fn is(name: &str) -> bool {
    CHOSEN.as_deref() == Some(name)
}
"#;

#[derive(Debug, Deserialize)]
struct Mutation {
    name: String,
    /// What the fault does, in a sentence.
    breaks: String,
    /// Which promise that is against.
    promise: String,
    file: PathBuf,
    /// Text that the file holds once.
    code: String,
    fault: String,
    /// How the oracle tells of it: a part of that.
    found: String,
    /// The first history of `make test` that finds it. It is tried first; a change of the simulation may
    /// give another, which is searched then.
    history: u64,
}

#[derive(Debug, Deserialize)]
struct Mutations {
    mutation: Vec<Mutation>,
}

/// The first history that a fault breaks.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    history: u64,
    why: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn mutations() -> Vec<Mutation> {
    let listed = include_str!("mutations.toml");
    toml::from_str::<Mutations>(listed).unwrap().mutation
}

/// Writes a file unless it holds that already: what is not written is not built again.
fn write(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|held| held == content) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// The source of one file with these faults.
fn mutated(source: &str, mutations: &[&Mutation]) -> String {
    mutations.iter().fold(source.to_owned(), |source, Mutation { name, code, fault, .. }| {
        let places = source.matches(code.as_str()).count();
        assert_eq!(places, 1, "{name}: its code stands {places} times in the file:\n{code}");
        let chosen = format!("crate::mutation::is({name:?})");
        source.replace(code.as_str(), &fault.replace("MUTATED", &chosen))
    })
}

/// Copies the tree with every fault behind a switch.
fn copy_tree(mutations: &[Mutation], copy: &Path) {
    let mut files = Vec::new();
    for folder in ["src", "agent", "migrations", "tests/simulation", "tests/support"] {
        files_below(&root().join(folder), &mut files);
    }
    files.extend(["Cargo.toml", "Cargo.lock", "rust-toolchain.toml"].map(|it| root().join(it)));
    for file in files {
        let path = file.strip_prefix(root()).unwrap();
        let content = fs::read(&file).unwrap();
        let here: Vec<_> = mutations.iter().filter(|it| it.file == path).collect();
        if path == Path::new("src/lib.rs") {
            let source = String::from_utf8(content).unwrap() + "pub mod mutation;\n";
            write(&copy.join(path), source.as_bytes());
        } else if path.ends_with("Cargo.toml") || path.ends_with("Cargo.lock") {
            let source = String::from_utf8(content).unwrap();
            write(&copy.join(path), with_another_version(&source).as_bytes());
        } else if here.is_empty() {
            write(&copy.join(path), &content);
        } else {
            let source = mutated(&String::from_utf8(content).unwrap(), &here);
            write(&copy.join(path), source.as_bytes());
        }
    }
    write(&copy.join("src/mutation.rs"), SWITCH.as_bytes());
}

/// Cargo tells the same package in two folders of one target directory apart by its version alone. With our own
/// version, it would take the library of the copy for ours in all later builds.
fn with_another_version(manifest: &str) -> String {
    const OURS: &str = concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"");
    const OTHER: &str = concat!("version = \"", env!("CARGO_PKG_VERSION"), "+mutations\"");
    let mut text = manifest.to_owned();
    for before in ["[workspace.package]", "name = \"gatepost\"", "name = \"gatepost-agent\""] {
        text = text.replace(&format!("{before}\n{OURS}"), &format!("{before}\n{OTHER}"));
    }
    let follows_workspace = text.contains("version.workspace = true");
    assert!(text != manifest || follows_workspace, "no line {OURS} to change in:\n{manifest}");
    text
}

/// Builds the simulation of the copy, with the dependencies that are built already. Returns its path.
fn build(copy: &Path, target: &Path, profile: &str) -> PathBuf {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    // Some dependencies are built anew when a variable changes that cargo sets for this program.
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    let built = cargo
        .current_dir(copy)
        .args(["test", "--locked", "--workspace", "--test", "simulation", "--no-run"])
        .args(["--message-format", "json", "--profile", profile])
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let messages = String::from_utf8(built.stdout).unwrap();
    let mut programs = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == "simulation";
        message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    });
    programs.next_back().unwrap()
}

/// Lives through histories with a fault, until one fails.
fn search_for(program: &Path, name: &str, first: u64, histories: u64) -> Option<Found> {
    let output = Command::new(program)
        .args(["--ignored", "--exact", "mutations::first_history_that_fails", "--nocapture"])
        .env(CHOSEN, name)
        .env(FIRST, first.to_string())
        .env("GATEPOST_HISTORIES", histories.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let output = String::from_utf8(output.stdout).unwrap();
    let (_, found) = output.split_once("FOUND ")?;
    let (history, why) = found.lines().next()?.split_once(' ')?;
    Some(Found { history: history.parse().ok()?, why: why.to_owned() })
}

#[test]
fn every_fault_that_is_listed_has_its_place() {
    let mutations = mutations();
    for file in mutations.iter().map(|it| &it.file) {
        let here: Vec<_> = mutations.iter().filter(|it| it.file == *file).collect();
        mutated(&fs::read_to_string(root().join(file)).unwrap(), &here);
    }
}

#[test]
#[ignore = "it builds a copy of the library: make test-mutations"]
fn every_fault_that_is_listed_is_found() {
    let mutations = mutations();
    assert!(mutations.len() >= 21);
    let program = std::env::current_exe().unwrap();
    let folder = program.ancestors().nth(2).unwrap();
    let profile = match folder.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        profile => profile,
    };
    let target = folder.parent().unwrap();
    let copy = target.join("mutations");
    copy_tree(&mutations, &copy);
    let program = build(&copy, target, profile);
    assert_eq!(search_for(&program, "none", 0, HISTORIES / 20), None, "without any fault");

    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(it) = mutations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = search_for(&program, &it.name, it.history, HISTORIES);
                    if !tell(it, found.as_ref()) {
                        let mut missed = missed.lock().unwrap_or_else(PoisonError::into_inner);
                        missed.push(it.name.clone());
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found, or otherwise than listed: {missed:?}");
}

/// Prints what found a fault. Says whether it is what the list says.
fn tell(mutation: &Mutation, found: Option<&Found>) -> bool {
    let Mutation { name, breaks, promise, history: first, .. } = mutation;
    let Some(Found { history, why }) = found else {
        println!("{name}: NOT FOUND. {breaks} ({promise})");
        return false;
    };
    let moved = if history == first { "" } else { " (the list names another)" };
    println!("{name}: history {history}{moved}: {why}\n    {breaks} ({promise})");
    !mutation.found.is_empty() && why.contains(&mutation.found)
}

#[test]
#[ignore = "the search for one fault, in a process of its own"]
fn first_history_that_fails() {
    std::panic::set_hook(Box::new(|_| {}));
    let count = super::number_of("GATEPOST_HISTORIES").unwrap_or(HISTORIES);
    let first = super::number_of(FIRST).unwrap_or_default();
    let failure = std::iter::once(first)
        .chain(0..count)
        .find_map(|number| Some((number, search::failure(&search::scenario(1, number))?)));
    drop(std::panic::take_hook());
    if let Some((number, why)) = failure {
        println!("FOUND {number} {}", why.replace('\n', " "));
    }
}
