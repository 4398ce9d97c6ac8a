//! `gatepost check`: what keeps this gateway from working, each with its remedy.

mod facts;
mod finding;
mod firewall;
mod judge;

use crate::config::{Source, load};
use crate::exit::{CommandError, Exit};
use crate::output::{self, Style, Tone, count, harmless};

pub use finding::{Finding, Level};

/// Looks at everything and prints what it finds.
///
/// # Errors
/// Only what keeps it from looking: a wrong configuration is a finding.
pub fn check(source: Source, json: bool) -> Result<Exit, CommandError> {
    let findings = match load(source) {
        Err(error) => vec![Finding::wrong("config", error.to_string())],
        Ok(config) => judge::judge(&config, &facts::gather(&config)?),
    };
    if json {
        output::print_json(&findings)?;
    } else {
        output::print(&describe(&findings, Style::of_stdout()))?;
    }
    Ok(finding::exit(&findings))
}

fn describe(findings: &[Finding], style: Style) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, tone) = match finding.level {
            Level::Ok => ("ok", Tone::Good),
            Level::Note => ("note", Tone::Good),
            Level::Warning => ("warning", Tone::Warning),
            Level::Wrong => ("wrong", Tone::Bad),
        };
        let word = style.paint(tone, &format!("{word:<8}"));
        text.push_str(&format!("{word}{:<11}{}\n", finding.subject, harmless(&finding.text)));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:19}-> {}\n", "", harmless(remedy)));
        }
    }
    let at = |level| findings.iter().filter(|finding| finding.level == level).count() as u64;
    let summary = match (at(Level::Wrong), at(Level::Warning)) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, warnings) => count(warnings, "warning"),
        (wrong, warnings) => format!("{wrong} wrong, {}", count(warnings, "warning")),
    };
    format!("{text}\n{summary}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_line_up_and_are_counted() {
        let ok = Finding::wrong("mtu", "1420 in eth0's 1500");
        let findings = [
            Finding { level: Level::Ok, ..ok.clone() },
            Finding { level: Level::Warning, remedy: Some("mend it".into()), ..ok },
        ];
        assert_eq!(
            describe(&findings, Style::Plain),
            "\
ok      mtu        1420 in eth0's 1500
warning mtu        1420 in eth0's 1500
                   -> mend it

1 warning
"
        );
    }
}
