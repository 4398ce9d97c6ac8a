//! How the sources hang together: no circle between files, and no file too long.
//!
//! A file *imports from* another if it names something that the other defines, by `use` or by a path, also
//! where a `mod.rs` passes the name on. Passing a name on by `pub use` is no import. A file that adds
//! methods to a type of another file may name that type: so a part of a type may stand in a child file.
//! Tests do not count.

mod names;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use names::Program;

/// The programs, by their first file and the folder of its modules.
const PROGRAMS: [(&str, &str); 2] = [("src/lib.rs", "src"), ("agent/src/main.rs", "agent/src")];

/// Circles that are allowed: keep it empty.
const ALLOWED: [[&str; 2]; 0] = [];

const LONGEST_FILE_LINES: usize = 420;
const LONGEST_MACHINE_LINES: usize = 200;

type Imports = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(root().join(path)).ok()
}

/// The files that lie on a way from themselves to themselves, each with those of them that it imports from.
fn circles(imports: &Imports) -> Vec<(PathBuf, PathBuf)> {
    let reaches = |from: &PathBuf, to: &PathBuf| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            if file == to {
                return true;
            }
            if seen.insert(file) {
                next.extend(imports.get(file).into_iter().flatten());
            }
        }
        false
    };
    let pairs = imports.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to)));
    let closes = pairs.filter(|(from, to)| reaches(to, from));
    closes.map(|(from, to)| (from.clone(), to.clone())).collect()
}

#[test]
fn no_two_source_files_import_from_each_other_in_a_circle() {
    for (first, folder) in PROGRAMS {
        let imports = Program::parse(Path::new(first), Path::new(folder), &read).imports();
        assert!(imports.len() > 50, "{first}: the files were not found");
        let mut found = circles(&imports);
        found.retain(|(from, to)| {
            !ALLOWED.iter().any(|[a, b]| from.ends_with(a) && to.ends_with(b))
        });
        assert!(found.is_empty(), "move what both need to a file of its own: {found:?}");
    }
}

#[test]
fn no_source_file_is_too_long() {
    let mut folders = PROGRAMS.map(|(_, folder)| root().join(folder)).to_vec();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let is_machine = path.ends_with("reconcile/machine.rs");
                let most = if is_machine { LONGEST_MACHINE_LINES } else { LONGEST_FILE_LINES };
                let lines = fs::read_to_string(&path).unwrap().lines().count();
                assert!(lines <= most, "{} has {lines} lines, at most {most}", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 300, "the files were not found");
}

/// The circles of a small program.
fn circles_of(files: &[(&str, &str)]) -> Vec<(PathBuf, PathBuf)> {
    let text = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| (*text).to_owned())
    };
    circles(&Program::parse(Path::new("s/lib.rs"), Path::new("s"), &text).imports())
}

#[test]
fn a_circle_is_found_through_what_a_module_passes_on() {
    let both = circles_of(&[
        ("s/lib.rs", "mod plan;"),
        ("s/plan/mod.rs", "mod compute;\nmod transfer;\npub use compute::{Scope, plan};"),
        ("s/plan/compute.rs", "use super::transfer::Move;\npub enum Scope { All(Move) }"),
        ("s/plan/transfer.rs", "pub struct Move;\nfn of() { let _ = super::Scope::All(Move); }"),
    ]);
    assert_eq!(both.len(), 2, "{both:?}");
    let far = circles_of(&[
        ("s/lib.rs", "mod a;\nmod b;\nmod c;"),
        ("s/a.rs", "use crate::b as other;\npub struct A(other::B);"),
        ("s/b.rs", "use super::c::*;\npub struct B(C);"),
        ("s/c.rs", "pub struct C; // crate::a::A\nfn f<T: Into<crate::a::A>>() {}"),
    ]);
    assert_eq!(far.len(), 3, "{far:?}");
}

#[test]
fn neither_a_part_of_a_type_nor_a_test_nor_a_name_passed_on_is_a_circle() {
    let none = circles_of(&[
        ("s/lib.rs", "mod source;"),
        (
            "s/source.rs",
            "mod view;\npub use view::seen;\nuse view::View;\npub struct Source;\npub const MOST: u8 = 1;\n\
             fn f() -> View { View }",
        ),
        (
            "s/source/view.rs",
            "use super::Source;\npub struct View;\npub fn seen() {}\nimpl Source { fn view() {} }\n\
             #[cfg(test)]\nmod tests { use super::super::MOST; }",
        ),
    ]);
    assert!(none.is_empty(), "{none:?}");
}
