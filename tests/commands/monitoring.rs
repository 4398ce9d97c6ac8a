//! The alert rules, as Prometheus's own tool sees them.

use std::path::Path;
use std::process::Command;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/monitoring");

/// Runs `promtool` in the folder of the rules.
fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(FOLDER).output();
    let output =
        output.expect("promtool of the package prometheus; `make install-deps` installs it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

#[test]
fn alert_rules_are_sound_and_fire_when_they_should() {
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "gatepost.rules.test.yml"]);
}

#[test]
fn every_alert_has_a_test_and_every_metric_of_a_rule_exists() {
    let read = |name: &str| std::fs::read_to_string(Path::new(FOLDER).join(name)).unwrap();
    let (rules, tests) = (read("gatepost.rules.yml"), read("gatepost.rules.test.yml"));
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    for alert in alerts {
        assert!(
            tests.contains(&format!("{alert}\"}}")) || tests.contains(&format!("{alert}\n")),
            "{alert}"
        );
    }
    let reference = include_str!("../../docs/reference.md");
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for metric in words.filter(|word| word.starts_with("gatepost_")) {
        let family = metric.strip_suffix("_bucket").unwrap_or(metric);
        assert!(reference.contains(&format!("`{family}")), "{metric} is not described");
    }
}
