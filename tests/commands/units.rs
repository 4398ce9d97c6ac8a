//! The systemd units: how much they expose, and why.

use std::path::Path;
use std::process::Command;

use crate::gatepost::Gatepost;

/// What `systemd-analyze security` says of a unit file: the level, and the lines that it finds fault with.
fn exposure(unit: &str) -> (f64, Vec<String>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(unit);
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, level) = text.split_once("Overall exposure level").unwrap_or_else(|| panic!("{text}"));
    let level = level.split_once(": ").unwrap().1.split_whitespace().next().unwrap();
    let open = text.lines().filter_map(|line| line.strip_prefix("✗ "));
    let open = open.map(|line| line.split_whitespace().next().unwrap().to_owned());
    (level.parse().unwrap(), open.collect())
}

/// The subjects of the last comment of a unit file, each with its reason.
fn reasons(unit: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(unit);
    let text = std::fs::read_to_string(file).unwrap();
    let (_, reasons) =
        text.split_once("# What `systemd-analyze security` still lists, and why:").unwrap();
    reasons.split("\n\n").next().unwrap().to_owned()
}

/// The word by which the comment names a line such as `CapabilityBoundingSet=~CAP_NET_ADMIN`.
fn subject(line: &str) -> &str {
    match line.split_once('~') {
        Some((_, "AF_(INET|INET6)")) => "AF_INET",
        Some((_, value)) => value,
        None => &line[..=line.find('=').unwrap()],
    }
}

/// No secret of their memory gets to a disk.
#[test]
fn units_write_no_core_dump_and_use_no_swap() {
    for unit in ["gatepost.service", "gatepost-device@.service", "gatepost-bell.service"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(unit);
        let text = std::fs::read_to_string(file).unwrap();
        for line in ["LimitCORE=0", "MemorySwapMax=0"] {
            assert_eq!(text.lines().filter(|it| *it == line).count(), 1, "{unit}: {line}");
        }
    }
}

#[test]
fn units_name_man_pages_that_the_package_has() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().to_str().unwrap();
    Gatepost::with("").run(&["manual", pages]).must_exit(0);
    let mut named = 0;
    for unit in ["gatepost.service", "gatepost-device@.service", "gatepost-bell.service"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(unit);
        let text = std::fs::read_to_string(file).unwrap();
        for page in text.split("man:").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (name, section) = page.split_once('(').unwrap();
            assert!(folder.path().join(format!("{name}.{section}")).exists(), "{unit}: {page})");
            named += 1;
        }
    }
    assert!(named >= 2, "{named}");
}

#[test]
fn units_expose_no_more_than_they_must_and_say_why() {
    for (unit, most) in [
        ("gatepost.service", 1.5),
        ("gatepost-device@.service", 1.7),
        ("gatepost-bell.service", 1.2),
    ] {
        let (level, open) = exposure(unit);
        assert!(level <= most, "{unit}: {level}, at most {most}");
        assert!(!open.is_empty(), "{unit}");
        let reasons = reasons(unit);
        for line in open {
            let subject = subject(&line);
            let named = |it: &str| it.trim_matches(['#', ' ', ',']) == subject;
            let is_named = reasons.split([' ', '\n']).any(named);
            assert!(is_named, "{unit} gives no reason for {line}");
        }
    }
}
