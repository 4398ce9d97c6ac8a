//! `gatepost check`: finds what keeps this gateway from working, each with its remedy.

mod evaluate;
mod facts;
mod finding;
mod firewall;
mod forwarding;
mod hindrances;
mod hints;
mod legacy;
mod ports;
mod running;
mod shared;

use crate::config::{Source, load};
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{self, Style, Tone, count, printable};

pub use finding::{Finding, Level};
pub use hindrances::hindrances;
pub use shared::of_public;

/// Checks everything and prints the findings. A wrong configuration is one of them.
///
/// # Errors
/// The output cannot be written, or the runtime cannot be created.
pub fn check(source: Source, json: bool) -> Result<Exit, CommandError> {
    let findings = findings(source)?;
    if json {
        output::print_json(&findings)?;
    } else {
        output::print(&describe(&findings, Style::of_stdout()))?;
    }
    Ok(finding::exit(&findings))
}

/// The findings as text.
///
/// # Errors
/// The runtime cannot be created.
pub fn text(source: Source) -> Result<String, CommandError> {
    Ok(describe(&findings(source)?, Style::Plain))
}

fn findings(source: Source) -> Result<Vec<Finding>, CommandError> {
    Ok(match load(source) {
        Err(error) => vec![Finding::config_error("config", &error)],
        Ok(config) => evaluate::evaluate(&config, &facts::gather(&config)?),
    })
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
        let subject = format!("{} ", finding.subject);
        text.push_str(&format!("{word}{subject:<11}{}\n", printable(&finding.text)));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:19}-> {}\n", "", printable(remedy)));
        }
    }
    let at = |level| findings.iter().filter(|finding| finding.level == level).count() as u64;
    let summary = match (at(Level::Wrong), at(Level::Warning)) {
        (0, 0) => match at(Level::Note) {
            0 => "nothing is wrong".to_owned(),
            notes => format!("nothing is known to be wrong, {}", count(notes, "note")),
        },
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
