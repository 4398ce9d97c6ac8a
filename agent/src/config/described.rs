//! Guards that docs/reference.md describes exactly the keys that exist, with their defaults.

use std::collections::BTreeMap;

use super::Config;
use super::scratch::Scratch;

/// The reference's table of keys: each key, and its default if it is written as a value.
fn described_keys() -> BTreeMap<&'static str, Option<&'static str>> {
    let reference = include_str!("../../../docs/reference.md");
    let (_, table) = reference.split_once("| key | type | default | meaning |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
    let row = |cells: Vec<&'static str>| {
        let default = cells[2].strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
        (cells[0].trim_matches(['|', ' ', '`']), default)
    };
    cells.map(row).collect()
}

#[test]
fn reference_lists_exactly_the_keys() {
    let known = |text: &str| {
        let error = Scratch::new().error(text);
        let (_, known) = error.split_once("; expected one of: ").unwrap();
        known.split(", ").map(str::to_owned).collect::<Vec<_>>()
    };
    let mut keys = Vec::new();
    for section in known("no-such-thing-anywhere = 1") {
        let keys_of_section = known(&format!("[{section}]\nno-such-thing-anywhere = 1"));
        keys.extend(keys_of_section.iter().map(|key| format!("{section}.{key}")));
    }
    keys.sort();
    assert_eq!(keys, described_keys().into_keys().collect::<Vec<_>>());
}

#[test]
fn every_key_is_read_again_on_sighup_or_needs_a_restart() {
    let config = Scratch::new().load("").unwrap();
    let fixed = super::reload::fixed(&config, &config).into_iter().map(|(key, _)| key);
    let mut keys: Vec<_> = super::reload::READ_AGAIN.into_iter().chain(fixed).collect();
    keys.sort_unstable();
    assert_eq!(keys, described_keys().into_keys().collect::<Vec<_>>());
}

#[test]
fn reference_shows_the_defaults() {
    let defaults = described_keys().into_iter().filter_map(|(key, value)| Some((key, value?)));
    let text = defaults.map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
    let (shown, default) = (Scratch::new().load(&text).unwrap(), Scratch::new().load("").unwrap());
    let all = |config: &Config| {
        let Config { database, sync, interface, firewall, guard, stale, .. } = config;
        let Config { report, metrics, control, cache, log, hints, .. } = config;
        format!("{database:?} {sync:?} {interface:?} {firewall:?} {guard:?} {stale:?} {report:?}")
            + &format!("{metrics:?} {control:?} {cache:?} {log:?} {hints:?}")
    };
    assert_eq!(all(&shown), all(&default));
}
